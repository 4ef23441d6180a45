"""The experiment ledger: one JSON line for every bench, evaluation and campaign that was run.

A source checkout keeps it in `experiments/`, an installed package in its state folder; AIOS_EXPERIMENTS
names another folder. A line is written by a single append and fsync, so that a crash can tear the last
line at most; a torn line is skipped on reading, and reported.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

import aios
from aios.config import Places
from aios.errors import BadInput

FORMAT_VERSION = 1
LINE_BYTES_MAX = 1 << 20     # a report of some hundred rows is about 50 kB
FILE_BYTES_MAX = 256 << 20   # read whole when listing; far more than a lifetime of runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One run: what was run, on what, from what, and what came out."""

    id: str                                  # sorts by time
    command: str                             # "bench daemon"
    argv: tuple[str, ...]                    # repeats the run
    commit: str | None
    seed: int | None
    quick: bool
    machine: Mapping[str, Any]
    started: str                             # UTC, ISO 8601
    duration_s: float
    rows: tuple[dict[str, Any], ...]
    data: Mapping[str, str] = field(default_factory=dict)         # file name -> sha256
    checkpoints: Mapping[str, str] = field(default_factory=dict)  # model name -> release id
    version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Torn:
    """A line that cannot be read: cut by a crash, or edited by hand."""

    path: Path
    line: int
    why: str


def checkout() -> Path | None:
    """The source checkout this package runs from; None when it was installed from a wheel."""
    root = Path(aios.__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "experiments").is_dir() else None


def new_id(moment: datetime) -> str:
    """An entry id: the UTC millisecond and six random hexadecimal digits."""
    return f"{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03}Z-{secrets.token_hex(3)}"


class Ledger:
    """The ledger in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.torn: list[Torn] = []   # what the last `entries()` had to skip

    @classmethod
    def here(cls) -> Ledger:
        """The ledger of this checkout, or of this user where the package was installed."""
        if named := os.environ.get("AIOS_EXPERIMENTS"):
            return cls(Path(named))
        root = checkout()
        return cls(root / "experiments" if root else Places.find().state / "experiments")

    def append(self, entry: Entry) -> Path:
        """Add a line, durable when this returns; raises BadInput when it is longer than the limit."""
        line = msgspec.json.encode(entry) + b"\n"
        if len(line) > LINE_BYTES_MAX:
            raise BadInput(f"a ledger line of {len(line)} bytes; the limit is {LINE_BYTES_MAX}",
                           remedy="write long results beside the ledger and name them by hash")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / (entry.command.replace(" ", "-") + ".jsonl")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line   # the line before was torn: do not join it
            if os.write(descriptor, line) != len(line):
                raise OSError(f"short write to {path}")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return path

    def entries(self) -> Iterator[Entry]:
        """Every readable entry, oldest first; the others are listed in `torn` afterwards."""
        self.torn = []
        found: list[Entry] = []
        for path in sorted(self.folder.glob("*.jsonl")):
            found += self._read(path)
        # Runs of one millisecond stay in the order in which they were written.
        yield from sorted(found, key=lambda entry: entry.id.partition("-")[0])

    def find(self, key: str) -> Entry:
        """The entry whose id begins with `key`, or the latest of the command `key`; raises BadInput."""
        entries = list(self.entries())
        chosen = [e for e in entries if e.id.startswith(key)] or [e for e in entries if e.command == key][-1:]
        if len(chosen) == 1:
            return chosen[0]
        what = f"{len(chosen)} runs begin with" if chosen else "no run is called"
        raise BadInput(f"{what} {key!r}", remedy="`aios lab list` shows every run")

    def rerun(self, key: str) -> tuple[str, ...]:
        """The command line that repeats a recorded run."""
        return self.find(key).argv

    def _read(self, path: Path) -> Iterator[Entry]:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            raise BadInput(f"{path} is larger than {FILE_BYTES_MAX} bytes", remedy="move older lines to another folder")
        for number, line in enumerate(raw.split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                yield msgspec.json.decode(line, type=Entry)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:   # ValidationError is a DecodeError
                self.torn.append(Torn(path=path, line=number, why=str(error)))
