"""`aios eval campaign parsers`: a million hostile inputs for everything that reads bytes from outside.

A case is one input made from (seed, number) and handed to one reader: a weight file opened and verified in full, the
directory and tensors of a foreign file, a packed matrix, one call of one entry of the native extension with wrong
arguments, a stream of frames, a model's configuration, tokenizer or chat template. Up to two fifths of the cases
flip one bit each of small valid weight files, all bits if the campaign is large enough.

    panics                 a Rust panic, a dead or hanging process, or an error that is not the reader's own
    over_cap_allocations   an allocation that fails under the stated limit, or memory that one small input made resident
    undetected_bit_flips   damage to a weight file that neither was refused, by name, nor left every tensor as it was
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from aios.lab.parsers.worker import ADDRESS_SPACE_MB, RESIDENT_MB, Counts, Journal
from aios.lab.report import LabOptions, Report, Row

INPUTS = 1_050_000
INPUTS_QUICK = 40_000
LANES_MAX = 8
STALL_SECONDS_MAX = 60.0       # a case takes a millisecond; the machine is busy, and a worker has to start
DEATHS_MAX = 40                # of one lane; a reader that dies this often needs no further proof
POLL_SECONDS = 0.2
REASONS_MAX = 6                # described in the report
MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108 - a private folder in memory, if the system has one
ENVIRONMENT: Final[Mapping[str, str]] = {
    "MALLOC_ARENA_MAX": "1",   # address space that allocators reserve would hide what readers ask for
    "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1"}
OUT_OF_MEMORY: Final = ("memory allocation of", "MemoryError", "bad_alloc")


def worker(words: list[str]) -> list[str]:
    """The command of a worker process."""
    return [sys.executable, "-m", "aios.lab.parsers.worker", *words]


@dataclass(slots=True)
class Lane:
    """The cases LANE, LANE + LANES, ...: one worker process after another until all are done."""

    folder: Path
    seed: int
    count: int
    number: int
    lanes: int
    journal: Journal = field(init=False)
    process: subprocess.Popen[bytes] | None = None
    errors: IO[bytes] | None = None
    moved: tuple[int, float] = (0, 0.0)      # cases done, and when that was new
    deaths: list[tuple[str, str]] = field(default_factory=list)      # (counter, reason)
    over: bool = False

    def __post_init__(self) -> None:
        self.journal = Journal(self.folder / f"journal-{self.number}")
        self.journal.write(Counts(number=self.number))

    def begin(self) -> None:
        """Start a worker at the case in the journal."""
        words = [str(self.folder), str(self.seed), str(self.count), str(self.journal.read().number), str(self.lanes)]
        self.errors = (self.folder / f"errors-{self.number}").open("w+b")
        self.process = subprocess.Popen(worker(words), env={**os.environ, **ENVIRONMENT}, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=self.errors)
        self.moved = (self.journal.read().done, time.monotonic())

    def look(self) -> None:
        """Find out whether the worker is done, dead or stuck, and go on behind the case that ended it."""
        assert self.process is not None
        status, counts = self.process.poll(), self.journal.read()
        if counts.done != self.moved[0]:
            self.moved = (counts.done, time.monotonic())
        if status == 0:
            self._end()
            self.over = True
        elif status is not None or time.monotonic() - self.moved[1] > STALL_SECONDS_MAX:
            self._bury(status, counts)

    def _bury(self, status: int | None, counts: Counts) -> None:
        last = self._end()
        counter = "over_cap" if any(sign in last for sign in OUT_OF_MEMORY) else "panics"
        how = "hangs" if status is None else f"ended the process with status {status}"
        self.deaths.append((counter, f"{counter}: case {counts.number} {how}: {last[-300:]}"))
        counts.done += 1
        counts.number += self.lanes
        self.journal.write(counts)
        self.over = counts.number >= self.count or len(self.deaths) >= DEATHS_MAX
        if not self.over:
            self.begin()

    def _end(self) -> str:
        """The worker is gone after this; its last words."""
        assert self.process is not None and self.errors is not None
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.errors.seek(0)
        words = self.errors.read().decode(errors="replace")
        self.errors.close()
        return words

    def close(self) -> None:
        """Whatever happened: no process is left."""
        if self.process is not None and self.process.poll() is None:
            self._end()
        self.journal.close()

    def reasons(self) -> list[str]:
        """Everything found, in order."""
        told: list[str] = []
        with suppress(FileNotFoundError):
            told = (self.folder / f"reasons-{self.number}").read_text(encoding="utf-8").splitlines()
        return told + [reason for _, reason in self.deaths]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What all lanes counted together."""

    inputs: int
    flips: int
    panics: int
    over_cap: int
    undetected: int
    growth_mb: float
    seconds: float
    reasons: tuple[str, ...]


