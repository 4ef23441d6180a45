"""Where weights come from: one shape for every format that can be read, streamed piece by piece.

    source = open_source(path)          # a folder or a file: safetensors, GGUF, torch checkpoint, Parquet V2
    for tensor in source.tensors:
        for part, piece in tensor.pieces(): ...
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from aios.errors import BadInput, ModelCorrupt, UnknownArchitecture

if TYPE_CHECKING:
    from typing_extensions import Buffer

Precision = Literal["f16", "f32"]
Pieces = Callable[[], "Iterator[tuple[str, Buffer]]"]

PIECE_BYTES = 4 << 20            # few system calls, and nothing beside a 3 GB model
TEXT_BYTES_MAX = 64 << 20        # the largest tokenizer.json in use have about 35 MB
CONVERTER_VERSION = 1            # a partial file of another version is not continued
REMEDY = "fetch or export the file again"
# What may lie beside weights and is kept, under these names.
TEXTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
         "chat_template.jinja", "sentence_bert_config.json", "pooling.json", "README.md", "LICENSE")
MOVED = {"pooling.json": "1_Pooling/config.json"}   # where sentence-transformers keeps it
UNREADABLE_TOKENIZERS = ("tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTensor:
    """One tensor as it will be stored; `pieces` reads it from the beginning, as (part, bytes) in part order.

    dtype, group_size, symmetric and rank are those of Parquet V2. `bytes` counts what is read for it. A piece is
    valid until the next one is asked for.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    pieces: Pieces
    group_size: int = 0
    symmetric: bool = False
    rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model that can be read: its spec, the files that go beside its weights, and its tensors."""

    spec: Mapping[str, Any]
    texts: Mapping[str, bytes]        # config.json and those of TEXTS that there are
    tensors: Sequence[SourceTensor]
    identity: str                     # changes with any file that is read, and with how it is read
    licence: str = "unknown"
    dequantised: int = 0              # tensors whose codes are not kept as codes
    derived_from: str | None = None   # the release that quantised weights were made from

    @property
    def card(self) -> str:
        """The model card, Markdown; empty when there is none."""
        return self.texts.get("README.md", b"").decode("utf-8", errors="replace")


def open_source(path: Path, *, plain: bool = False, precision: Precision = "f16") -> Source:
    """The model at `path`; `plain` asks for no packed tensors. `precision` is that of dequantised codes.

    Raises BadInput for what is no model, ModelCorrupt for a broken one, UnknownArchitecture for what is not read.
    """
    if precision not in ("f16", "f32"):
        raise BadInput(f"{precision!r} is no precision", remedy='"f16" or "f32"')
    folder, files = _weight_files(path)
    first = files[0]
    if first.name.endswith(".parquet"):
        from aios.store.sources_parquet import parquet_source

        return parquet_source(first, precision=precision)
    if first.name.endswith(".gguf"):
        from aios.store.gguf import gguf_source

        return gguf_source(first, plain=plain, precision=precision)
    if first.name.endswith(".safetensors"):
        from aios.store.sources_safetensors import safetensors_source

        return safetensors_source(folder, files)
    from aios.store.sources_checkpoint import checkpoint_source

    return checkpoint_source(folder, files)


def read_pieces(path: Path, begin: int, end: int, *, piece_bytes: int = PIECE_BYTES) -> Iterator[memoryview]:
    """Bytes begin..end of a file, `piece_bytes` at a time; raises ModelCorrupt when the file ends early."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        buffer = bytearray(min(piece_bytes, max(0, end - begin)))
        while begin < end:
            view = memoryview(buffer)[:min(len(buffer), end - begin)]
            filled = 0
            while filled < len(view):
                got = os.preadv(descriptor, [view[filled:]], begin + filled)
                if got == 0:
                    raise ModelCorrupt(f"{path.name} ends at byte {begin + filled}; it was cut while it was read",
                                       remedy=REMEDY, path=str(path))
                filled += got
            yield view
            begin += len(view)
    finally:
        os.close(descriptor)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the native readers' exceptions into ours, naming the file."""
    try:
        yield
    except NotImplementedError as error:
        raise UnknownArchitecture(f"{path.name}: {error}", remedy="choose another variant of this model",
                                  path=str(path)) from error
    except ValueError as error:
        raise ModelCorrupt(f"{path.name}: {error}", remedy=REMEDY, path=str(path)) from error
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}", remedy="name a file you can read") from error


