"""systemd's readiness protocol: short datagrams to the socket in NOTIFY_SOCKET.

Source: sd_notify(3). Without NOTIFY_SOCKET every call does nothing, so that the daemon needs no special case.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

WATCHDOG_SECONDS_MIN = 0.05   # below this the pings themselves would be the load


class Notifier:
    """Tells the service manager how the daemon is."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        env = os.environ if environ is None else environ
        address = env.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_usec = env.get("WATCHDOG_USEC", "")
        self._watchdog_pid = env.get("WATCHDOG_PID", "")

    @property
    def watchdog_seconds(self) -> float | None:
        """How often to ping: half of what the service manager allows; None when it does not watch us."""
        if not self._address or not self._watchdog_usec.isascii() or not self._watchdog_usec.isdigit():
            return None
        if self._watchdog_pid and self._watchdog_pid != str(os.getpid()):
            return None
        return max(int(self._watchdog_usec) / 2e6, WATCHDOG_SECONDS_MIN) if int(self._watchdog_usec) else None

    def send(self, *lines: str) -> bool:
        """Send one datagram; false when nobody listens. A deaf service manager never stops the daemon."""
        if not self._address:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            try:
                sender.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return False
        return True

    def ready(self, status: str) -> None:
        """Start-up or a reload is finished."""
        self.send("READY=1", f"STATUS={_line(status)}", f"MAINPID={os.getpid()}")

    def reloading(self) -> None:
        """A reload begins; systemd wants the moment beside it."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading")

    def stopping(self, status: str) -> None:
        """The daemon drains."""
        self.send("STOPPING=1", f"STATUS={_line(status)}")

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self.send(f"STATUS={_line(status)}")

    def watchdog(self) -> None:
        """Still healthy."""
        self.send("WATCHDOG=1")


def _line(text: str) -> str:
    return " ".join(text.split())
