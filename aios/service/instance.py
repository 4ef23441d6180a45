"""One daemon per home: the lock that says who it is, the socket that only the lock's holder may replace."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import MutableMapping

from aios.config import Places
from aios.errors import AlreadyRunning, ConfigError

LISTEN_FDS_START = 3      # sd_listen_fds(3)
BACKLOG = 128             # as many clients as the default limit may connect in one instant
PID_BYTES_MAX = 32


class Lock:
    """The home's flock, held until `release` or the end of the process, however it ends."""

    def __init__(self, places: Places) -> None:
        self._descriptor = os.open(places.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, PID_BYTES_MAX, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise AlreadyRunning(f"a daemon already runs in this home (pid {holder or 'unknown'})",
                                 remedy="`aios status` shows it, `aios stop` ends it", pid=holder) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Empty the file and let go; the file stays, since removing it would let two processes hold two locks."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


class Listener:
    """The daemon's socket: bound here, or inherited from systemd and then never unlinked."""

    def __init__(self, places: Places, environ: MutableMapping[str, str] | None = None) -> None:
        inherited = _inherited(os.environ if environ is None else environ)
        self.inherited = inherited is not None
        self._path = places.socket
        self.socket = inherited or _bind(places)

    def close(self) -> None:
        """Stop listening; our own socket file disappears, an inherited one belongs to systemd."""
        self.socket.close()
        if not self.inherited:
            self._path.unlink(missing_ok=True)


def sweep(places: Places) -> int:
    """Remove what a killed daemon left half written in state and runtime; call with the lock held. How many files."""
    swept = 0
    for folder in (places.state, places.runtime):
        for path in folder.glob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISREG(path.lstat().st_mode):
                    path.unlink()
                    swept += 1
    return swept


def _bind(places: Places) -> socket.socket:
    # The lock is ours, so nobody answers on a socket file that is still here: its daemon was killed.
    places.socket.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        mask = os.umask(0o177)
        try:
            listener.bind(str(places.socket))
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {places.socket}: {error.strerror}",
                          remedy="set AIOS_HOME to a folder on a local file system") from error
    listener.setblocking(False)
    return listener


def _inherited(environ: MutableMapping[str, str]) -> socket.socket | None:
    """The socket systemd opened for us, if any; its variables are removed, so that no child takes it for its own."""
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit() or int(count) < 1:
        return None
    if int(count) > 1:
        raise ConfigError(f"systemd passed {count} sockets; one is expected", remedy="one ListenStream in aios.socket")
    os.set_inheritable(LISTEN_FDS_START, False)
    listener = socket.socket(fileno=LISTEN_FDS_START)
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM:
        listener.close()
        raise ConfigError("the inherited socket is not a Unix stream socket", remedy="ListenStream=PATH in aios.socket")
    listener.setblocking(False)
    return listener