def read_text(path: Path) -> bytes:
    """A small file whole; raises BadInput or ModelCorrupt."""
    with reading(path), path.open("rb") as file:
        raw = file.read(TEXT_BYTES_MAX + 1)
    if len(raw) > TEXT_BYTES_MAX:
        raise ModelCorrupt(f"{path.name} is larger than {TEXT_BYTES_MAX} bytes", remedy=REMEDY, path=str(path))
    return raw


def read_object(path: Path) -> dict[str, Any]:
    """A small JSON file that holds one object; raises BadInput or ModelCorrupt."""
    try:
        return msgspec.json.decode(read_text(path), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelCorrupt(f"{path.name}: {error}", remedy=REMEDY, path=str(path)) from error


def texts_beside(folder: Path) -> dict[str, bytes]:
    """Every file of TEXTS that lies in a folder; raises BadInput when there is no config.json."""
    found = {}
    for name in TEXTS:
        path = next((path for path in (folder / name, folder / MOVED.get(name, name)) if path.is_file()), None)
        if path is not None:
            found[name] = read_text(path)
    if "config.json" not in found:
        raise BadInput(f"there is no config.json in {folder}", remedy="name the folder of a whole model")
    unread = [name for name in UNREADABLE_TOKENIZERS if (folder / name).is_file()]
    if "tokenizer.json" not in found and unread:
        raise UnknownArchitecture(f"{folder.name} has a tokenizer as {unread[0]} only; tokenizer.json is read",
                                  remedy="AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one")
    return found


def licence_of(texts: Mapping[str, bytes]) -> str:
    """The licence that a model card names in its head, else "unknown"."""
    lines = texts.get("README.md", b"")[:4096].decode("utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return "unknown"
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("license:"))
    return next(named, "")[:100] or "unknown"


def identity_of(files: Iterable[Path], *how: str) -> str:
    """A name for these very files, read in this way: a conversion of the same name can be continued."""
    stats = [(path.name, stat.st_size, stat.st_mtime_ns, stat.st_ino)
             for path, stat in ((path, path.stat()) for path in sorted(files))]
    return hashlib.sha256(json.dumps([CONVERTER_VERSION, how, stats]).encode()).hexdigest()


def _weight_files(path: Path) -> tuple[Path, list[Path]]:
    """(folder of the model, files with its weights)."""
    if path.is_file():
        if path.suffix == ".json":   # an index
            return path.parent, _indexed(path)
        if path.suffix not in (".safetensors", ".gguf", ".parquet", ".pt", ".pth", ".bin"):
            raise BadInput(f"{path.name} has none of the endings that are read",
                           remedy="name a folder, or a file .safetensors, .gguf, .parquet, .pt or .bin")
        return path.parent, [path]
    if not path.is_dir():
        raise BadInput(f"there is no model at {path}", remedy="name a folder or a file that exists")
    for name in ("model.parquet", "model.safetensors", "model.safetensors.index.json"):
        if (path / name).is_file():
            return path, _indexed(path / name) if name.endswith(".json") else [path / name]
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) > 1:
        raise BadInput(f"{path} holds {len(ggufs)} GGUF files", remedy=f"name one: {ggufs[0]}")
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
        if not ggufs and (path / name).is_file():
            return path, _indexed(path / name) if name.endswith(".json") else [path / name]
    if not ggufs:
        raise BadInput(f"there are no weights in {path}",
                       remedy="a model folder holds model.safetensors, an index of shards, a GGUF or pytorch_model.bin")
    return path, ggufs


def _indexed(index: Path) -> list[Path]:
    """The shards that an index names, all of them beside it."""
    found = read_object(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(
            isinstance(name, str) and name == Path(name).name and name not in ("", ".", "..")
            for name in found.values()):
        raise ModelCorrupt(f"{index.name} has no map of tensors to files beside it", remedy=REMEDY, path=str(index))
    shards = [index.parent / name for name in sorted(set(found.values()))]
    missing = next((shard for shard in shards if not shard.is_file()), None)
    if missing is not None:
        raise BadInput(f"{index.name} names {missing.name}, which is not there", remedy="fetch all shards")
    return shards
