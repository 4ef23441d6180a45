"""One process of the parsers campaign: takes every STEP-th case, under a limit on memory, and keeps a journal.

    python -m aios.lab.parsers.worker FOLDER SEED COUNT START STEP      part of a campaign
    python -m aios.lab.parsers.worker FOLDER SEED COUNT NUMBER          one case again, with its traceback

The number of a case is written down before its input is made, in memory that outlives the process: whatever kills
it is named by seed, count and number.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import random
import resource
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

ADDRESS_SPACE_MB = 256      # above that of the warm process: 64 threads' stacks of 2 MB, and twice that to work
RESIDENT_MB = 32            # what one input of a few kB may add to the largest resident size so far
FLIPS_SHARE = 0.4           # of all cases go to single flipped bits, as long as there are bits
WARM_CASES = 400            # until then, what is loaded or made once is loaded and made; memory is limited after it
HALF = 0.5                  # of a worker's cases; memory is compared from here to the end
REASON_CHARS_MAX = 400


class Undetected(Exception):
    """Damage passed for the real thing, or was blamed on something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Something that reads bytes from outside: `attack` makes an input from a generator and hands it over.

    It returns when the input was accepted, raises one of `refusals` when it was refused, and Undetected when the
    answer is wrong; everything else is a defect. `share` weighs it against the others.
    """

    name: str
    share: float
    attack: Callable[[random.Random], None]
    refusals: tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """Every bit of every valid weight file: `attack(bit)` flips one and holds the answer against the file."""

    bits: int
    attack: Callable[[int], None]
    refusals: tuple[type[BaseException], ...]


@dataclass(slots=True)
class Counts:
    """What a worker has seen; eight bytes each in the journal."""

    number: int = 0          # the case in hand
    done: int = 0
    panics: int = 0
    over_cap: int = 0
    undetected: int = 0
    flips: int = 0
    rss_half_kb: int = 0
    rss_end_kb: int = 0


class Journal:
    """Counts in a file mapped into memory: written at the price of a store, read by the parent at any time."""

    _LAYOUT: Final = struct.Struct(f"<{len(fields(Counts))}Q")

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(self._LAYOUT.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), self._LAYOUT.size)

    def read(self) -> Counts:
        """What was written last."""
        return Counts(*self._LAYOUT.unpack_from(self._map))

    def write(self, counts: Counts) -> None:
        """Replace it."""
        self._LAYOUT.pack_into(self._map, 0, *(getattr(counts, one.name) for one in fields(counts)))

    def close(self) -> None:
        """Unmap it; the file stays."""
        self._map.close()


class Cases:
    """The numbered cases of one seed: the same number is the same input in every process."""

    def __init__(self, targets: Sequence[Target], flips: Flips, seed: int, count: int) -> None:
        self._targets, self._flips, self._seed = targets, flips, seed
        self._shares = [target.share for target in targets]
        self._count, self.flips = count, min(flips.bits, int(count * FLIPS_SHARE))

    def flip(self, number: int) -> int | None:
        """Which of the flips this case is, if it is one; they are spread evenly over all cases."""
        turn = number * self.flips // self._count
        return turn if (number + 1) * self.flips // self._count > turn else None

    def case(self, number: int) -> tuple[str, Callable[[], None], tuple[type[BaseException], ...]]:
        """Its name, the attack, and what counts as a refusal."""
        if (turn := self.flip(number)) is not None:
            bit = turn * self._flips.bits // self.flips            # all of them, or evenly spread ones
            return f"bit {bit}", lambda: self._flips.attack(bit), self._flips.refusals
        rng = random.Random(f"{self._seed}:{number}")
        target = rng.choices(self._targets, self._shares)[0]
        return target.name, lambda: target.attack(rng), target.refusals


def judge(attack: Callable[[], None], refusals: tuple[type[BaseException], ...], *,
          warm: bool = True) -> tuple[str, str] | None:
    """Which counter an attack adds to and why; None when it was answered as it should be."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        attack()
    except Undetected as wrong:
        return "undetected", str(wrong)
    except MemoryError as error:
        return "over_cap", f"MemoryError {error}"
    except refusals:
        pass
    except KeyboardInterrupt:
        raise
    except BaseException as error:      # PanicException is no Exception
        return "panics", f"{type(error).__name__}: {error}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return ("over_cap", f"{grown} kB more are resident") if warm and grown > RESIDENT_MB << 10 else None


def work(cases: Cases, numbers: range, journal: Journal, complain: Callable[[str], None]) -> None:
    """Carry out these cases and count; the journal goes on from what it holds."""
    counts = journal.read()
    half = numbers[int(len(numbers) * HALF)] if len(numbers) else -1
    for index, number in enumerate(numbers):
        if index == WARM_CASES:
            limit_memory()
        counts.number = number
        journal.write(counts)
        name, attack, refusals = cases.case(number)
        if (found := judge(attack, refusals, warm=index > WARM_CASES)) is not None:
            setattr(counts, found[0], getattr(counts, found[0]) + 1)
            complain(f"{found[0]}: case {number}, {name}: {found[1]}"[:REASON_CHARS_MAX])
        counts.done += 1
        counts.flips += cases.flip(number) is not None
        if number == half:
            counts.rss_half_kb = _resident_kb()
    counts.rss_end_kb = _resident_kb()
    journal.write(counts)
    journal.close()


def limit_memory() -> None:
    """From here on this process may map `ADDRESS_SPACE_MB` more than it has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + (ADDRESS_SPACE_MB << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _resident_kb() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() >> 10


def main(words: Sequence[str]) -> None:
    """Run the part of a campaign, or the one case, that the command line names."""
    from aios.lab.parsers.targets import open_targets

    folder, (seed, count, start, *step) = Path(words[0]), map(int, words[1:])
    faulthandler.enable()
    scratch = folder / f"worker-{start}-{os.getpid()}"
    scratch.mkdir(mode=0o700)
    os.chdir(scratch)
    targets, flips = open_targets(scratch)
    cases = Cases(targets, flips, seed, count)
    if not step:
        name, attack, _ = cases.case(start)
        sys.stdout.write(f"case {start} is {name}\n")
        attack()
        return
    lane = start % step[0]
    with (folder / f"reasons-{lane}").open("a", encoding="utf-8", errors="replace") as reasons:
        def complain(reason: str) -> None:
            reasons.write(reason.replace("\n", " ") + "\n")
            reasons.flush()

        work(cases, range(start, count, step[0]), Journal(folder / f"journal-{lane}"), complain)


if __name__ == "__main__":
    main(sys.argv[1:])
