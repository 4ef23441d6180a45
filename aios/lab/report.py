"""What every measurement returns: rows with a verdict, in a report that a stranger can check.

    def run(options: LabOptions) -> Report:
        options.progress("encoding", 0.5)
        rows = [Row(metric="ping_rtt_us", value=120.0, unit="us", better="lower", must=1000, aim=250, n=1000)]
        return Report.of("daemon", rows, options)
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from aios.lab.machine import commit, machine_facts

HASH_CHUNK_BYTES = 1 << 20
SEED_BITS = 31   # fits every generator in use, and is short enough to type


def silent(label: str, done: float) -> None:
    """The progress callback of a run that nobody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabOptions:
    """How a measurement is run: the flags that every bench, evaluation and campaign understands."""

    quick: bool = False                # small samples, within 60 seconds
    data: Path | None = None           # folder of evaluation data; AIOS_DATA when absent
    seed: int = field(default_factory=lambda: secrets.randbits(SEED_BITS))
    plot: Path | None = None           # folder for pictures
    only: str | None = None            # show this metric alone (`--rerun METRIC`)
    extra: Mapping[str, str] = field(default_factory=dict)
    progress: Callable[[str, float], None] = silent   # (what runs now, share done in 0..1)

    def find_data(self, name: str) -> Path | None:
        """The file `name` in `data`, else in the folders of AIOS_DATA; None if it is in none."""
        named = os.environ.get("AIOS_DATA", "").split(os.pathsep)
        folders = [self.data] if self.data else [Path(folder) for folder in named if folder]
        return next((folder / name for folder in folders if (folder / name).is_file()), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured number and its verdict; a value of None needs a reason and counts as missed.

    `excused` is for an instruction set that this machine lacks: null, with its reason, and no miss.
    `run` is the ledger id of the run that measured it; the catalogue fills it in for live rows.
    """

    metric: str
    value: float | None
    unit: str
    better: Literal["higher", "lower"]
    must: float | None = None
    aim: float | None = None
    kind: Literal["live", "ledger"] = "live"
    peer: str | None = None
    peer_version: str | None = None
    peer_value: float | None = None
    n: int | None = None
    interval: tuple[float, float] | None = None   # 95 %
    run: str | None = None
    reason: str | None = None
    excused: bool = False

    def __post_init__(self) -> None:
        for name in ("value", "peer_value"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{self.metric}: {name} is {number}; say None with a reason")
        if self.value is None and not self.reason:
            raise ValueError(f"{self.metric}: a value of None needs a reason")

    @property
    def ok(self) -> bool | None:
        """Whether the must holds; False when nothing was measured, None when there is nothing to judge."""
        if self.value is None:
            return None if self.excused else False
        if self.must is None:
            return None
        return self.value >= self.must if self.better == "higher" else self.value <= self.must

    @property
    def missed(self) -> bool:
        """True when a must does not hold: this is what the exit code reports."""
        return self.must is not None and self.ok is False

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer, whichever way better is; None without a peer."""
        if self.value is None or self.peer_value is None:
            return None
        above, below = (self.value, self.peer_value) if self.better == "higher" else (self.peer_value, self.value)
        return above / below if below else None

    def to_json(self) -> dict[str, Any]:
        """The row as MEASURE.md names its fields."""
        row: dict[str, Any] = {name: getattr(self, name) for name in (
            "metric", "value", "unit", "better", "must", "aim", "ok", "kind", "peer", "peer_version", "peer_value",
            "ratio", "n", "interval", "run", "reason")}
        row["interval"] = list(self.interval) if self.interval else None
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Row:
        """A row read back from the ledger."""
        known = {name: row[name] for name in cls.__dataclass_fields__ if name in row}
        known["interval"] = tuple(known["interval"]) if known.get("interval") else None
        known["excused"] = row.get("value") is None and row.get("ok") is None
        return cls(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The rows of one run, with what is needed to judge and repeat it."""

    name: str
    rows: tuple[Row, ...]
    commit: str | None
    date: str                       # UTC, ISO 8601
    machine: Mapping[str, Any]      # cpu, isa, threads, memory_gb, gpu
    quick: bool
    seed: int
    data: Mapping[str, str] = field(default_factory=dict)         # file name -> sha256
    checkpoints: Mapping[str, str] = field(default_factory=dict)  # model name -> release id

    @classmethod
    def of(cls, name: str, rows: Iterable[Row], options: LabOptions, *, data: Mapping[str, str] | None = None,
           checkpoints: Mapping[str, str] | None = None) -> Report:
        """A report of rows measured now, on this machine, at this commit."""
        return cls(name=name, rows=tuple(rows), commit=commit(), date=datetime.now(UTC).isoformat(timespec="seconds"),
                   machine=machine_facts(), quick=options.quick, seed=options.seed,
                   data=data or {}, checkpoints=checkpoints or {})

    @property
    def exit_code(self) -> int:
        """0 when every must of the rows holds, else 1."""
        return int(any(row.missed for row in self.rows))

    def with_rows(self, rows: Iterable[Row]) -> Report:
        """The same report with other rows."""
        return replace(self, rows=tuple(rows))

    def to_json(self) -> dict[str, Any]:
        """The one object that `--json` prints."""
        return {"name": self.name, "commit": self.commit, "date": self.date, "machine": dict(self.machine),
                "quick": self.quick, "seed": self.seed, "rows": [row.to_json() for row in self.rows]}


def sha256_file(path: Path) -> str:
    """The file's SHA-256 in hexadecimal: how a report names the data it was measured on."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
