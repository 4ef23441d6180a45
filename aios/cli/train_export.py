"""`aios train judge` and `aios train export`: a run's weights become a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aios.cli import render
from aios.cli.options import Json
from aios.errors import BadInput

BITS = (2, 4, 8, 16)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a plan's run, finished or not; its best "
                                                         "weights are taken.")]
Data = Annotated[Path | None, typer.Option(metavar="DIR", help="The data it was trained on; runs/data/RECIPE when "
                                                               "absent.")]


def export(
    run: Run,
    to: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the model goes, named after the folder; RUN/"
                                                                   "text-default when absent.")] = None,
    bits: Annotated[int, typer.Option(help="Of the matrices: 2, 4 or 8 by ArrowQuant, or 16.")] = 4,
    data: Data = None,
    json: Json = False,
) -> None:
    """Write a run's best weights as a model folder, with its bounds, samples and model card."""
    if bits not in BITS:
        raise BadInput(f"--bits {bits} is no format", remedy="one of: " + ", ".join(map(str, BITS)))
    from aios.lab.release import release
    from aios.store.record import check_name
    from aios.training.export import Trained
    from aios.training.judge import chosen

    to = (to or run / "text-default").absolute()
    check_name(to.name)
    trained = Trained.open(run, data)
    with render.progress(f"exporting {run.name}", json, unit="share") as move:
        done = release(trained, to, bits=bits, sampling=chosen(trained),
                       progress=lambda label, share: move(share, 1.0, label))
    before, after = trained.mixture(done.before), trained.mixture(done.after)
    found = {"model": done.record.name, "folder": str(to), "step": trained.step, "release": done.record.release,
             "licence": done.record.licence, "modalities": list(trained.modalities), "bytes": done.bytes,
             "bound_before": before, "bound_after": after, "bound_increase_percent": 100 * (after / before - 1)}
    render.emit(found, json, lambda: render.facts(found))


def judge(run: Run, data: Data = None, json: Json = False) -> None:
    """Find the sampler that suits a run's weights, and keep it for the export."""
    from dataclasses import asdict

    from aios.training import judge as judging
    from aios.training.export import Trained

    trained = Trained.open(run, data)
    found: list[judging.Judged] = []
    with render.progress(f"judging {run.name}", json, unit="share") as move:
        candidates = judging.candidates(trained.block)
        for one in judging.compare(trained.network(), trained.corpus, candidates):
            found.append(one)
            move(len(found) / (1 + len(candidates)), 1.0, one.sampling.sampler if one.sampling else "real text")
    winner = judging.best(found)
    if winner is not None:
        judging.keep(run, winner)
    columns = ["sampler", "steps a token", "temperature", "judge's nats", "entropy", "matched", "calls"]
    rows = [[one.sampling.sampler if one.sampling else "validation text",
             one.sampling.steps_per_token if one.sampling else "", one.sampling.temperature if one.sampling else "",
             f"{one.judge:.3f}", f"{one.entropy:.3f}", one.matched, one.calls] for one in found]
    told = {"judged": [asdict(one) for one in found], "kept": asdict(winner) if winner else None}
    render.emit(told, json, lambda: render.table(columns, rows, "no candidates"))
