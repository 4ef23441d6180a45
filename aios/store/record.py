"""model.json: what a model folder must contain, byte for byte, and the identity that follows from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import msgspec

from aios.contracts import Kind
from aios.errors import BadInput, ModelCorrupt, UnknownArchitecture
from aios.security import private_file
from aios.store.header import check_tensors

FORMAT_VERSION = 1
RECORD, SPEC, TENSORS, TOKENIZER = "model.json", "config.json", "model.safetensors", "tokenizer.json"
RECORD_BYTES_MAX = 1 << 20
SPEC_BYTES_MAX = 1 << 20
HASH_CHUNK_BYTES = 1 << 20
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")   # also safe as a folder's name
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
REMEDY = "`aios models rm` and `aios models pull` it again"
# What the engine can build; the key is `model_type` of config.json.
ARCHITECTURES: Final[Mapping[str, Kind]] = {
    "bert": "encoder", "aios-score-network": "diffusion", "llama": "ar", "qwen2": "ar", "qwen3": "ar"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of a model."""

    name: str
    bytes: int
    sha256: str
    crc32c: int | None = None   # the fast check at every opening; absent where the native code was


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecord:
    """The fields of model.json."""

    name: str
    kind: Kind
    architecture: str
    release: str            # hash of spec, tokenizer and tensors: what cards and deltas pin
    source: str             # package it came from, or the command that trained it
    source_version: str
    licence: str
    files: tuple[FileRecord, ...]
    version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord(StoredRecord):
    """A model on this machine: its record and its folder."""

    path: Path
    embedded: bool = False   # came inside the package; cannot be removed

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(file.bytes for file in self.files)

    def file(self, name: str) -> Path | None:
        """The path of one of its files, None when it has none of that name."""
        return self.path / name if any(file.name == name for file in self.files) else None

    def to_json(self) -> dict[str, Any]:
        """The record as `--json` prints it."""
        stored = {field.name: msgspec.to_builtins(getattr(self, field.name)) for field in fields(StoredRecord)}
        return {**stored, "bytes": self.bytes, "embedded": self.embedded, "path": str(self.path)}


def check_name(name: str) -> str:
    """The name itself, when it can be a model's; raises BadInput."""
    if not NAME.fullmatch(name):
        raise BadInput(f"{name[:80]!r} cannot be the name of a model",
                       remedy="lower-case letters, digits, dot, dash and underscore, at most 64")
    return name


def read_spec(path: Path) -> dict[str, Any]:
    """config.json as an object; raises ModelCorrupt."""
    try:
        with path.open("rb") as file:
            raw = file.read(SPEC_BYTES_MAX + 1)
        if len(raw) > SPEC_BYTES_MAX:
            raise ModelCorrupt(f"{path.name} is larger than {SPEC_BYTES_MAX} bytes", remedy=REMEDY, path=str(path))
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelCorrupt(f"{path.name}: {error}", remedy=REMEDY, path=str(path)) from error


def architecture(spec: Mapping[str, Any]) -> tuple[str, Kind]:
    """(architecture, kind) that a config.json names; raises UnknownArchitecture."""
    name = spec.get("model_type")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnknownArchitecture(f"the architecture {str(name)[:80]!r} is not implemented",
                                  remedy="implemented are: " + ", ".join(sorted(ARCHITECTURES)))
    return name, ARCHITECTURES[name]


def release_id(spec: Mapping[str, Any], tokenizer_sha256: str, tensors_sha256: str) -> str:
    """The base identity of weights: SHA-256 over canonical spec, tokenizer and tensors."""
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    parts = ("aios-release-1", hashlib.sha256(canonical.encode("ascii")).hexdigest(), tokenizer_sha256, tensors_sha256)
    return hashlib.sha256("\n".join(parts).encode("ascii")).hexdigest()


def seal(folder: Path, *, name: str, source: str, source_version: str, licence: str,
         embedded: bool = False) -> ModelRecord:
    """Write model.json for the files that lie in `folder` now.

    Needs config.json and model.safetensors; raises ModelCorrupt or UnknownArchitecture.
    """
    check_name(name)
    spec = read_spec(folder / SPEC)
    kind_of = architecture(spec)
    check_tensors(folder / TENSORS)
    files = tuple(_file_record(path) for path in sorted(folder.iterdir())
                  if path.is_file() and path.name != RECORD and FILE_NAME.fullmatch(path.name))
    hashes = {file.name: file.sha256 for file in files}
    record = ModelRecord(
        name=name, architecture=kind_of[0], kind=kind_of[1], source=source, source_version=source_version,
        licence=licence, files=files, release=release_id(spec, hashes.get(TOKENIZER, ""), hashes[TENSORS]),
        path=folder, embedded=embedded)
    stored = StoredRecord(**{field.name: getattr(record, field.name) for field in fields(StoredRecord)})
    private_file.write(folder / RECORD, msgspec.json.format(msgspec.json.encode(stored), indent=1) + b"\n")
    if embedded:
        for name in (RECORD, *hashes):
            (folder / name).chmod(0o644)   # part of the package: whoever can import it can read it
    return record


