"""Disks that refuse: every call of a writer on its files is answered with an error once, and all from some call on.

Survived is what ends in clear errors: no victim dies of it, what was acknowledged is there when the disk works again,
and one refused call does not stop the writer for good.
"""

from __future__ import annotations

import errno
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from aios.lab.crashes.account import Account, recover
from aios.lab.crashes.nursery import Nursery, told
from aios.lab.crashes.syscalls import Event, Kind
from aios.lab.crashes.victim import Order
from aios.security.sealing import Encrypts

OPERATIONS: Final = 15
#: What the kernel may answer, and to which calls.
KINDS: Final[Mapping[str, frozenset[Kind]]] = {
    "ENOSPC": frozenset({"make", "write", "rename"}), "EIO": frozenset({"read", "write", "truncate", "sync", "rename"}),
    "EROFS": frozenset({"make", "rename", "unlink"}), "EMFILE": frozenset({"open", "make"})}
ENCRYPTS: Final[tuple[Encrypts, ...]] = ("texts", "all")
#: Real limits of the process, for the middle third of its life.
LIMITS: Final[tuple[Literal["descriptors", "bytes"], ...]] = ("descriptors", "bytes")
LIMITED_CASES: Final = 10


@dataclass(slots=True)
class Faults:
    """Cases of each kind, and those that were not survived."""

    cases: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)     # operations that ended with an error
    failed: Counter[str] = field(default_factory=Counter)
    reasons: list[str] = field(default_factory=list)

    def survived(self, kind: str) -> bool:
        """Whether there were cases, the fault was felt, and nothing went wrong."""
        return self.cases[kind] > 0 and self.refused[kind] > 0 and self.failed[kind] == 0


def suffer_all(most: int | None, seed: int, scratch: Path, progress: Callable[[float], None]) -> Faults:
    """All cases, or `most` of each kind at random."""
    rng, faults = random.Random(seed), Faults()
    with Nursery(scratch) as nursery:
        for part, (kind, calls) in enumerate(KINDS.items()):
            number, encrypts = getattr(errno, kind), rng.choice(ENCRYPTS)
            order = Order(folder=str(scratch / "faults"), seed=rng.getrandbits(40), encrypts=encrypts,
                          operations=OPERATIONS)
            reached = _run(nursery, order, kind, lambda event: False, calls, 0, Faults(), rng)
            cases = [(first, forever) for first in range(reached) for forever in (False, True)]
            some = cases if most is None else rng.sample(cases, min(most, len(cases)))
            for index, (first, forever) in enumerate(some):
                progress((part + index / len(some)) / (len(KINDS) + 1))
                _run(nursery, order, kind, _From(first, forever), calls, number, faults, rng)
        for case in range(2 if most is not None else LIMITED_CASES):
            for limit in LIMITS:
                progress((len(KINDS) + case / LIMITED_CASES) / (len(KINDS) + 1))
                _limited(nursery, limit, faults, rng, scratch)
    return faults


@dataclass(slots=True)
class _From:
    """True for the call number `first` of those that count, or for all from it on."""

    first: int
    forever: bool
    seen: int = 0

    def __call__(self, event: Event) -> bool:
        self.seen += 1
        return self.seen > self.first if self.forever else self.seen == self.first + 1


def _run(nursery: Nursery, order: Order, kind: str, hit: Callable[[Event], bool], calls: frozenset[Kind], number: int,
         faults: Faults, rng: random.Random) -> int:
    """One victim from an empty folder to its end; how many of the calls there were."""
    folder, account, reached = Path(order.folder), Account(), 0
    folder.mkdir(mode=0o700)

    def see(event: Event) -> int:
        nonlocal reached
        if event.kind == "tell":
            for line in told(event):
                account.hear(line)
        elif event.kind in calls and event.path != order.folder + "/lock":
            reached += 1
            return number if hit(event) else 0
        return 0

    status = nursery.watched(order, see)
    _judge(f"{kind}, {hit}", kind, status, account, folder, faults, rng, nursery)
    return reached


def _limited(nursery: Nursery, limit: Literal["descriptors", "bytes"], faults: Faults, rng: random.Random,
             scratch: Path) -> None:
    """A victim under a real limit; it counts with the fault that it is like."""
    kind, folder, account = {"descriptors": "EMFILE", "bytes": "ENOSPC"}[limit], scratch / "limited", Account()
    folder.mkdir(mode=0o700)
    order = Order(folder=str(folder), seed=rng.getrandbits(40), operations=4 * OPERATIONS, limit=limit)
    lines, status = nursery.finished(order)
    for line in lines:
        account.hear(line)
    _judge(f"limit of {limit}", kind, status, account, folder, faults, rng, nursery)


def _judge(label: str, kind: str, status: int, account: Account, folder: Path, faults: Faults, rng: random.Random,
           nursery: Nursery) -> None:
    wrong = [] if status == 0 else [f"a victim ended with {status}: {nursery.last_words()[-300:]}"]
    faults.refused[kind] += len(account.errors)
    after = recover(folder, rng, write_on=True)
    after.findings.add(account.settle(after))
    wrong += after.findings.lost + after.findings.duplicated + after.findings.corrupted
    faults.cases[kind] += 1
    if wrong:
        faults.failed[kind] += 1
        faults.reasons.append(f"{label}: {'; '.join(wrong[:3])}")
    shutil.rmtree(folder)
