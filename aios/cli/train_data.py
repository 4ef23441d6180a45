"""`aios train data`: build the training data of a recipe, and let a model write text for it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aios.cli import render
from aios.cli.options import Json, group
from aios.errors import AiosError, BadInput
from aios.messages import Response

if TYPE_CHECKING:
    from aios.engine.arrow import ArrowEngine
    from aios.training.prompts import Ask
    from aios.training.written import Teacher

# Cooler than usual: a small model that is to learn whole sentences gains more from plain ones than from rare ones.
SAMPLING: Final[dict[str, Any]] = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.08,
                                   "system": "You write short, simple and clear English. Use plain words."}

app = group("Training data: recipes, and text written for them.")

Data = Annotated[list[Path] | None, typer.Option(metavar="DIR", help="A folder with sources; may be repeated; "
                                                                   "AIOS_DATA when absent.")]


def source_folders(data: list[Path] | None) -> list[Path]:
    """The folders named by --data or AIOS_DATA; BadInput names one that is not there."""
    folders = data or [Path(folder) for folder in os.environ.get("AIOS_DATA", "").split(os.pathsep) if folder]
    for folder in folders:
        if not folder.is_dir():
            raise BadInput(f"no folder {folder}", remedy="docs/data.md says where the sources come from")
    return folders


@app.command()
def build(
    recipe: Annotated[str, typer.Argument(help="A recipe that AIOS brings (see `aios train data list`), or a TOML "
                                               "file.")],
    data: Data = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where it goes; runs/data/RECIPE when "
                                                                 "absent.")] = None,
    new_vocabulary: Annotated[bool, typer.Option("--new-vocabulary", help="Train a tokenizer on the mixture instead "
                                                                          "of using the frozen one.")] = False,
    json: Json = False,
) -> None:
    """Read the sources, drop duplicates, split by document, cut into tokens, write a manifest."""
    folders = source_folders(data)
    from aios.training.build import build as build_data
    from aios.training.recipes.mixtures import read_mixture

    mixture = read_mixture(recipe)
    out = out or Path("runs/data") / mixture.name
    with render.progress(f"building {mixture.name}", json, unit="share") as move:
        manifest = build_data(mixture, folders, out, new_vocabulary=new_vocabulary,
                              progress=lambda text, done: move(done, 1.0, text))
    columns = ("source", "share", "train_tokens", "held_out_tokens", "test_tokens", "exact", "near", "licence")
    rows = [[name, *(told.get(column) for column in columns[1:])] for name, told in manifest["sources"].items()]
    render.emit({"folder": str(out), **manifest}, json, lambda: render.table(columns, rows, "no sources"))


@app.command("held-out")
def held_out(
    data: Data = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where it goes; into the package when "
                                                                  "absent.")] = None,
    json: Json = False,
) -> None:
    """Make the small evaluation set inside the package again, from test documents of the recipe `small`."""
    folders = source_folders(data)
    from aios.lab import heldout

    with render.progress("held-out text", json, unit="share") as move:
        told = heldout.make(folders, out or heldout.PATH, progress=lambda text, done: move(done, 1.0, text))
    render.emit(told, json, lambda: render.facts(told))


@app.command("list")
def list_recipes(json: Json = False) -> None:
    """The recipes that AIOS brings, and their sources."""
    from aios.training.recipes.mixtures import names, read_mixture

    found = [read_mixture(name) for name in names()]
    rows = [[one.name, one.vocabulary, one.description, ", ".join(one.sources)] for one in found]
    render.emit({"recipes": [{"name": one.name, "vocabulary": one.vocabulary, "description": one.description,
                              "sources": {name: share.share for name, share in one.sources.items()}}
                             for one in found]}, json,
                lambda: render.table(["recipe", "vocabulary", "what", "sources"], rows, "no recipes"))


@app.command()
def write(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where written.jsonl grows.")] = Path("runs/written"),
    megabytes: Annotated[float, typer.Option(min=0, help="How much to write in all.")] = 40.0,
    minutes: Annotated[float | None, typer.Option("--for", metavar="MINUTES", min=0,
                                                  help="Stop after so long; the same command goes on.")] = None,
    model: Annotated[str | None, typer.Option(help="The model that writes; the default language model when "
                                                   "absent.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=512, help="Answers written at once.")] = 32,
    json: Json = False,
) -> None:
    """Let a language model write simple stories, explanations, dialogues, how-tos and small talk."""
    import time

    from aios.engine.arrow import ArrowEngine
    from aios.training.checkpoints import sole_owner
    from aios.training.written import Writer, write_until

    began, teacher = time.monotonic(), _teacher(ArrowEngine.open(), model)
    with sole_owner(out), render.progress("writing", json, unit="share") as move:
        writer = Writer(out)

        def go_on(told: Mapping[str, Any]) -> bool:
            share = told["kept"] / max(told["next"], 1)
            move(told["bytes"] / (megabytes * 1e6), 1.0,
                 f"{told['kept']} answers, {render.size(told['bytes'])}, {share:.0%} kept")
            return minutes is None or time.monotonic() - began < minutes * 60

        told = write_until(writer, teacher, batch=batch, bytes_max=int(megabytes * 1e6), go_on=go_on)
    render.emit({"file": str(writer.path), **told}, json, lambda: render.facts({"file": str(writer.path), **told}))


def _teacher(engine: ArrowEngine, model: str | None) -> Teacher:
    """The engine's language model, asked for many answers at once."""
    from aios.messages import Generate

    def answers(asked: Sequence[Ask]) -> Iterator[tuple[Ask, str, bool]]:
        requests = [Generate(prompt=one.prompt, model=model, max_tokens=one.max_tokens, seed=one.number, **SAMPLING)
                    for one in asked]
        for found in engine.generate_many(requests):
            for index, outcome in found.items():
                if isinstance(outcome, AiosError):
                    raise outcome
                if isinstance(outcome, Response):
                    yield asked[index], outcome.text, outcome.verdict.finish == "stop"

    return answers
