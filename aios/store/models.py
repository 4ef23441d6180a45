"""Which models there are, and opening them: those inside the package and those that were pulled or imported.

    record = find("minilm")
    tensors = open_tensors(record)     # tensors over a private map of the file: read on first use
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aios
from aios.config import Places
from aios.errors import AiosError, BadInput, ModelMissing
from aios.store.catalogue import CATALOGUE
from aios.store.record import NAME, ModelRecord, check_name, open_weights, read_record

if TYPE_CHECKING:
    from aios.store.weights import WeightLoader

STAGING = ".staging-"   # a folder that becomes a model by one rename, or rubbish after a crash
IMPORTING = ".import-"   # the same, but an interrupted import goes on in it: it is kept for a day
LOCK = ".lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One line of `aios models list`: a record, or the reason why there is none."""

    name: str
    path: Path
    embedded: bool
    record: ModelRecord | None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The line as `--json` prints it."""
        if self.record is not None:
            return {**self.record.to_json(), "problem": None}
        return {"name": self.name, "path": str(self.path), "embedded": self.embedded, "problem": self.problem}


def embedded_folder() -> Path:
    """Where the models inside the package lie."""
    return Path(aios.__file__).resolve().parent / "_models"


def names(places: Places | None = None) -> list[str]:
    """Every model there is, by name; a pulled one that has the name of an embedded one does not count."""
    return sorted(_folders(places or Places.find()))


def listing(places: Places | None = None) -> list[Listed]:
    """Every model with its record; one that is broken is listed with its problem."""
    lines = []
    for name, (path, embedded) in sorted(_folders(places or Places.find()).items()):
        try:
            record = read_record(path, embedded=embedded)
            lines.append(Listed(name=name, path=path, embedded=embedded, record=record))
        except AiosError as error:
            lines.append(Listed(name=name, path=path, embedded=embedded, record=None, problem=error.message))
    return lines


def find(name: str, places: Places | None = None) -> ModelRecord:
    """The record of a model; raises ModelMissing, ModelCorrupt or BadInput."""
    folders = _folders(places or Places.find())
    if check_name(name) not in folders:
        remedy = f"aios models pull {name}" if name in CATALOGUE else "`aios models list` shows those there are"
        raise ModelMissing(f"the model {name!r} is not installed", remedy=remedy, model=name)
    path, embedded = folders[name]
    return read_record(path, embedded=embedded)


def open_tensors(record: ModelRecord) -> WeightLoader:
    """The model's tensors over a map of its file, after the fast check; raises ModelCorrupt naming the file.

    Nothing is copied; pages are read from disk when a tensor is first used, and checked in the background meanwhile:
    call `intact` before anything computed from them leaves.
    """
    return open_weights(record)


def remove(name: str, places: Places | None = None) -> None:
    """Delete a pulled model, at once as far as anyone can see; raises ModelMissing or BadInput."""
    places = places or Places.find()
    folders = _folders(places)
    if check_name(name) not in folders:
        raise ModelMissing(f"the model {name!r} is not installed", remedy="`aios models list` shows those there are")
    path, embedded = folders[name]
    if embedded:
        raise BadInput(f"{name!r} is part of the package and cannot be removed",
                       remedy="uninstall aios-daemon, or name another model in daemon.toml")
    with locked(places):
        doomed = _set_aside(path)
        sync(places.models)
        shutil.rmtree(doomed)


@contextmanager
def locked(places: Places) -> Iterator[None]:
    """Only one process at a time changes the folder of models; others wait here."""
    places.create()
    descriptor = os.open(places.models / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def staging(places: Places) -> Path:
    """A new empty folder that can become a model by a rename; call it under `locked`."""
    folder = places.models / (STAGING + secrets.token_hex(8))
    folder.mkdir(mode=0o700)
    return folder


def sweep(places: Places) -> list[str]:
    """Delete what interrupted pulls and removals left; call it under `locked`. The names of what went."""
    left = sorted(places.models.glob(STAGING + "*"))
    for folder in left:
        shutil.rmtree(folder)
    return [folder.name for folder in left]


def install(staged: Path, name: str, places: Places) -> Path:
    """Put a finished staging folder in place, durable when this returns; a model of that name gives way."""
    target = places.models / check_name(name)
    doomed = _set_aside(target) if target.exists() else None
    settle(staged, target)
    if doomed is not None:
        shutil.rmtree(doomed)
    return target


def settle(staged: Path, target: Path) -> None:
    """Rename a finished folder to the name it is to have; it is on disk, whole, when this returns."""
    for file in staged.iterdir():
        sync(file)
    sync(staged)
    staged.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Force a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _set_aside(folder: Path) -> Path:
    """Give a folder a name that `sweep` deletes, should we not get to it."""
    return folder.rename(folder.with_name(STAGING + secrets.token_hex(8)))


def _folders(places: Places) -> dict[str, tuple[Path, bool]]:
    found: dict[str, tuple[Path, bool]] = {}
    for parent, embedded in ((places.models, False), (embedded_folder(), True)):
        if parent.is_dir():
            found |= {path.name: (path, embedded) for path in parent.iterdir()
                      if NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()}
    return found
