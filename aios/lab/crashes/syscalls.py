"""File system calls of another process, seen and answered from outside: the program under test is the one that ships.

A child that asks for it (`watch_me`) has its calls on files reported to the watcher before the kernel carries them
out. The watcher writes them down, lets them go on, or answers in the kernel's place with an error number. It needs no
rights beyond those of the same user. Linux 5.5 on x86-64 and aarch64.

Source: seccomp_unotify(2), "Supervisor" with SECCOMP_USER_NOTIF_FLAG_CONTINUE.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Kind = Literal["open", "make", "read", "write", "truncate", "sync", "rename", "unlink", "tell"]

PATH_BYTES_MAX: Final = 4096
DESCRIPTORS_MAX: Final = 1 << 20      # more is a negative number
TELL_DESCRIPTOR: Final = 1            # what the victim acknowledges goes to its standard output
_ARCHITECTURES: Final[Mapping[str, tuple[int, int]]] = {     # audit number, number of seccomp(2)
    "x86_64": (0xC000003E, 317), "aarch64": (0xC00000B7, 277)}
_NUMBERS: Final[Mapping[str, Mapping[int, str]]] = {
    "x86_64": {0: "read", 1: "write", 17: "pread", 18: "pwrite", 74: "fsync", 75: "fsync", 77: "ftruncate",
               82: "rename", 87: "unlink", 257: "openat", 263: "unlinkat", 264: "renameat", 316: "renameat"},
    "aarch64": {63: "read", 64: "write", 67: "pread", 68: "pwrite", 82: "fsync", 83: "fsync", 46: "ftruncate",
                35: "unlinkat", 56: "openat", 38: "renameat", 276: "renameat"}}
_NOTICE, _ANSWER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=Qqii")
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE: Final = 1
_NO_NEW_PRIVILEGES, _SET_FILTER, _NEW_LISTENER = 38, 1, 1 << 3
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A call on a file in the watched folder, or something told."""

    kind: Kind
    path: str = ""                     # make: a file that was not there, or is emptied; sync: a file or the folder
    other: str = ""                    # the new name
    offset: int = 0                    # of a write; the size after a truncation
    data: bytes = b""


Decide = Callable[[Event], int]        # 0: go on; else the error number that the call ends with


def supported() -> str | None:
    """Why calls cannot be watched here; None where they can."""
    if platform.machine() not in _ARCHITECTURES:
        return f"watching system calls is written for x86-64 and aarch64, not {platform.machine()}"
    actions = ""
    with suppress(OSError):
        actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text(encoding="ascii")
    return None if "user_notif" in actions else "this kernel has no seccomp user notifications (Linux 5.5)"


def watch_me(channel: socket.socket) -> None:
    """From now on this process's calls on files wait for whoever holds the other end of `channel`."""
    audit, number = _ARCHITECTURES[platform.machine()]
    calls = sorted(_NUMBERS[platform.machine()])
    program = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, 0)]
    program += [(_EQUAL, len(calls) - index, 0, call) for index, call in enumerate(calls)]
    program += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _NOTIFY)]
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    head = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "giving up the way to new privileges")
    listener = libc.syscall(number, _SET_FILTER, _NEW_LISTENER, head)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "asking for notifications of system calls")
    socket.send_fds(channel, [b"w"], [listener])
    os.close(listener)


class Watcher:
    """The other end: sees the calls of one child on files below `folder` until it ends."""

    def __init__(self, channel: socket.socket, folder: str) -> None:
        """Waits for the child's `watch_me`."""
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        self._listener, self._folder = descriptors[0], folder.rstrip("/")
        self._names = _NUMBERS[platform.machine()]

    def watch(self, see: Decide, seconds_max: float) -> None:
        """Answer every call until the child is gone; TimeoutError when that takes too long."""
        poll, until = select.poll(), time.monotonic() + seconds_max
        poll.register(self._listener, select.POLLIN)
        try:
            while True:
                found = poll.poll(max(0.0, until - time.monotonic()) * 1e3)
                if not found:
                    raise TimeoutError(f"the victim ran for more than {seconds_max:.0f} s")
                if not found[0][1] & select.POLLIN:
                    return                              # nobody is left who could call
                self._answer(see)
        finally:
            os.close(self._listener)

    def _answer(self, see: Decide) -> None:
        notice = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, notice)
            identity, task, _, number, _, _, *arguments = _NOTICE.unpack(notice)
            event = self._event(self._names[number], task, arguments)
            error = see(event) if event is not None else 0
            fcntl.ioctl(self._listener, _SEND, _ANSWER.pack(identity, 0, -error, 0 if error else _CONTINUE))
        except (FileNotFoundError, ProcessLookupError, InterruptedError):
            return                                      # it died at this call

    def _event(self, name: str, task: int, arguments: list[int]) -> Event | None:
        """What the call is about; None where it is none of ours."""
        first, second, third, fourth = arguments[:4]
        if name in ("rename", "renameat", "unlink", "unlinkat", "openat"):
            return self._named(name, task, arguments)
        if name == "write" and first == TELL_DESCRIPTOR:
            return Event(kind="tell", data=_memory(task, second, third))
        path = str(Path(f"/proc/{task}/fd/{first}").readlink()) if first < DESCRIPTORS_MAX else ""
        if not self._ours(path):
            return None
        if name in ("read", "pread"):
            return Event(kind="read", path=path)
        if name == "fsync":
            return Event(kind="sync", path=path)
        if name == "ftruncate":
            return Event(kind="truncate", path=path, offset=second)
        offset = fourth if name == "pwrite" else _position(task, first)
        return Event(kind="write", path=path, offset=offset, data=_memory(task, second, third))

    def _named(self, name: str, task: int, arguments: list[int]) -> Event | None:
        places = {"rename": (0, 1), "renameat": (1, 3), "unlink": (0,), "unlinkat": (1,), "openat": (1,)}[name]
        paths = [os.path.normpath(_text(task, arguments[place])) for place in places]
        if not self._ours(paths[0]):
            return None
        if name.startswith("rename"):
            return Event(kind="rename", path=paths[0], other=paths[1])
        if name.startswith("unlink"):
            return Event(kind="unlink", path=paths[0])
        flags = arguments[2]
        makes = flags & os.O_CREAT and (flags & os.O_TRUNC or not os.path.lexists(paths[0]))
        return Event(kind="make" if makes else "open", path=paths[0])

    def _ours(self, path: str) -> bool:
        return path == self._folder or path.startswith(self._folder + "/")


def _memory(task: int, address: int, count: int) -> bytes:
    with Path(f"/proc/{task}/mem").open("rb", buffering=0) as file:
        file.seek(address)
        data = file.read(count)
    return data if data is not None else b""


def _text(task: int, address: int) -> str:
    page = os.sysconf("SC_PAGE_SIZE")
    data = _memory(task, address, page - address % page)            # what lies behind the page may not be there
    if b"\0" not in data:
        data += _memory(task, address + len(data), PATH_BYTES_MAX)
    return os.fsdecode(data.partition(b"\0")[0])


def _position(task: int, descriptor: int) -> int:
    with Path(f"/proc/{task}/fdinfo/{descriptor}").open(encoding="ascii") as file:
        return int(file.readline().split()[1])
