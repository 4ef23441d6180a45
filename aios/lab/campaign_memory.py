"""`aios eval campaign memory`: kill -9, power failures, refusing disks and turned bits against the store of memories.

    kills             kill -9 of a busy writer of one or three threads at a random moment. What it was told is read
                      outside of it; then the store is opened, every memory is compared and some are looked for
    torn_prefixes     power failures: the system calls of the writer that ships are written down as they are made; a
                      disk that lost power holds what was synced, and of the rest any pages, sizes and names (`disk`)
    undetected_flips  one bit of any file is turned: everything is as it was, or the store refuses
    faults_survived   full disk (ENOSPC), failing disk (EIO), read-only file system (EROFS), full descriptor table
                      (EMFILE): every call once answered with the error, and all calls from one on. The victim is the
                      program that ships; the answer comes in the kernel's place. RLIMIT_NOFILE and RLIMIT_FSIZE besides

Half of the stores are encrypted as a whole. Every store goes on living after its crash, so that crashes hit what other
crashes left. An unacknowledged group may be kept in part; what was acknowledged may not.
"""

from __future__ import annotations

import random
import shutil
import signal
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from aios.lab.crashes import flips, syscalls
from aios.lab.crashes.account import DIM, Account, Findings, memory_of, recover
from aios.lab.crashes.disk import Disk
from aios.lab.crashes.faults import KINDS, Faults, suffer_all
from aios.lab.crashes.nursery import Nursery, told
from aios.lab.crashes.syscalls import Event
from aios.lab.crashes.victim import Order
from aios.lab.report import LabOptions, Report, Row
from aios.memory.vector_memory import ArrowStorage
from aios.security.sealing import Encrypts

KILLS, KILLS_QUICK = 5000, 40
TORN, TORN_QUICK = 3000, 100
FLIPS, FLIPS_QUICK = 10_000, 300
FAULTS_QUICK: Final = 8                # cases of each kind; all of them in full
LIVES_MAX: Final = 40                  # crashes of one store, then a new one
LINES_MAX: Final = 16                  # a writer tells before it is killed: two for each operation
DELAY_S_MAX: Final = 0.02              # from the last of them to the kill: several syncs
LOG_ROWS, LOG_ROWS_QUICK = 16_000, 2000
LOG_GROUP: Final = 500
OPERATIONS: Final = 25                 # of a victim whose calls are written down
CRASHES_OF_TRACE: Final = 40
REASONS_MAX: Final = 6                 # described in the report
ENCRYPTS: Final[tuple[Encrypts, ...]] = ("texts", "all")

Progress = Callable[[float], None]


@dataclass(slots=True)
class Tally:
    """What a series of crashes came to."""

    count: int = 0
    busy: int = 0                      # in the middle of a call
    acknowledged: int = 0
    findings: Findings = field(default_factory=Findings)
    seconds: list[float] = field(default_factory=list)       # from opening to the first answer
    errors: list[str] = field(default_factory=list)          # of the campaign itself: what should not happen


@dataclass(slots=True)
class Life:
    """A store and what it acknowledged, from one crash to the next."""

    folder: Path
    encrypts: Encrypts
    account: Account = field(default_factory=Account)
    crashes: int = 0


def kills(count: int, seed: int, scratch: Path, progress: Progress) -> Tally:
    """Kill busy writers until `count` kills have hit."""
    rng, tally = random.Random(seed), Tally()
    with Nursery(scratch) as nursery:
        life = _new_life(scratch, tally.count)
        while tally.count < count and len(tally.errors) < REASONS_MAX:
            progress(tally.count / count)
            order = Order(folder=str(life.folder), seed=rng.getrandbits(40), encrypts=life.encrypts,
                          lanes=rng.choice((1, 3)))
            lines, status = nursery.killed(order, rng.randint(1, LINES_MAX), rng.random() * DELAY_S_MAX)
            for line in lines:
                life.account.hear(line)
            if status != -signal.SIGKILL or life.account.errors:
                tally.errors.append(f"errors: a victim ended with {status}: {life.account.errors[:3]} "
                                    f"{nursery.last_words()[-300:]}")
            tally.count += 1
            tally.busy += bool(life.account.open)
            life.crashes += 1
            if _recovered(life, life.folder, rng, tally) or life.crashes == LIVES_MAX:
                shutil.rmtree(life.folder)
                life = _new_life(scratch, tally.count)
    return tally


