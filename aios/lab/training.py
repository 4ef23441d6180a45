"""Finished training runs in the ledger: what was trained on what, and what it reached."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aios.lab.machine import commit, machine_facts
from aios.lab.report import Row
from aios.ledger import Entry, Ledger, new_id
from aios.training.plans import Plan, Run
from aios.training.runner import last_rows
from aios.training.vocabulary import file_sha256


def record(plan: Plan, run: Run, result: dict[str, Any], folder: Path, argv: tuple[str, ...], *,
           ledger: Ledger | None = None) -> Entry:
    """Append one finished run to the ledger and return the entry."""
    now = datetime.now(UTC)
    run_id = new_id(now)
    entry = Entry(
        id=run_id, command=f"train {plan.name}", argv=argv, commit=commit(), seed=run.loop.seed, quick=False,
        machine=machine_facts(), started=(now - timedelta(seconds=result["train_s"])).isoformat(timespec="seconds"),
        duration_s=result["train_s"],
        rows=tuple(row.to_json() for row in (*rows(run, result, run_id), *curve(run, folder, run_id))),
        data={plan.data: result["data_sha256"], "config.json": file_sha256(folder / "config.json")},
        checkpoints={run.name: file_sha256(folder / "best.safetensors")})
    (ledger or Ledger.here()).append(entry)
    return entry


def rows(run: Run, result: dict[str, Any], run_id: str) -> list[Row]:
    """Rows of a finished run: for each objective the loss of the best weights on every validation source.

    An exact objective's loss is a likelihood; the others are upper bounds, and their metrics say so.
    """
    counts = {"steps": result["steps"], "best_step": result["best_step"], "parameters": result["parameters"]}
    found = [_row(run, name, float(value), name, run_id) for name, value in counts.items()]
    for name, measured in result["bounds"].items():
        what = "nats_per_token" if measured["exact"] else "bound_nats_per_token"
        values = {"mixture": measured["mixture"], **measured["nats_per_token"]}
        found += [_row(run, f"{name}_{what}_{source}", value, "nats", run_id) for source, value in values.items()]
    return found


def curve(run: Run, folder: Path, run_id: str) -> list[Row]:
    """The validation loss of the mixture over the run, one row a measurement."""
    return [_row(run, f"at_step_{told['step']}", float(told["mixture"]), "nats", run_id)
            for told in last_rows(folder) if "mixture" in told]


def _row(run: Run, name: str, value: float, unit: str, run_id: str) -> Row:
    return Row(metric=f"{run.name}_{name}", value=value, unit=unit, better="lower", run=run_id)
