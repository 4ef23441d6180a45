"""`aios train relevance` and `aios train memory`: what tells which memories matter, and how a model uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aios.cli import render
from aios.cli.options import Json

SEED = 20_260


def relevance(
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the scorer goes; into the package when "
                                                                 "absent.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the made-up memories.")] = SEED,
    quick: Annotated[bool, typer.Option("--quick", help="A few memories: to see that everything works.")] = False,
    json: Json = False,
) -> None:
    """Teach the scorer of memories on made-up ones, with the installed sentence encoder."""
    from aios.engine.arrow import ArrowEngine
    from aios.lab.relevance_training import STORES, STORES_QUICK, train
    from aios.memory.relevance import FEATURES, WEIGHTS
    from aios.security import private_file

    engine, target = ArrowEngine.open(), to or WEIGHTS
    with render.progress("learning what matters", json, unit="share") as move:
        done = train(engine.encode, seed, stores=STORES_QUICK if quick else STORES,
                     progress=lambda share: move(share, 1.0, "made-up memories"))
    told: dict[str, float] = {"seed": seed, "rows": done.rows, "held_out_questions": done.questions,
            "held_out_first_percent": round(done.first_percent, 2),
            "held_out_nearest_percent": round(done.nearest_percent, 2)}
    private_file.write(target, done.scorer.to_json({"trained": told}))
    if target == WEIGHTS:
        target.chmod(0o644)      # part of the package: whoever can import it can read it
    found = {"file": str(target), **told, **dict(zip(FEATURES, done.scorer.weights, strict=True))}
    render.emit(found, json, lambda: render.facts(found))


def memory(
    model: Annotated[Path, typer.Argument(metavar="FOLDER", help="A diffusion model of text that has learned to read "
                                                                 "passages; its backbone stays as it is.")],
    to: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the model with a memory goes; in place of "
                                                                   "the other when absent.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the examples and of the first weights.")] = SEED,
    examples: Annotated[int, typer.Option(min=32, help="Made-up questions to learn from.")] = 1500,
    epochs: Annotated[int, typer.Option(min=1, help="How often it learns from each.")] = 8,
    json: Json = False,
) -> None:
    """Teach a diffusion model to point at passages from memory and to attend to their patterns."""
    from aios.engine.arrow import ArrowEngine
    from aios.lab.memory_release import release

    engine = ArrowEngine.open()
    with render.progress(f"teaching {model.name}", json, unit="share") as move:
        done = release(model.absolute(), (to or model).absolute(), engine.encode, seed=seed, count=examples,
                       epochs=epochs, progress=lambda share, text: move(share, 1.0, text))
    losses = {f"held_out_nats_{arm}": round(nats, 4) for arm, nats in done.taught.losses.items()}
    exact = {f"held_out_exact_percent_{arm}": round(share, 2) for arm, share in done.taught.exact_percent.items()}
    found = {"model": done.record.name, "folder": str(done.record.path), "release": done.record.release,
             "parameters_added": done.parameters, **losses, **exact, "attends": done.taught.attends}
    render.emit(found, json, lambda: render.facts(found))