def torn(count: int, seed: int, scratch: Path, progress: Progress) -> Tally:
    """Look at `count` disks that lost power under a writer."""
    rng, tally = random.Random(seed), Tally()
    with Nursery(scratch) as nursery:
        life = _new_life(scratch, tally.count)
        while tally.count < count and len(tally.errors) < REASONS_MAX:
            progress(tally.count / count)
            disk, events = Disk(life.folder), list[Event]()

            def see(event: Event, events: list[Event] = events) -> int:
                events.append(event)
                return 0

            order = Order(folder=str(life.folder), seed=rng.getrandbits(40), encrypts=life.encrypts,
                          operations=OPERATIONS)
            if (status := nursery.watched(order, see)) != 0:
                tally.errors.append(f"errors: a victim ended with {status}: {nursery.last_words()[-300:]}")
            until = min(count, tally.count + CRASHES_OF_TRACE)
            survivor = _power_failures(life, disk, events, rng, scratch, tally, until)
            shutil.rmtree(life.folder)
            life = survivor if survivor is not None else _new_life(scratch, tally.count)
    return tally


def _power_failures(life: Life, disk: Disk, events: list[Event], rng: random.Random, scratch: Path, tally: Tally,
                    until: int) -> Life | None:
    """Cut a trace at many places; one of the disks lives on."""
    cuts = sorted(rng.randint(0, len(events)) for _ in range(until - tally.count))
    chosen, survivor, at = rng.randrange(len(cuts)), None, 0
    for index, cut in enumerate(cuts):
        disk.follow(events[at:cut])
        for event in events[at:cut]:
            for line in told(event) if event.kind == "tell" else ():
                life.account.hear(line)
        at = cut
        crashed = Life(folder=scratch / f"disk-{tally.count}", encrypts=life.encrypts, account=life.account.copy(),
                       crashes=life.crashes + 1)
        crashed.folder.mkdir(mode=0o700)
        disk.crash(crashed.folder, rng)
        tally.count += 1
        tally.busy += bool(crashed.account.open)
        wrong = _recovered(crashed, crashed.folder, rng, tally, write_on=rng.random() < 0.3)
        if index == chosen and not wrong and crashed.crashes < LIVES_MAX // 4:
            survivor = crashed
        else:
            shutil.rmtree(crashed.folder)
    return survivor


def full_log(rows: int, scratch: Path) -> float:
    """Seconds from opening to the first answer where nothing but the log was written: the longest there is."""
    with ArrowStorage.open(scratch / "full", DIM) as store:
        for first in range(0, rows, LOG_GROUP):
            store.remember_many([memory_of(f"{number:015x}") for number in range(first, min(rows, first + LOG_GROUP))])
        shutil.copytree(scratch / "full", scratch / "full-killed")       # as a kill -9 leaves it
    after = recover(scratch / "full-killed", random.Random(rows))
    return after.seconds


