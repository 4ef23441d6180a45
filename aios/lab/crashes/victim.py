"""A writer that is busy until it is killed, and the nursery that forks one after another without starting Python anew.

    python -m aios.lab.crashes.victim CHANNEL

Each line of standard input is an order (JSON). The nursery answers `pid N`, then lets the victim tell what it begins
and what the store acknowledges, and writes `dead STATUS` behind it. CHANNEL is the descriptor of a socket: over it
goes the right to watch the victim's system calls, where the order asks for that.
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec

from aios.errors import AiosError, MemoryStopped
from aios.lab.crashes.account import DIM, memory_of, vector_of
from aios.lab.crashes.syscalls import watch_me
from aios.memory.vector_memory import ArrowStorage
from aios.security.sealing import Encrypts

LIVE_MAX: Final = 120                 # memories; then half of them are forgotten
GROUP_MAX: Final = 9
STOPS_MAX: Final = 20                 # of one store: a victim that always stops proves nothing more
DESCRIPTORS: Final = Path("/proc/self/fd")
_DIE_WITH_PARENT: Final = 1           # PR_SET_PDEATHSIG


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a victim does."""

    folder: str
    seed: int
    encrypts: Encrypts = "texts"
    lanes: int = 1
    operations: int = 0               # 0: until it is killed
    watch: bool = False
    limit: Literal["", "descriptors", "bytes"] = ""      # lowered for the middle third of the operations


class Victim:
    """Works on one store and tells about it."""

    def __init__(self, order: Order) -> None:
        self._order, self._lock = order, threading.Lock()
        self._stops, self._taken = 0, list[int]()
        self._store = self._open()
        self._live = self._store.select()

    def _open(self) -> ArrowStorage:
        return ArrowStorage.open(self._order.folder, DIM, encrypts=self._order.encrypts)

    def work(self, lane: int) -> None:
        """Do one thing after another."""
        rng = random.Random(self._order.seed * 64 + lane)
        done = 0
        while self._order.operations == 0 or done < self._order.operations:
            self._limit(done)
            verb, words, call = self._choose(rng)
            tell("begin", lane, verb, *words)
            try:
                tell("end", lane, *call())
            except AiosError as error:
                tell("fail", lane, error.code)
                if isinstance(error, MemoryStopped):
                    self._begin_anew()
            done += 1
        self._limit(self._order.operations)

    def close(self) -> None:
        """The end of a victim that was not killed."""
        self._store.close()

    def _choose(self, rng: random.Random) -> tuple[str, list[object], Callable[[], list[int]]]:
        turn = rng.random()
        with self._lock:
            crowded = len(self._live) > LIVE_MAX
            if crowded or (turn < 0.2 and len(self._live) > 5):
                leaving = [self._live.pop(rng.randrange(len(self._live)))
                           for _ in range(LIVE_MAX // 2 if crowded else rng.randint(1, 3))]
                return "forget", list(leaving), lambda: self._store.forget(leaving)
        if turn < 0.28:
            return "flush", [], self._flush
        if turn < 0.34:
            return "compact", [], self._compact
        if turn < 0.38 and self._order.lanes == 1:
            return "reopen", [], self._reopen
        if turn < 0.46:
            return "recall", [], lambda: self._recall(rng)
        tokens = [f"{rng.getrandbits(60):015x}" for _ in range(1 if turn < 0.7 else rng.randint(2, GROUP_MAX))]
        return "keep", list(tokens), lambda: self._keep(tokens)

    def _keep(self, tokens: list[str]) -> list[int]:
        ids = self._store.remember_many([memory_of(token) for token in tokens])
        with self._lock:
            self._live += ids
        return ids

    def _recall(self, rng: random.Random) -> list[int]:
        self._store.recall(vector_of(f"{rng.getrandbits(60):015x}"), k=3)
        return []

    def _flush(self) -> list[int]:
        self._store.flush()
        return []

    def _compact(self) -> list[int]:
        self._store.compact()
        return []

    def _reopen(self) -> list[int]:
        try:
            self._store.close()
        finally:
            self._begin_anew()
        return []

    def _begin_anew(self) -> None:
        """Open the store again, twice if need be: what made it stop may be over."""
        self._stops += 1
        for attempt in range(2):
            with suppress(AiosError):           # the index is not saved; the files are let go of
                self._store.close()
            try:
                self._store = self._open()
                self._live = self._store.select()
                break
            except AiosError:
                if attempt == 1 or self._stops > STOPS_MAX:
                    os._exit(0)                 # a clear refusal

    def _limit(self, done: int) -> None:
        """Take away descriptors, or the right to large files, for a while."""
        if not self._order.limit:
            return
        third = self._order.operations // 3
        what = resource.RLIMIT_NOFILE if self._order.limit == "descriptors" else resource.RLIMIT_FSIZE
        _, hard = resource.getrlimit(what)
        if done == third and self._order.limit == "bytes":
            largest = max(path.stat().st_size for path in Path(self._order.folder).iterdir())
            resource.setrlimit(what, (largest + 700, hard))
        elif done == third:
            resource.setrlimit(what, (max(int(link.name) for link in DESCRIPTORS.iterdir()) + 1, hard))
            with suppress(OSError):
                while True:
                    self._taken.append(os.dup(0))
        elif done >= 2 * third:
            resource.setrlimit(what, (hard, hard))
            while self._taken:
                os.close(self._taken.pop())


def tell(*words: object) -> None:
    """One line, whole or not at all: it is shorter than a pipe's unit."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def suffer(order: Order, channel: socket.socket) -> None:
    """The life of a victim; does not return."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)          # a file that may not grow is an error, not the end
        if order.watch:
            watch_me(channel)
        try:
            victim = Victim(order)
        except AiosError as error:
            tell("refused", error.code)
            os._exit(0)
        lanes = [threading.Thread(target=_work, args=(victim, lane)) for lane in range(1, order.lanes)]
        for lane in lanes:
            lane.start()
        victim.work(0)
        for lane in lanes:
            lane.join()
        with suppress(AiosError):                              # the saved index is a copy
            victim.close()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _work(victim: Victim, lane: int) -> None:
    """A lane beside the first; what it does not expect ends the process."""
    try:
        victim.work(lane)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main(words: list[str]) -> None:
    """Fork a victim for each order, and tell how it ended."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    channel = socket.socket(fileno=int(words[0]))
    for line in sys.stdin:
        order = msgspec.json.decode(line, type=Order)
        pid = os.fork()
        if pid == 0:
            suffer(order, channel)
        tell("pid", pid)
        _, status = os.waitpid(pid, 0)
        tell("dead", os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(sys.argv[1:])
