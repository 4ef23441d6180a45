"""`aios train`: the models that ship with AIOS, made again from data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from aios.cli import render
from aios.cli.options import Json, group
from aios.errors import BadInput

app = group("Train the models that ship with AIOS.")


@app.command()
def embedded(
    data: Annotated[list[Path] | None, typer.Option(metavar="DIR", help="A folder with sources; may be repeated; "
                                                                       "AIOS_DATA when absent.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run's folder; a run that lies there goes "
                                                          "on.")] = Path("runs/embedded"),
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the model goes; the run's folder "
                                                                "`text-default` when absent.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Wall time of the whole run.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="An exact number of steps instead.")] = None,
    eager: Annotated[bool, typer.Option("--eager", help="Do not compile the network.")] = False,
    json: Json = False,
) -> None:
    """Train the embedded text model and export its best weights. Ctrl-C stops; the same command goes on."""
    folders = data or [Path(folder) for folder in os.environ.get("AIOS_DATA", "").split(os.pathsep) if folder]
    for folder in folders:
        if not folder.is_dir():
            raise BadInput(f"no folder {folder}", remedy="docs/data.md says where the sources come from")
    from aios.training.embedded import NICENESS, export_embedded, train_embedded

    os.nice(NICENESS)
    run = train_embedded(folders, out, minutes=minutes, steps=steps, compile_network=not eager)
    model = to or out / "text-default"
    export_embedded(out / "best.safetensors", out, model)
    found = {"model": str(model), "run": str(out), "step": run.step, "tokens": run.tokens,
             "held_out_bound": run.best_bound}
    render.emit(found, json, lambda: render.facts(found))
