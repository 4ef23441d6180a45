"""`aios bench`, `aios eval` and `aios lab`: measure, and look at what was measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aios.cli import render
from aios.cli.options import Json, group
from aios.errors import BadInput

if TYPE_CHECKING:
    from aios.ledger import Entry

Quick = Annotated[bool, typer.Option("--quick", help="Small samples, within 60 seconds.")]
Plot = Annotated[Path | None, typer.Option(metavar="DIR", help="Write pictures to this folder.")]
Data = Annotated[Path | None, typer.Option(metavar="DIR", help="Evaluation data; AIOS_DATA when absent.")]
Seed = Annotated[int | None, typer.Option(help="Of samples and attacks; drawn and shown when absent.")]
Rerun = Annotated[str | None, typer.Option(metavar="METRIC", help="Show this metric alone.")]
Name = Annotated[str | None, typer.Argument(help="What to run; without it the names are listed.")]

app = group("The ledger of what was measured.")


def bench(name: Name = None, quick: Quick = False, plot: Plot = None, data: Data = None, seed: Seed = None,
          rerun: Rerun = None, json: Json = False) -> int:
    """Measure speed, memory and load. Exit code 1 when a must is missed."""
    if name is None:
        return _list("bench", as_json=json)
    return _measure("bench", name, _options(quick, plot, data, seed, rerun), as_json=json)


def evaluate(name: Annotated[str | None, typer.Argument(help="What to run, or `campaign`; without it the names "
                                                             "are listed.")] = None,
             campaign: Annotated[str | None, typer.Argument(help="After `campaign`: which.")] = None,
             quick: Quick = False, plot: Plot = None, data: Data = None, seed: Seed = None, rerun: Rerun = None,
             json: Json = False) -> int:
    """Measure quality; `aios eval campaign NAME` runs an attack campaign. Exit code 1 when a must is missed."""
    options = _options(quick, plot, data, seed, rerun)
    if name == "campaign":
        return _measure("campaign", campaign, options, as_json=json) if campaign else _list("campaign", as_json=json)
    if campaign is not None:
        raise typer.BadParameter(f"{campaign!r} is one name too many")
    return _measure("eval", name, options, as_json=json) if name else _list("eval", as_json=json)


@app.command("list")
def list_runs(json: Json = False) -> None:
    """Every recorded run, oldest first."""
    ledger, entries = _ledger_entries()
    runs = [{**_summary(entry), "argv": list(entry.argv)} for entry in entries]
    rows = [[run[name] for name in ("id", "command", "quick", "commit", "minutes", "rows", "missed")] for run in runs]
    render.emit({"ledger": str(ledger), "runs": runs}, json, lambda: render.table(
        ["id", "command", "quick", "commit", "minutes", "rows", "missed"], rows, f"no runs in {ledger}"))


@app.command()
def show(run: Annotated[str, typer.Argument(help="The beginning of a run's id, or a command for its latest run.")],
         json: Json = False) -> None:
    """One recorded run with all its rows."""
    from aios.ledger import Ledger

    entry = Ledger.here().find(run)
    render.emit(asdict(entry), json, lambda: _show_entry(entry))


@app.command()
def rerun(run: Annotated[str, typer.Argument(help="The beginning of a run's id, or a command for its latest run.")],
          json: Json = False) -> int:
    """Run a recorded command again, with its seed; the result is a new entry."""
    from aios.cli.main import command
    from aios.ledger import Ledger

    words = list(Ledger.here().rerun(run))[1:]
    if not json:
        render.remark("$ aios " + " ".join(words))
    code: int = command().main(args=[*words, *(["--json"] if json else [])], prog_name="aios", standalone_mode=False)
    return code


def _options(quick: bool, plot: Path | None, data: Path | None, seed: int | None, only: str | None) -> dict[str, Any]:
    for folder, option in ((plot, "--plot"), (data, "--data")):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise BadInput(f"{option} {folder} is no folder", remedy="name a folder")
    if data is not None and not data.exists():
        raise BadInput(f"--data {data} does not exist", remedy="name the folder that holds the evaluation data")
    given = {"quick": quick, "plot": plot, "data": data, "only": only}
    return given if seed is None else {**given, "seed": seed}


def _measure(kind: Literal["bench", "eval", "campaign"], name: str, options: dict[str, Any], *, as_json: bool) -> int:
    from aios.lab import catalogue, present
    from aios.lab.report import LabOptions

    with render.progress(name, as_json, unit="share") as move:
        report = catalogue.run(kind, name, LabOptions(
            **options, progress=lambda label, done: move(done, 1.0, label)))
    pictures = present.plot(report, options["plot"]) if options["plot"] else None
    render.emit(report.to_json(), as_json, lambda: render.console(markup=True).print(present.table(report)))
    if pictures and not as_json:
        render.remark(f"picture: {pictures}")
    return report.exit_code


def _list(kind: Literal["bench", "eval", "campaign"], *, as_json: bool) -> int:
    from aios.lab import catalogue

    words = " ".join(("aios", *catalogue.COMMANDS[kind]))
    names = sorted(catalogue.GROUPS[kind])
    render.emit({"names": names}, as_json, lambda: render.say("\n".join(f"{words} {name}" for name in names)))
    return 0


def _ledger_entries() -> tuple[Path, list[Entry]]:
    from aios.ledger import Ledger

    ledger = Ledger.here()
    entries = list(ledger.entries())
    for torn in ledger.torn:
        render.remark(f"{torn.path}:{torn.line} cannot be read: {torn.why}")
    return ledger.folder, entries


def _summary(entry: Entry) -> dict[str, Any]:
    missed = [row["metric"] for row in entry.rows if row.get("must") is not None and row.get("ok") is False]
    return {"id": entry.id, "command": entry.command, "quick": entry.quick, "commit": entry.commit,
            "minutes": round(entry.duration_s / 60, 2), "rows": len(entry.rows), "missed": missed}


def _show_entry(entry: Entry) -> None:
    machine = entry.machine
    render.facts({"id": entry.id, "command": " ".join(entry.argv), "commit": entry.commit, "seed": entry.seed,
                  "started": entry.started, "took": render.duration(entry.duration_s),
                  "machine": f"{machine.get('cpu')}, {machine.get('isa')}, {machine.get('threads')} threads",
                  "data": entry.data, "checkpoints": entry.checkpoints})
    print()
    columns = ("metric", "value", "unit", "must", "aim", "ok", "n", "peer", "peer_value", "reason")
    render.table(columns, [[row.get(name) for name in columns] for row in entry.rows], "no rows")