def _new_life(scratch: Path, number: int) -> Life:
    folder = scratch / f"store-{number}"
    folder.mkdir(mode=0o700)
    return Life(folder=folder, encrypts=ENCRYPTS[number // LIVES_MAX % len(ENCRYPTS)])


def _recovered(life: Life, folder: Path, rng: random.Random, tally: Tally, *, write_on: bool = False) -> Findings:
    """Open the store after a crash and compare; what was wrong."""
    after = recover(folder, rng, write_on=write_on)
    findings = after.findings
    if findings.corrupted and not after.found and life.account.kept:
        life.account.kept.clear()                    # it does not open: told once, not for every memory
    else:
        findings.add(life.account.settle(after))
    tally.acknowledged += life.account.acknowledged
    life.account.acknowledged = 0
    tally.seconds.append(after.seconds)
    tally.findings.add(findings)
    return findings


def run(options: LabOptions) -> Report:
    """All parts; a full run takes about twenty minutes on a quiet machine, a quick one less than one."""
    quick, seed = options.quick, options.seed

    def part(label: str, begin: float, share: float) -> Progress:
        return lambda done: options.progress(label, begin + share * done)

    with TemporaryDirectory(prefix="aios-memory-crashes-") as folder:
        scratch = Path(folder)
        killed = kills(KILLS_QUICK if quick else KILLS, seed, scratch, part("killing", 0.0, 0.5))
        recovery_s = full_log(LOG_ROWS_QUICK if quick else LOG_ROWS, scratch)
        reason = syscalls.supported()
        power, faults = Tally(), Faults()
        if reason is None:
            power = torn(TORN_QUICK if quick else TORN, seed + 1, scratch, part("cutting the power", 0.5, 0.25))
            faults = suffer_all(FAULTS_QUICK if quick else None, seed + 2, scratch, part("refusing", 0.75, 0.1))
        turned = flips.turn(FLIPS_QUICK if quick else FLIPS, seed + 3, scratch, part("turning bits", 0.85, 0.15))
    return Report.of("memory", [*_crash_rows(killed, power, recovery_s, reason, quick=quick),
                                *_fault_rows(faults, reason),
                                *_flip_rows(turned, quick=quick)], options)


def _crash_rows(killed: Tally, power: Tally, recovery_s: float, reason: str | None, *, quick: bool) -> list[Row]:
    crashes, acknowledged = killed.count + power.count, killed.acknowledged + power.acknowledged
    errors = killed.errors + power.errors

    def findings(metric: str, kind: str) -> Row:
        found = [*getattr(killed.findings, kind), *getattr(power.findings, kind)]
        return Row(metric=metric, value=len(found), unit="memories", better="lower", must=0, n=crashes,
                   reason="; ".join(found[:REASONS_MAX]) or f"{acknowledged} operations were acknowledged")

    seconds = killed.seconds + power.seconds
    return [
        Row(metric="kills", value=killed.count - len(killed.errors), unit="kills", better="higher",
            must=None if quick else KILLS, n=killed.count,
            reason="; ".join(errors[:REASONS_MAX]) or f"{killed.busy} in the middle of a call, the rest between two"),
        Row(metric="torn_prefixes", value=None if reason else power.count, unit="disks", better="higher",
            must=None if quick else TORN, n=power.count,
            reason=reason or "calls of the shipped program, cut and reordered since the last sync"),
        findings("lost_acked", "lost"), findings("duplicated", "duplicated"), findings("corrupted", "corrupted"),
        Row(metric="recovery_p99_s", value=round(float(np.percentile(seconds, 99)), 4), unit="s", better="lower",
            must=2.0, n=len(seconds), reason=f"from opening to the first answer; median "
                                             f"{statistics.median(seconds):.4f} s; stores of up to 200 memories"),
        Row(metric="recovery_full_log_s", value=round(recovery_s, 4), unit="s", better="lower", n=1,
            reason=f"the same after {LOG_ROWS_QUICK if quick else LOG_ROWS} memories that are in the log alone; it "
                   "becomes a segment at 16,384")]


def _fault_rows(faults: Faults, reason: str | None) -> list[Row]:
    said = "; ".join(faults.reasons[:REASONS_MAX]) or ", ".join(
        f"{kind} {faults.cases[kind]}" for kind in KINDS) + " cases; EMFILE and EFBIG by limits besides"
    return [Row(metric="faults_survived", value=None if reason else sum(faults.survived(kind) for kind in KINDS),
                unit="kinds", better="higher", must=len(KINDS), n=sum(faults.cases.values()), reason=reason or said)]


def _flip_rows(turned: flips.Turned, *, quick: bool) -> list[Row]:
    return [
        Row(metric="flips", value=turned.count, unit="bits", better="higher", must=None if quick else FLIPS,
            reason=f"{turned.refused} refused, the others changed nothing that is read or searched"),
        Row(metric="undetected_flips", value=len(turned.undetected), unit="bits", better="lower", must=0,
            n=turned.count, reason="; ".join(turned.undetected[:REASONS_MAX]) or None)]