def campaign(count: int, seed: int, progress: Callable[[str, float], None], *, lanes: int | None = None) -> Outcome:
    """Carry out `count` cases of `seed` on as many processes as there are processors."""
    lanes = lanes or min(len(os.sched_getaffinity(0)), LANES_MAX)
    started = time.monotonic()
    with _folder() as folder, _lanes(folder, seed, count, lanes) as running:
        while any(not lane.over for lane in running):
            time.sleep(POLL_SECONDS)
            for lane in running:
                if not lane.over:
                    lane.look()
            progress("attacking", sum(lane.journal.read().done for lane in running) / count)
        return _outcome(running, time.monotonic() - started)


@contextmanager
def _folder() -> Iterator[Path]:
    memory = MEMORY_FOLDER if os.access(MEMORY_FOLDER, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="aios-parsers-", dir=memory, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def _lanes(folder: Path, seed: int, count: int, lanes: int) -> Iterator[list[Lane]]:
    running: list[Lane] = []
    try:
        for number in range(lanes):
            running.append(Lane(folder, seed, count, number, lanes))
            running[-1].begin()
        yield running
    finally:
        for lane in running:
            lane.close()


def _outcome(lanes: list[Lane], seconds: float) -> Outcome:
    counts = [lane.journal.read() for lane in lanes]
    deaths = [counter for lane in lanes for counter, _ in lane.deaths]
    grown = [one.rss_end_kb - one.rss_half_kb for one in counts if one.rss_half_kb]
    return Outcome(
        inputs=sum(one.done for one in counts), flips=sum(one.flips for one in counts),
        panics=sum(one.panics for one in counts) + deaths.count("panics"),
        over_cap=sum(one.over_cap for one in counts) + deaths.count("over_cap"),
        undetected=sum(one.undetected for one in counts), growth_mb=max(grown, default=0) / 1024, seconds=seconds,
        reasons=tuple(reason for lane in lanes for reason in lane.reasons()))


def run(options: LabOptions) -> Report:
    """The campaign; a full run takes about ten minutes on two processors, a quick one half a minute."""
    outcome = campaign(INPUTS_QUICK if options.quick else INPUTS, options.seed, options.progress)
    return Report.of("parsers", rows(outcome, quick=options.quick), options)


def rows(outcome: Outcome, *, quick: bool) -> list[Row]:
    """The verdicts; what was found is told with the row it counts in."""
    def told(counter: str) -> str | None:
        return "; ".join([reason for reason in outcome.reasons if reason.startswith(counter)][:REASONS_MAX]) or None

    cap = f"above {ADDRESS_SPACE_MB} MB of address space, or {RESIDENT_MB} MB resident, for one input"
    return [
        Row(metric="inputs", value=outcome.inputs, unit="inputs", better="higher", must=None if quick else 1_000_000,
            n=outcome.inputs),
        Row(metric="panics", value=outcome.panics, unit="inputs", better="lower", must=0, n=outcome.inputs,
            reason=told("panics")),
        Row(metric="over_cap_allocations", value=outcome.over_cap, unit="inputs", better="lower", must=0,
            n=outcome.inputs, reason=told("over_cap") or cap),
        Row(metric="undetected_bit_flips", value=outcome.undetected, unit="inputs", better="lower", must=0,
            n=outcome.flips, reason=told("undetected")),
        Row(metric="growth_mb", value=round(outcome.growth_mb, 2), unit="MB", better="lower",
            n=outcome.inputs, reason="of the largest worker, over the second half"),
        Row(metric="inputs_per_s", value=round(outcome.inputs / outcome.seconds, 1), unit="1/s", better="higher",
            n=outcome.inputs),
    ]
