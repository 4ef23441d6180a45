"""Parquet V2, the one format of weights: a map of tensors that are used in place, and a writer that can be resumed.

A file is an ordinary Parquet file, one row per tensor; rust/arrow_storage says how it is laid out and what is checked.
Opening reads its tail and checks every count, shape, size and offset; the tensors' bytes are checked in the background
meanwhile, and `intact` tells what that found: call it before anything computed from them leaves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Self, cast

import msgspec

from aios import _native
from aios.contracts import PackedTensor
from aios.errors import BadInput, Busy, LimitExceeded, ModelCorrupt, ModelMissing

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Buffer

FORMAT = "2"
SPEC_BYTES_MAX = 1 << 20      # the largest config.json in the wild is a few hundred KB
PANEL_ROWS = 32               # rows of a panel of the packed order
PACKED_BITS: Final[Mapping[str, int]] = {"int8": 8, "int4": 4, "int2": 2}
REMEDY = "`aios models rm` and `aios models pull` or import it again"
_TORCH: Final[Mapping[str, str]] = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "i64": "int64", "i32": "int32",
    "i16": "int16", "i8": "int8", "u8": "uint8", "bool": "bool"}
_OURS: Final[Mapping[str, str]] = {f"torch.{theirs}": ours for ours, theirs in _TORCH.items()}

Part = Literal["data", "scales", "zeros", "left", "right"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """One tensor of a file, as its directory describes it."""

    name: str
    dtype: str                  # f32 f16 bf16 f64 i64 i32 i16 i8 u8 bool, or packed: int8 int4 int2
    shape: tuple[int, ...]      # the logical shape
    group_size: int             # 0: not packed
    symmetric: bool
    order: int                  # version of the packed order; 0: plain
    rank: int                   # of the residual; 0: none
    offset: int                 # of the data's payload in the file
    bytes: int                  # of all payloads
    checksum: int               # CRC32C over them
    sha256: str


class WeightLoader(Mapping[str, "Tensor | PackedTensor"]):
    """The tensors of a weight file by name; nothing is read before it is used, nothing is copied.

    Not for several threads at once, apart from the check that it runs itself.
    """

    def __init__(self, path: Path, native: _native.WeightFile) -> None:
        self.path = path
        self._native = native
        self._index = {name: index for index, name in enumerate(native.names())}
        self._cache: dict[str, Tensor | PackedTensor] = {}
        pairs = native.metadata()
        self.metadata: Mapping[str, str] = dict(pairs)
        self._check_metadata(len(pairs))

    @classmethod
    def open(cls, path: Path, *, check: Literal["background", "none"] = "background") -> WeightLoader:
        """Map the file; ModelMissing if there is none, ModelCorrupt if it is not a whole Parquet V2 file.

        With check="none" nobody looks at the tensors' bytes until `verify`.
        """
        with _as_corrupt(path):
            return cls(path, _native.WeightFile(path, check == "background"))

    def _check_metadata(self, pairs: int) -> None:
        if len(self.metadata) != pairs:
            self._corrupt("a metadata key is there twice")
        if self.metadata.get("aios.format") != FORMAT:
            self._corrupt(f"its format is {self.metadata.get('aios.format', 'unnamed')[:20]!r}, not {FORMAT!r}")
        self.tensors_sha256 = self._native.tensors_sha256()
        if self.metadata.get("aios.tensors_sha256") != self.tensors_sha256:
            self._corrupt("its identity does not follow from its tensors")
        self.release = self.metadata.get("aios.release", "")
        if self.release != _release(self.spec, self.tokenizer_sha256, self.tensors_sha256):
            self._corrupt("its release does not follow from spec, tokenizer and tensors")

    @cached_property
    def spec(self) -> dict[str, Any]:
        """config.json of the model."""
        raw = self.metadata.get("aios.spec", "")
        if len(raw) > SPEC_BYTES_MAX:
            self._corrupt(f"its spec is larger than {SPEC_BYTES_MAX} bytes")
        try:
            return msgspec.json.decode(raw, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            self._corrupt(f"its spec cannot be read: {error}")

    @property
    def card(self) -> str:
        """The model card, Markdown."""
        return self.metadata.get("aios.card", "")

    @property
    def tokenizer_sha256(self) -> str:
        """SHA-256 of the tokenizer's file, empty where there is none."""
        return self.metadata.get("aios.tokenizer_sha256", "")

    @property
    def derived_from(self) -> str | None:
        """The release that this one was made of, None for an original."""
        return self.metadata.get("aios.derived_from") or None

    @cached_property
    def records(self) -> Mapping[str, TensorRecord]:
        """What the file says about each tensor, in file order."""
        return {name: self._record(index) for name, index in self._index.items()}

    def _record(self, index: int) -> TensorRecord:
        name, dtype, shape, group_size, symmetric, order, rank, parts, checksum, sha256 = self._native.record(index)
        return TensorRecord(
            name=name, dtype=dtype, shape=tuple(shape), group_size=group_size, symmetric=symmetric, order=order,
            rank=rank, offset=parts[0][0], bytes=sum(size for _, size in parts), checksum=checksum, sha256=sha256)

    def __getitem__(self, name: str) -> Tensor | PackedTensor:
        """The tensor over the private map: writing to it changes this process' copy, never the file."""
        if name not in self._cache:
            self._cache[name] = self._tensor(self._index[name])
        return self._cache[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def _tensor(self, index: int) -> Tensor | PackedTensor:
        _, dtype, shape, group_size, symmetric, order, rank, parts, _, _ = self._native.record(index)
        data, scales, zeros, left, right = parts
        if not order:
            if dtype == "bool":   # the one copy: torch takes no byte but 0 and 1 for a bool, a file may hold any
                return self._view(data, "uint8", shape) != 0
            return self._view(data, _TORCH[dtype], shape)
        rows, columns = shape
        grid = [-(-rows // PANEL_ROWS), -(-columns // group_size), PANEL_ROWS]
        return PackedTensor(
            rows=rows, columns=columns, bits=PACKED_BITS[dtype], group_size=group_size, order=order,
            codes=self._view(data, "uint8", [data[1]]), scales=self._view(scales, "float16", grid),
            zeros=None if symmetric else self._view(zeros, "float16", grid),
            left=self._view(left, "float16", [rows, rank]) if rank else None,
            right=self._view(right, "float16", [rank, columns]) if rank else None)

    def _view(self, extent: tuple[int, int], dtype: str, shape: list[int]) -> Tensor:
        import torch

        offset, size = extent
        kind: torch.dtype = getattr(torch, dtype)
        if not size:
            return torch.empty(shape, dtype=kind)
        flat = torch.frombuffer(self._native, dtype=kind, count=size // kind.itemsize, offset=offset)
        return flat if len(shape) == 1 else flat.view(shape)

    def packed_bytes(self, name: str) -> memoryview:
        """The bytes of the tensor's data as they lie in the file, 64-byte aligned, without a copy."""
        offset, size = self._native.record(self._index[name])[7][0]
        return memoryview(self._native)[offset:offset + size]

    def verify(self, progress: Callable[[int, int], object] = lambda done, total: None) -> None:
        """Check every byte of the file; ModelCorrupt names file and tensor. `progress` gets bytes done and in all."""
        sizes = [record.bytes for record in self.records.values()]
        total, done = sum(sizes), 0
        with _as_corrupt(self.path):
            for index, size in enumerate(sizes):
                self._native.verify(index)
                done += size
                progress(done, total)
            self._native.intact(False)

    def intact(self, *, wait: bool) -> None:
        """Raise ModelCorrupt, naming file and tensor, once the file has proved bad; `wait` for the whole check.

        Also when the file was truncated, or could not be read, under a tensor in use.
        """
        with _as_corrupt(self.path):
            self._native.intact(wait)

    def close(self) -> None:
        """End the check and forget the tensors; the map goes with the last tensor that somebody still holds."""
        self._cache.clear()
        self._native.close()

    def _corrupt(self, why: str) -> NoReturn:
        raise ModelCorrupt(f"{self.path.name}: {why}", remedy=REMEDY, path=str(self.path))


class WeightWriter:
    """Writes a weight file, tensor after tensor; the file appears at `path` when `finish` returns, or not at all.

    `source` is the identity of what is converted: a run with the same one goes on where the last was interrupted, and
    `done` names the tensors it need not write again. Without a source nothing is kept. Memory: one piece.
    """

    def __init__(self, path: Path, *, source: str = "") -> None:
        """Raises Busy while another process writes the same file."""
        self.path, self.source = path, source
        with _as_input(path):
            self._native = _native.WeightWriter(path, source)
        self.done: frozenset[str] = frozenset(self._native.done())
        self._finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """An unfinished file is removed, unless it can be resumed."""
        if not self._finished and not self.source:
            self.abandon()

    def begin(self, name: str, dtype: str, shape: tuple[int, ...], *, group_size: int = 0, symmetric: bool = False,
              rank: int = 0) -> Mapping[Part, int]:
        """Begin a tensor and return the bytes that each part must receive; BadInput or LimitExceeded naming it."""
        with _as_input(self.path):
            sizes = self._native.begin(name, dtype, list(shape), group_size, symmetric, rank)
        data, scales, zeros, left, right = sizes
        return {"data": data, "scales": scales, "zeros": zeros, "left": left, "right": right}

    def write(self, part: Part, piece: Buffer) -> None:
        """The next bytes of a part; parts come in their order (see Part), empty ones may be left out."""
        with _as_input(self.path):
            self._native.write(part, piece)

    def end(self) -> None:
        """The tensor is complete, and survives the end of this process."""
        with _as_input(self.path):
            self._native.end()

    def add(self, name: str, tensor: Tensor | PackedTensor) -> None:
        """A whole tensor at once."""
        if isinstance(tensor, PackedTensor):
            self._add_packed(name, tensor)
            return
        dtype = _OURS.get(str(tensor.dtype))
        if dtype is None:
            raise BadInput(f"{name}: {tensor.dtype} cannot be stored", remedy="one of " + ", ".join(_OURS))
        self.begin(name, dtype, tuple(tensor.shape))
        self.write("data", _raw(tensor))
        self.end()

    def _add_packed(self, name: str, packed: PackedTensor) -> None:
        dtype = next((dtype for dtype, bits in PACKED_BITS.items() if bits == packed.bits), None)
        if dtype is None or packed.order != 1:
            raise BadInput(f"{name}: {packed.bits} bits in order {packed.order} cannot be stored",
                           remedy="8, 4 or 2 bits in order 1")
        rank = 0 if packed.left is None else int(packed.left.shape[-1])
        sizes = self.begin(name, dtype, packed.shape, group_size=packed.group_size, symmetric=packed.zeros is None,
                           rank=rank)
        parts = packed.parts
        for part, size in sizes.items():
            tensor = parts.get(part)
            given = 0 if tensor is None else tensor.numel() * tensor.element_size()
            kind = "torch.uint8" if part == "data" else "torch.float16"
            if given != size or (tensor is not None and str(tensor.dtype) != kind):
                raise BadInput(f"{name}: its {part} has {given} bytes, {size} of {kind} were expected")
        for part in sizes:
            if part in parts:
                self.write(part, _raw(parts[part]))
        self.end()

    def finish(self, *, spec: Mapping[str, Any], card: str, tokenizer_sha256: str,
               derived_from: str | None = None) -> str:
        """Write the directory, sync, and move the file to its place; returns the release."""
        with _as_input(self.path):
            canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
            if len(canonical) > SPEC_BYTES_MAX:
                raise LimitExceeded(f"the spec is larger than {SPEC_BYTES_MAX} bytes")
            # The release of what a reader will find: JSON makes strings of numbers used as keys.
            release = _release(msgspec.json.decode(canonical), tokenizer_sha256, self._native.tensors_sha256())
            self._native.finish([
                ("aios.spec", canonical), ("aios.card", card), ("aios.tokenizer_sha256", tokenizer_sha256),
                ("aios.release", release), ("aios.derived_from", derived_from or "")])
        self._finished = True
        return release

    def abandon(self) -> None:
        """Give up: remove what was written."""
        with _as_input(self.path):
            self._native.abandon()
        self._finished = True


def _raw(tensor: Tensor) -> Buffer:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return cast("Buffer", flat.view(torch.uint8).numpy())


def _release(spec: Mapping[str, Any], tokenizer_sha256: str, tensors_sha256: str) -> str:
    from aios.store.record import release_id  # which imports this module

    return release_id(spec, tokenizer_sha256, tensors_sha256)


@contextmanager
def _as_corrupt(path: Path) -> Iterator[None]:
    """What reading may meet, as ModelMissing or ModelCorrupt with the file's and the tensor's name."""
    try:
        yield
    except FileNotFoundError as error:
        raise ModelMissing(f"{path} does not exist", remedy="`aios models pull` it, or import it",
                           path=str(path)) from error
    except OSError as error:
        raise ModelCorrupt(f"{path.name}: {error.strerror or error}", remedy=REMEDY, path=str(path)) from error
    except _native.StorageError as error:
        kind, tensor, why = error.args
        if kind == "input":
            raise BadInput(f"{path.name}: {why}") from error
        named = f"{path.name}: tensor {tensor}" if tensor is not None else path.name
        details = {"tensor": tensor} if tensor is not None else {}
        raise ModelCorrupt(f"{named}: {why}", remedy=REMEDY, path=str(path), **details) from error


@contextmanager
def _as_input(path: Path) -> Iterator[None]:
    """What writing may meet, as BadInput, LimitExceeded or Busy; the system's own refusals stay OSError."""
    try:
        yield
    except _native.StorageError as error:
        kind, tensor, why = error.args
        message = f"{path.name}: tensor {tensor}: {why}" if tensor is not None else f"{path.name}: {why}"
        if kind == "busy":
            raise Busy(message, remedy="wait for it to end") from error
        raise (LimitExceeded if kind == "limit" else BadInput)(message) from error
    except (BufferError, OverflowError, TypeError, ValueError) as error:   # the wrong kind of argument
        raise BadInput(f"{path.name}: {error}") from error
