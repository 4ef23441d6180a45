"""What a store acknowledged, written down outside of the process under test, and whether the store still knows it.

A victim tells what it begins and what it was told (`begin LANE VERB ...`, `end LANE ...`, `fail LANE CODE`). What was
begun and not ended when it died may have happened or not; everything else must be as it was acknowledged.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from aios.errors import AiosError
from aios.memory.record import Floats, NewMemory
from aios.memory.vector_memory import ArrowStorage

DIM: Final = 200                      # a vector of 800 bytes crosses sectors, and sometimes a page
SEARCHED: Final = 12                  # memories looked for by their vectors after a crash
IDS_MAX: Final = 10_000               # that a store gives before it is replaced
SLOT_BYTES: Final = 64                # of `keys`
KEY_BYTES: Final = 60


def memory_of(token: str) -> NewMemory:
    """The one memory of a token: whatever is found of it can be compared."""
    return NewMemory(text=f"fact {token}", metadata={"token": token}, vector=vector_of(token),
                     namespace=f"room {token[0]}", tags=(token[:2],), source=f"book {token}", provenance="victim")


def vector_of(token: str) -> Floats:
    """A direction of its own for each token."""
    row: Floats = np.random.default_rng(int(token, 16)).standard_normal(DIM, dtype=np.float32)
    row /= np.linalg.norm(row)
    return row


@dataclass(slots=True)
class Findings:
    """What was wrong; empty where nothing was."""

    lost: list[str] = field(default_factory=list)          # acknowledged and not there, or forgotten and back
    duplicated: list[str] = field(default_factory=list)
    corrupted: list[str] = field(default_factory=list)     # damaged, or never asked for, or a store that does not open

    def add(self, other: Findings) -> None:
        """Take over what another found."""
        self.lost += other.lost
        self.duplicated += other.duplicated
        self.corrupted += other.corrupted

    def __bool__(self) -> bool:
        return bool(self.lost or self.duplicated or self.corrupted)


@dataclass(slots=True)
class Account:
    """Ids and tokens that were acknowledged, and what is in doubt."""

    kept: dict[int, str] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    open: dict[str, tuple[str, list[str]]] = field(default_factory=dict)       # lane -> verb and its words
    doubtful: list[tuple[str, list[str]]] = field(default_factory=list)        # ended with an error
    acknowledged: int = 0
    errors: list[str] = field(default_factory=list)

    def hear(self, line: str) -> None:
        """Take in what the victim told."""
        word, lane, *rest = line.split()
        if word == "refused":
            self.errors.append(lane)
        elif word == "begin":
            self.open[lane] = (rest[0], rest[1:])
        elif word == "fail":
            self.doubtful.append(self.open.pop(lane))
            self.errors.append(rest[0])
        elif word == "end":
            verb, words = self.open.pop(lane)
            self.acknowledged += 1
            if verb == "keep":
                self.kept |= dict(zip(map(int, rest), words, strict=True))
            elif verb == "forget":
                for number in map(int, rest):
                    self.kept.pop(number, None)
                    self.gone.add(number)

    def copy(self) -> Account:
        """Another one that goes its own way."""
        return copy.deepcopy(self)

    def settle(self, after: Recovery) -> Findings:
        """Compare with what a store holds, and take over what was in doubt."""
        found, forgotten = after.found, after.forgotten
        doubt = [*self.open.values(), *self.doubtful]
        asked = {token for verb, words in doubt if verb == "keep" for token in words}
        leaving = {int(number) for verb, words in doubt if verb == "forget" for number in words}
        findings = Findings()
        for number, token in self.kept.items():
            if found.get(number, token) != token:
                findings.corrupted.append(f"memory {number} is another one")
            if number not in found and number not in leaving:
                findings.lost.append(f"memory {number} is gone")
        findings.lost += [f"forgotten memory {number} is back" for number in self.gone & found.keys()]
        findings.lost += [f"forgotten memory {number} is unknown" for number in self.gone - forgotten]
        findings.corrupted += [f"memory {number} was never asked for" for number, token in found.items()
                               if number not in self.kept and token not in asked and number not in self.gone]
        if len(set(found.values())) != len(found):
            findings.duplicated.append("one memory has two ids")
        self.gone |= {number for number in self.kept if number not in found}
        self.kept = found | after.written
        self.open.clear()
        self.doubtful.clear()
        return findings


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """A store after a crash: what it holds, what is wrong with it, and how long the first answer took."""

    found: dict[int, str]
    forgotten: set[int]
    written: dict[int, str]            # after the crash
    findings: Findings
    seconds: float


def recover(folder: Path, rng: random.Random, *, write_on: bool = False) -> Recovery:
    """Open the store as its writer, as the first process after a crash does, and look at everything."""
    findings, found, forgotten, written = Findings(), dict[int, str](), set[int](), dict[int, str]()
    began, seconds = time.perf_counter(), 0.0
    try:
        with ArrowStorage.open(folder, DIM) as store:
            store.recall(vector_of("1"), k=1)
            seconds = time.perf_counter() - began
            found = _read(store, store.select(), findings)
            forgotten = {number for number in range(1, IDS_MAX) if store.was_forgotten(number)}
            if store.verify() != len(found):
                findings.corrupted.append("verify counts other memories")
            _search(store, rng.sample(sorted(found.items()), min(SEARCHED, len(found))), findings)
        findings.lost += [f"the key of forgotten memory {number} is there" for number in _keys(folder) & forgotten]
        if write_on:
            written = _write_on(folder, f"{rng.getrandbits(60):015x}", findings)
    except AiosError as error:
        findings.corrupted.append(f"the store does not open: {error.message}")
    return Recovery(found=found, forgotten=forgotten, written=written, findings=findings, seconds=seconds)


def _read(store: ArrowStorage, ids: Iterable[int], findings: Findings) -> dict[int, str]:
    """Id -> token of all memories, each compared with what its token says."""
    found = {}
    for number in ids:
        memory = store.read(number)
        if memory is None:
            findings.corrupted.append(f"memory {number} is listed and not there")
            continue
        token = found[number] = memory.text.removeprefix("fact ")
        wanted = memory_of(token)
        if (memory.metadata, memory.namespace, memory.tags, memory.source, memory.provenance) != (
                wanted.metadata, wanted.namespace, tuple(wanted.tags), wanted.source, wanted.provenance):
            findings.corrupted.append(f"the parts of memory {number} do not belong together")
    return found


def _keys(folder: Path) -> set[int]:
    """The ids whose wrapped keys are there."""
    data = (folder / "keys").read_bytes()
    return {number for number in range(1, len(data) // SLOT_BYTES)
            if any(data[number * SLOT_BYTES:number * SLOT_BYTES + KEY_BYTES])}


def _search(store: ArrowStorage, some: Iterable[tuple[int, str]], findings: Findings) -> None:
    """Each is found by its vector."""
    for number, token in some:
        best = store.recall(vector_of(token), k=1)
        if [one.id for one in best] != [number] or abs((best[0].score or 0) - 1) > 1e-4:
            findings.corrupted.append(f"memory {number} is not found by its vector")


def _write_on(folder: Path, token: str, findings: Findings) -> dict[int, str]:
    """The store takes another memory and has it when it is opened once more."""
    with ArrowStorage.open(folder, DIM) as store:
        number = store.remember_many([memory_of(token)])[0]
    with ArrowStorage.open(folder, DIM) as store:
        memory = store.read(number)
        if memory is None or memory.text != f"fact {token}":
            findings.lost.append(f"memory {number}, written after the crash, is gone")
    return {number: token}