def read_record(folder: Path, *, embedded: bool = False) -> ModelRecord:
    """The record of a model folder; raises ModelCorrupt when it is missing or does not make sense."""
    path = folder / RECORD
    try:
        with path.open("rb") as file:
            raw = file.read(RECORD_BYTES_MAX + 1)
        if len(raw) > RECORD_BYTES_MAX:
            raise ModelCorrupt(f"{path} is larger than {RECORD_BYTES_MAX} bytes", remedy=REMEDY, path=str(path))
        stored = msgspec.json.decode(raw, type=StoredRecord)
    except FileNotFoundError as error:
        raise ModelCorrupt(f"{folder.name}: it has no record, model.json", remedy=REMEDY, path=str(path)) from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelCorrupt(f"{folder.name}: its record model.json cannot be read: {error}", remedy=REMEDY,
                           path=str(path)) from error
    names = {file.name for file in stored.files}
    if stored.version != FORMAT_VERSION or stored.name != folder.name or not {SPEC, TENSORS} <= names \
            or not all(FILE_NAME.fullmatch(name) for name in names):
        raise ModelCorrupt(f"{folder.name}: its record model.json does not describe this folder", remedy=REMEDY,
                           path=str(path))
    return ModelRecord(**{field.name: getattr(stored, field.name) for field in fields(StoredRecord)},
                       path=folder, embedded=embedded)


def check_fast(record: ModelRecord) -> dict[str, Any]:
    """Sizes, spec, tokenizer, tensor header, and CRC-32C of the weights where known; the spec when all holds.

    Costs milliseconds; `verify` is the thorough check. Raises ModelCorrupt naming the file.
    """
    for file in record.files:
        _check_size(record, file)
    spec = read_spec(record.path / SPEC)
    hashes = {file.name: file.sha256 for file in record.files}
    tokenizer = _sha256(record.path / TOKENIZER) if TOKENIZER in hashes else ""
    if architecture(spec) != (record.architecture, record.kind) \
            or release_id(spec, tokenizer, hashes[TENSORS]) != record.release:
        raise ModelCorrupt(f"{record.name}: {SPEC} or {TOKENIZER} differs from the record", remedy=REMEDY,
                           path=str(record.path))
    check_tensors(record.path / TENSORS)
    _check_crc(record, next(file for file in record.files if file.name == TENSORS))
    return spec


def verify(record: ModelRecord) -> None:
    """Compare the SHA-256 of every file with the record; raises ModelCorrupt naming the first that differs."""
    check_fast(record)
    for file in record.files:
        if _sha256(record.path / file.name) != file.sha256:
            raise _differs(record, file, "its SHA-256 differs from the record")


def _file_record(path: Path) -> FileRecord:
    return FileRecord(name=path.name, bytes=path.stat().st_size, sha256=_sha256(path), crc32c=_crc32c(path))


def _check_size(record: ModelRecord, file: FileRecord) -> None:
    try:
        size = (record.path / file.name).stat().st_size
    except OSError as error:
        raise _differs(record, file, error.strerror or "it cannot be read") from error
    if size != file.bytes:
        raise _differs(record, file, f"{size} bytes instead of {file.bytes}")


def _check_crc(record: ModelRecord, file: FileRecord) -> None:
    if file.crc32c is None:
        return
    now = _crc32c(record.path / file.name)
    if now is not None and now != file.crc32c:
        raise _differs(record, file, "its CRC-32C differs from the record")


def _differs(record: ModelRecord, file: FileRecord, why: str) -> ModelCorrupt:
    return ModelCorrupt(f"{record.name}: {file.name}: {why}", remedy=REMEDY, path=str(record.path / file.name))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelCorrupt(f"{path.name} cannot be read: {error.strerror}", remedy=REMEDY, path=str(path)) from error


def _crc32c(path: Path) -> int | None:
    try:
        from aios._native import crc32c
    except ImportError:
        return None   # a source checkout that was not built yet
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            checksum = crc32c(chunk, checksum)
    return checksum
