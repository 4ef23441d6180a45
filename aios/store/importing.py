"""Models from files of the owner's, and back out again: `aios models import` and `aios models export`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from aios.config import Places
from aios.errors import BadInput, ModelError
from aios.store.catalogue import CATALOGUE
from aios.store.convert import FILES, Format, convert_into, convert_source, quiet, writable
from aios.store.download import Progress
from aios.store.models import IMPORTING, find, install, locked, names, settle
from aios.store.record import RECORD, ModelRecord, check_fast, check_name, seal, verify
from aios.store.sources import Precision, open_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A model that was imported: its record, and how many tensors lost their codes."""

    record: ModelRecord
    dequantised: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A folder that was written, and how many packed tensors were dequantised for it."""

    path: Path
    dequantised: int


def import_model(path: Path, name: str, *, precision: Precision = "f16", places: Places | None = None,
                 progress: Progress = quiet) -> Imported:
    """Install the model at `path` as `name`; what was interrupted goes on where it stopped.

    Raises BadInput for a name that is taken, and all that a conversion raises; then nothing is installed.
    """
    places = places or Places.find()
    if check_name(name) in CATALOGUE:
        raise BadInput(f"{name!r} is the name of a model that can be pulled", remedy="choose another name")
    if name in names(places):
        raise BadInput(f"a model called {name!r} is there already",
                       remedy=f"choose another name, or: aios models rm {name}")
    source = open_source(path, precision=precision)
    staged = places.models / (IMPORTING + name)
    with writable(places.models), locked(places):
        convert_into(source, staged, progress=progress)
        progress(1, 1, "install")
        seal(staged, name=name, source=f"import of {path.resolve().name}", source_version=source.identity[:12],
             licence=source.licence)
        install(staged, name, places)
    record = find(name, places)
    check_fast(record)
    return Imported(record=record, dequantised=source.dequantised)


def export_model(name: str, target: Path, output_format: Format = "safetensors", *, precision: Precision = "f16",
                 places: Places | None = None, progress: Progress = quiet) -> Exported:
    """Write the model `name` into the new folder `target`, verified on the way.

    Parquet V2 goes out as it is; safetensors know no packed codes, which become `precision`. Raises BadInput,
    ModelMissing, ModelCorrupt or ModelError.
    """
    record = find(name, places)
    if output_format not in FILES:
        raise BadInput(f"{output_format!r} is no format", remedy="one of: " + ", ".join(FILES))
    if output_format == "safetensors":
        check_fast(record)
        source = open_source(record.path, plain=True, precision=precision)
        convert_source(source, target, "safetensors", progress=progress)
        return Exported(path=target, dequantised=source.dequantised)
    if target.exists():
        raise BadInput(f"{target} exists already", remedy="name another target, or remove it")
    verify(record)
    staged = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(record.path, staged, ignore=shutil.ignore_patterns(RECORD))
        settle(staged, target)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise ModelError(f"cannot write {target}: {error.strerror or error}", remedy="choose another folder") from error
    return Exported(path=target, dequantised=0)
