"""The header of a safetensors file, checked before anything is mapped or allocated.

Layout: 8 bytes little-endian header length, a JSON object name -> {dtype, shape, data_offsets}, then the
tensors, back to back. Source: the safetensors format description, version 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

import msgspec

from aios.errors import ModelCorrupt

LENGTH_BYTES = 8
HEADER_BYTES_MAX = 16 << 20    # a model of 100,000 tensors needs about 10 MB
TENSORS_MAX = 100_000
AXES_MAX = 8
DTYPE_BYTES: Final[Mapping[str, int]] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
REMEDY = "pull or export the model again"


class _Extent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorExtent:
    """Where one tensor lies in the file: `begin` and `end` count bytes from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def check_tensors(path: Path) -> tuple[TensorExtent, ...]:
    """Every tensor of the file in file order; raises ModelCorrupt naming the file when anything does not add up.

    The tensors must cover the rest of the file exactly: no gap, no overlap, nothing behind the end.
    """
    header, payload_bytes = _read_header(path)
    extents = sorted((_extent(path, name, entry) for name, entry in header.items()), key=lambda e: (e.begin, e.end))
    end = 0
    for extent in extents:
        if extent.begin != end:
            raise _corrupt(path, f"tensor {extent.name!r} begins at {extent.begin}, the one before ends at {end}")
        end = extent.end
    if end != payload_bytes:
        raise _corrupt(path, f"tensors end at byte {end}, the file at {payload_bytes}: it is truncated or padded")
    return tuple(extents)


def _read_header(path: Path) -> tuple[dict[str, object], int]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES or length > min(HEADER_BYTES_MAX, size - LENGTH_BYTES):
            raise _corrupt(path, f"a header of {length} bytes in a file of {size}")
        raw = file.read(length)
    try:
        header = msgspec.json.decode(raw, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _corrupt(path, f"its header is no JSON object: {error}") from error
    header.pop("__metadata__", None)
    if not 0 < len(header) <= TENSORS_MAX:
        raise _corrupt(path, f"{len(header)} tensors; 1 to {TENSORS_MAX} are possible")
    return header, size - LENGTH_BYTES - length


def _extent(path: Path, name: str, entry: object) -> TensorExtent:
    try:
        found = msgspec.convert(entry, _Extent)
    except msgspec.ValidationError as error:
        raise _corrupt(path, f"tensor {name[:80]!r}: {error}") from error
    begin, end = found.data_offsets
    if found.dtype not in DTYPE_BYTES:
        raise _corrupt(path, f"tensor {name[:80]!r} has the unknown type {found.dtype[:20]!r}")
    if len(found.shape) > AXES_MAX or any(axis < 0 for axis in found.shape):
        raise _corrupt(path, f"tensor {name[:80]!r} has an impossible shape")
    if begin < 0 or end - begin != prod(found.shape) * DTYPE_BYTES[found.dtype]:
        raise _corrupt(path, f"tensor {name[:80]!r} of shape {found.shape} does not fit its bytes {begin}..{end}")
    return TensorExtent(name=name, dtype=found.dtype, shape=tuple(found.shape), begin=begin, end=end)


def _corrupt(path: Path, why: str) -> ModelCorrupt:
    return ModelCorrupt(f"{path.name}: {why}", remedy=REMEDY, path=str(path))
