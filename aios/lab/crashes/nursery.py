"""The campaign's side of the nursery: one victim after another, killed at a moment of one's choice or watched."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from aios.lab.crashes.syscalls import Decide, Event, Watcher
from aios.lab.crashes.victim import Order

SECONDS_MAX: Final = 60.0             # of a victim under watch, and until one is busy
READ_BYTES: Final = 1 << 16
ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


class Nursery:
    """Forks victims; at most one lives at a time."""

    def __init__(self, scratch: Path) -> None:
        self._errors: IO[bytes] = (scratch / "victims-errors").open("w+b")
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(SECONDS_MAX)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "aios.lab.crashes.victim", str(theirs.fileno())], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._errors, pass_fds=[theirs.fileno()], env={**os.environ, **ENVIRONMENT},
            bufsize=0)
        theirs.close()
        self._rest = b""

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._channel.close()
        self._errors.close()

    def killed(self, order: Order, lines: int, seconds: float) -> tuple[list[str], int]:
        """Kill a victim so long after it told so many lines; all that it told, and its exit status: -9 if it hit."""
        told, pid = list[str](), 0
        self._order(order)
        for line in self._lines():
            if line.startswith("pid "):
                pid = int(line.split()[1])
            else:
                told.append(line)
            if (pid and len(told) >= lines) or line.startswith("dead "):
                break
        if not told[-1].startswith("dead "):
            time.sleep(seconds)
            os.kill(pid, signal.SIGKILL)
            for line in self._lines():
                told.append(line)
                if line.startswith("dead "):
                    break
        return told[:-1], int(told[-1].split()[1])

    def watched(self, order: Order, see: Decide) -> int:
        """Let a victim come to its end while `see` answers its calls; its exit status."""
        self._order(msgspec.structs.replace(order, watch=True))
        try:
            Watcher(self._channel, order.folder).watch(see, SECONDS_MAX)
        except TimeoutError:
            self._kill()
        return self._end()

    def finished(self, order: Order) -> tuple[list[str], int]:
        """Let a victim come to its end by itself; what it told, and its exit status."""
        self._order(order)
        told = list[str]()
        for line in self._lines():
            if line.startswith("dead "):
                return told, int(line.split()[1])
            if not line.startswith("pid "):
                told.append(line)
        raise AssertionError("unreachable: the lines end with an error")

    def last_words(self) -> str:
        """The end of what victims wrote to their standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 2000))
        return self._errors.read().decode(errors="replace").strip()

    def _order(self, order: Order) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")

    def _end(self) -> int:
        for line in self._lines():
            if line.startswith("dead "):
                return int(line.split()[1])
        raise AssertionError("unreachable: the lines end with an error")

    def _kill(self) -> None:
        for line in self._lines():
            if line.startswith("pid "):
                os.kill(int(line.split()[1]), signal.SIGKILL)
                return

    def _lines(self) -> Iterator[str]:
        """Whole lines as they come; TimeoutError where none comes, ChildProcessError where the nursery is gone."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                yield line.decode()
            if not select.select([pipe], [], [], SECONDS_MAX)[0]:
                raise TimeoutError(f"nothing came from the victim for {SECONDS_MAX:.0f} s")
            piece = os.read(pipe, READ_BYTES)
            if not piece:
                raise ChildProcessError(f"the nursery ended: {self.last_words()}")
            self._rest += piece


def told(event: Event) -> list[str]:
    """The lines of what a victim told under watch."""
    return event.data.decode().splitlines()
