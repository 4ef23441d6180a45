from __future__ import annotations

import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios.service.notify import Notifier


@pytest.fixture
def manager() -> Iterator[tuple[socket.socket, str]]:
    """A service manager's datagram socket and its address."""
    with tempfile.TemporaryDirectory(prefix="aios-") as folder:
        path = str(Path(folder) / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(path)
            receiver.settimeout(5)
            yield receiver, path


def test_every_change_of_state_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    receiver, path = manager
    notifier = Notifier({"NOTIFY_SOCKET": path})
    notifier.ready("listening\non a socket")
    assert receiver.recv(4096).decode().splitlines() == ["READY=1", "STATUS=listening on a socket",
                                                         f"MAINPID={os.getpid()}"]
    notifier.reloading()
    told = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)\nSTATUS=reloading", receiver.recv(4096).decode())
    assert told is not None
    assert abs(int(told[1]) - time.monotonic_ns() // 1000) < 5_000_000
    notifier.stopping("finishing 2 requests")
    assert receiver.recv(4096) == b"STOPPING=1\nSTATUS=finishing 2 requests"
    notifier.watchdog()
    assert receiver.recv(4096) == b"WATCHDOG=1"


def test_an_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        name = f"aios-test-{os.getpid()}"
        receiver.bind("\0" + name)
        assert Notifier({"NOTIFY_SOCKET": "@" + name}).send("STATUS=x")
        assert receiver.recv(100) == b"STATUS=x"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}])
def test_without_a_listening_manager_nothing_happens(environ: dict[str, str]) -> None:
    assert Notifier(environ).send("READY=1") is False


@pytest.mark.parametrize(("environ", "seconds"), [
    ({"WATCHDOG_USEC": "30000000"}, 15.0),
    ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
    ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
    ({"WATCHDOG_USEC": "0"}, None),
    ({"WATCHDOG_USEC": "soon"}, None),
    ({}, None),
])
def test_the_watchdog_is_pinged_at_half_the_interval_meant_for_us(environ: dict[str, str],
                                                                  seconds: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/run/x", **environ}).watchdog_seconds == seconds
