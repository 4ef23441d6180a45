"""model.json: what a model folder must contain, byte for byte, and the identity that follows from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aios.contracts import Kind
from aios.errors import BadInput, ModelCorrupt, UnknownArchitecture
from aios.security import private_file

if TYPE_CHECKING:
    from aios.store.weights import WeightLoader

FORMAT_VERSION = 2           # 1 had its tensors in a safetensors file
RECORD, SPEC, TENSORS, TOKENIZER = "model.json", "config.json", "model.parquet", "tokenizer.json"
RECORD_BYTES_MAX = 1 << 20
SPEC_BYTES_MAX = 1 << 20
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
    derived_from: str | None = None   # the release that quantised weights were made from
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

    Needs config.json and model.parquet, which must belong together and is read whole; raises ModelCorrupt or
    UnknownArchitecture.
    """
    check_name(name)
    spec = read_spec(folder / SPEC)
    kind_of = architecture(spec)
    files = tuple(_file_record(path) for path in sorted(folder.iterdir())
                  if path.is_file() and path.name != RECORD and FILE_NAME.fullmatch(path.name))
    tokenizer = next((file.sha256 for file in files if file.name == TOKENIZER), "")
    with closing(_loader(folder / TENSORS)) as weights:
        weights.verify()
        release = release_id(spec, tokenizer, weights.tensors_sha256)
        if weights.release != release:
            raise ModelCorrupt(f"{TENSORS} was made for another {SPEC} or {TOKENIZER}", remedy=REMEDY, path=str(folder))
        record = ModelRecord(
            name=name, architecture=kind_of[0], kind=kind_of[1], source=source, source_version=source_version,
            licence=licence, files=files, release=release, derived_from=weights.derived_from, path=folder,
            embedded=embedded)
    stored = StoredRecord(**{field.name: getattr(record, field.name) for field in fields(StoredRecord)})
    private_file.write(folder / RECORD, msgspec.json.format(msgspec.json.encode(stored), indent=1) + b"\n")
    if embedded:
        for file in (RECORD, *(file.name for file in files)):
            (folder / file).chmod(0o644)   # part of the package: whoever can import it can read it
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
    if stored.version < FORMAT_VERSION and stored.name == folder.name:
        raise ModelCorrupt(f"{folder.name}: it was installed by an earlier version of AIOS", path=str(path),
                           remedy=f"aios models pull {folder.name}")
    names = {file.name for file in stored.files}
    if stored.version != FORMAT_VERSION or stored.name != folder.name or not {SPEC, TENSORS} <= names \
            or not all(FILE_NAME.fullmatch(name) for name in names):
        raise ModelCorrupt(f"{folder.name}: its record model.json does not describe this folder", remedy=REMEDY,
                           path=str(path))
    return ModelRecord(**{field.name: getattr(stored, field.name) for field in fields(StoredRecord)},
                       path=folder, embedded=embedded)


def check_fast(record: ModelRecord) -> None:
    """Sizes, spec, tokenizer, and the whole directory of the weights; raises ModelCorrupt naming the file.

    Costs milliseconds; `verify` is the thorough check.
    """
    open_weights(record, check=False).close()


def open_weights(record: ModelRecord, *, check: bool = True) -> WeightLoader:
    """The record's tensors, mapped, after the fast check; `check` has every byte looked at in the background.

    The release pins the tensors, and with them spec and tokenizer. Raises ModelCorrupt naming the file.
    """
    for file in record.files:
        _check_size(record, file)
    spec = read_spec(record.path / SPEC)
    tokenizer = _sha256(record.path / TOKENIZER) if record.file(TOKENIZER) else ""
    if architecture(spec) != (record.architecture, record.kind):
        raise _differs(record, SPEC, "it names another architecture than the record")
    weights = _loader(record.path / TENSORS, check=check)
    release = release_id(spec, tokenizer, weights.tensors_sha256)
    if not weights.release == release == record.release:
        weights.close()
        changed = TENSORS if weights.release != record.release else f"{SPEC} or {TOKENIZER}"
        raise _differs(record, changed, "it differs from the record")
    return weights


def verify(record: ModelRecord) -> None:
    """Compare the SHA-256 of every file with the record; raises ModelCorrupt naming the first that differs.

    In the weights the tensor is named too.
    """
    check_fast(record)
    for file in record.files:
        if _sha256(record.path / file.name) != file.sha256:
            if file.name == TENSORS:
                with closing(_loader(record.path / TENSORS)) as weights:
                    weights.verify()
            raise _differs(record, file.name, "its SHA-256 differs from the record")


def _loader(path: Path, *, check: bool = False) -> WeightLoader:
    from aios.store.weights import WeightLoader  # needs the native code, which a source checkout may lack

    return WeightLoader.open(path, check="background" if check else "none")


def _file_record(path: Path) -> FileRecord:
    return FileRecord(name=path.name, bytes=path.stat().st_size, sha256=_sha256(path))


def _check_size(record: ModelRecord, file: FileRecord) -> None:
    try:
        size = (record.path / file.name).stat().st_size
    except OSError as error:
        raise _differs(record, file.name, error.strerror or "it cannot be read") from error
    if size != file.bytes:
        raise _differs(record, file.name, f"{size} bytes instead of {file.bytes}")


def _differs(record: ModelRecord, file: str, why: str) -> ModelCorrupt:
    return ModelCorrupt(f"{record.name}: {file}: {why}", remedy=REMEDY, path=str(record.path / file))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelCorrupt(f"{path.name} cannot be read: {error.strerror}", remedy=REMEDY, path=str(path)) from error
