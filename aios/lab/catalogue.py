"""The table of everything that can be measured, and the one way to run an entry of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from typing import Final, Literal

from aios.errors import BadInput
from aios.lab.machine import training_paused
from aios.lab.report import LabOptions, Report, Row
from aios.ledger import Entry, Ledger, new_id

Group = Literal["bench", "eval", "campaign"]

BENCHES: Final[Mapping[str, str]] = {
    "daemon": "aios.lab.bench_daemon:run", "encode": "aios.lab.bench_encode:run",
    "kernels": "aios.lab.bench_kernels:run",
    "load": "aios.lab.bench_load:run",
    "memory": "aios.lab.bench_memory:run", "quant": "aios.lab.bench_quant:run",
    "text": "aios.lab.bench_text:run", "text-latency": "aios.lab.bench_text_latency:run",
    "tokenizer": "aios.lab.bench_tokenizer:run", "train": "aios.lab.bench_train:run",
    "vector": "aios.lab.bench_vector:run"}
EVALS: Final[Mapping[str, str]] = {
    "code": "aios.lab.eval_code:run", "encode": "aios.lab.eval_encode:run", "generate": "aios.lab.eval_generate:run",
    "memory": "aios.lab.eval_memory:run", "quant": "aios.lab.eval_quant:run", "text": "aios.lab.eval_text:run"}
CAMPAIGNS: Final[Mapping[str, str]] = {
    "ipc": "aios.lab.campaign_ipc:run", "kill": "aios.lab.campaign_kill:run",
    "memory": "aios.lab.campaign_memory:run",
    "kernels": "aios.lab.campaign_kernels:run", "parsers": "aios.lab.campaign_parsers:run"}
GROUPS: Final[Mapping[str, Mapping[str, str]]] = {"bench": BENCHES, "eval": EVALS, "campaign": CAMPAIGNS}
COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "bench": ("bench",), "eval": ("eval",), "campaign": ("eval", "campaign")}


def entry_point(group: Group, name: str) -> Callable[[LabOptions], Report]:
    """The run function of an entry, imported now; raises BadInput naming those that exist."""
    table = GROUPS[group]
    if name not in table:
        raise BadInput(f"no {group} is called {name!r}", remedy="one of: " + ", ".join(sorted(table)))
    module, _, function = table[name].partition(":")
    run: Callable[[LabOptions], Report] = getattr(import_module(module), function)
    return run


def argv(group: Group, name: str, options: LabOptions) -> list[str]:
    """The command that repeats a run; data is named by hash in the entry, folders of this machine are left out."""
    words = ["aios", *COMMANDS[group], name, "--seed", str(options.seed)]
    if options.quick:
        words.append("--quick")
    if options.only:
        words += ["--rerun", options.only]
    return words


def run(group: Group, name: str, options: LabOptions, *, ledger: Ledger | None = None) -> Report:
    """Measure, record the run in the ledger, and return its report; training is paused for all but campaigns.

    A quick run shows the last full run of the same machine-independent command beside its own rows,
    as rows of kind "ledger".
    """
    measure = entry_point(group, name)
    book = ledger or Ledger.here()
    began, clock = datetime.now(UTC), time.monotonic()
    # A campaign counts what breaks, not how fast it is, and lasts long.
    with nullcontext() if group == "campaign" else training_paused():
        report = measure(options)
    run_id = new_id(began)
    rows = [replace(row, run=run_id) if row.kind == "live" else row for row in report.rows]
    if options.only is not None:
        rows = _only(rows, options.only)
    book.append(Entry(
        id=run_id, command=f"{group} {name}", argv=tuple(argv(group, name, options)), commit=report.commit,
        seed=options.seed, quick=options.quick, data=report.data, checkpoints=report.checkpoints,
        machine=report.machine, started=began.isoformat(timespec="seconds"),
        duration_s=round(time.monotonic() - clock, 3), rows=tuple(row.to_json() for row in rows)))
    if options.quick:
        rows += stored_rows(book, f"{group} {name}", {row.metric for row in rows if row.kind == "live"})
    return report.with_rows(rows)


def stored_rows(ledger: Ledger, command: str, metrics: set[str]) -> list[Row]:
    """For each metric the row of the last full run of `command`, marked as coming from the ledger."""
    found: dict[str, Row] = {}
    for entry in ledger.entries():
        if entry.command == command and not entry.quick:
            found |= {row["metric"]: replace(Row.from_json(row), kind="ledger", run=entry.id)
                      for row in entry.rows if row["metric"] in metrics}
    return list(found.values())


def _only(rows: list[Row], metric: str) -> list[Row]:
    chosen = [row for row in rows if row.metric == metric]
    if not chosen:
        raise BadInput(f"no row is called {metric!r}", remedy="one of: " + ", ".join(row.metric for row in rows))
    return chosen
