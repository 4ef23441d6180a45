"""`aios train`: data from recipes, runs from plans, models from runs."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aios.cli import render
from aios.cli.options import Json, group
from aios.cli.train_data import app as data_app
from aios.cli.train_export import export, judge
from aios.cli.train_memory import memory, relevance
from aios.errors import BadInput

if TYPE_CHECKING:
    from aios.training.distributed import Group
    from aios.training.loop import Training
    from aios.training.plans import Plan
    from aios.training.runner import Outcome

NICENESS = 10

app = group("Train models: data from recipes, runs from plans, models from runs.")
app.add_typer(data_app, name="data")
app.command()(export)
app.command()(judge)
app.command()(memory)
app.command()(relevance)

Runs = Annotated[Path, typer.Option(metavar="DIR", help="The folder of all runs.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads; all when absent.")]


@app.command()
def run(
    plan: Annotated[str, typer.Argument(help="A plan that AIOS brings (see `aios train plans`), or a TOML file.")],
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="What `aios train data build` wrote; "
                                                                  "runs/data/RECIPE when absent.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The plan's folder; runs/PLAN when absent.")] = None,
    minutes: Annotated[float | None, typer.Option("--for", metavar="MINUTES", min=0,
                                                  help="Stop with a checkpoint after so long.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Shorten every run to this many steps.")] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Work off a plan's runs, each from its last checkpoint. Ctrl-C stops; the same command goes on."""
    import torch

    from aios.training import plans
    from aios.training.distributed import joined
    from aios.training.runner import work_off

    chosen = plans.read_plan(plan)
    chosen = plans.shortened(chosen, steps) if steps else chosen
    data, out = data or Path("runs/data") / chosen.data, out or Path("runs") / chosen.name
    if not (data / "manifest.json").is_file():
        raise BadInput(f"no data in {data}", remedy=f"aios train data build {chosen.data} --out {data}")
    os.nice(NICENESS)
    if threads is not None:
        torch.set_num_threads(threads)
    stop_after_s = minutes * 60 if minutes is not None else math.inf
    finished = []
    with joined() as members, _Bar(chosen, out, quiet=json or not members.leads) as bar:
        for outcome in work_off(chosen, data, out, group=members, stop_after_s=stop_after_s, watch=bar.move):
            if outcome.result is not None:
                finished.append(_record(chosen, outcome, out, members))
    if members.leads:
        left = chosen.next_run(out)
        told = {"plan": chosen.name, "folder": str(out), "finished_now": finished,
                "next": left.name if left else None}
        render.emit(told, json, lambda: render.facts(told))


def _record(plan: Plan, outcome: Outcome, out: Path, members: Group) -> str:
    from aios.lab.training import record

    assert outcome.result is not None and members.leads
    words = ("aios", *sys.argv[1:]) if sys.argv[1:2] == ["train"] else ("aios", "train", "run", plan.name)
    return record(plan, outcome.run, outcome.result, out / outcome.run.name, words).id


class _Bar:
    """A bar on standard error: the run, its step, loss, speed and the time it still needs."""

    def __init__(self, plan: Plan, out: Path, *, quiet: bool) -> None:
        self._names, self._out, self._quiet = plan.names(), out, quiet
        self._shown: Any = None
        self._move: Callable[[float, float, str], None] = lambda done, total, text: None

    def __enter__(self) -> _Bar:
        self._shown = render.progress("training", self._quiet, unit="share")
        self._move = self._shown.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._shown.__exit__(*failure)

    def move(self, training: Training, loss: float) -> None:
        """Show a step."""
        done = training.progress
        rate = training.tokens / max(training.elapsed_s, 1e-9)
        left = training.elapsed_s / max(done, 1e-9) * (1 - done)
        name = training.folder.name
        place = f"{self._names.index(name) + 1}/{len(self._names)}" if name in self._names else ""
        text = (f"{name} ({place})  step {training.step}  {loss:.3f} nats/token  {rate:,.0f} tokens/s  "
                f"{render.duration(left)} left")
        self._move(done, 1.0, text)


@app.command("plans")
def list_plans(json: Json = False) -> None:
    """The plans that AIOS brings."""
    from aios.training import plans

    found = [plans.read_plan(name) for name in plans.names()]
    rows = [[plan.name, plan.data, len(plan.names()), plan.description] for plan in found]
    render.emit({"plans": [{"name": plan.name, "data": plan.data, "runs": plan.names(),
                            "description": plan.description} for plan in found]}, json,
                lambda: render.table(["plan", "data", "runs", "what"], rows, "no plans"))


@app.command()
def pause(runs: Runs = Path("runs"), json: Json = False) -> None:
    """Hold every run below a folder between two steps, until `aios train resume`."""
    from aios.training.checkpoints import HOLD

    if not runs.is_dir():
        raise BadInput(f"no folder {runs}", remedy="name the folder of the runs with --runs")
    (runs / HOLD).touch(mode=0o600)
    render.emit({"held": str(runs)}, json, lambda: render.say(f"held: every run in {runs}"))


@app.command()
def resume(runs: Runs = Path("runs"), json: Json = False) -> None:
    """Let held runs go on; runs whose process has ended go on with `aios train run`."""
    from aios.training.checkpoints import HOLD

    was_held = (runs / HOLD).exists()
    (runs / HOLD).unlink(missing_ok=True)
    render.emit({"resumed": was_held}, json, lambda: render.say("resumed" if was_held else "nothing was held"))


@app.command()
def status(runs: Runs = Path("runs"), json: Json = False) -> None:
    """Where every run stands."""
    from aios.training.runner import standings

    found = standings(runs)
    columns = ("folder", "state", "why", "step", "steps", "loss", "held_out", "tokens_per_s", "pid")
    render.emit({"runs": [asdict(one) for one in found]}, json, lambda: render.table(
        columns, [[getattr(one, name) for name in columns] for one in found], f"no runs in {runs}"))
