"""A safetensors file written tensor by tensor, for those who read no Parquet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aios.errors import ModelCorrupt
from aios.store.sources import REMEDY, SourceTensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Buffer

DTYPE_BYTES: Final[Mapping[str, int]] = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "i16": 2,
                                         "i8": 1, "u8": 1, "bool": 1}
ALIGNMENT = 8   # the header is padded with spaces, so that tensors can be used in place


class SafetensorsWriter:
    """Takes the tensors it was made for, in their order; PATH appears whole at `finish` or not at all.

    It is driven like a WeightWriter; `done` is always empty: an interrupted file is written anew.
    """

    done: Final[frozenset[str]] = frozenset()

    def __init__(self, path: Path, tensors: Sequence[SourceTensor]) -> None:
        self._path = path
        self._staged = path.with_name(path.name + ".partial")
        self._missing = 0
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for tensor in tensors:
            size = prod(tensor.shape) * DTYPE_BYTES[tensor.dtype]
            entry = {"dtype": tensor.dtype.upper(), "shape": tensor.shape, "data_offsets": (at, at + size)}
            header[tensor.name] = entry
            at += size
        raw = msgspec.json.encode(header)
        raw += b" " * (-len(raw) % ALIGNMENT)
        self._staged.unlink(missing_ok=True)
        descriptor = os.open(self._staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._file.write(len(raw).to_bytes(8, "little") + raw)

    def begin(self, name: str, dtype: str, shape: Sequence[int], **_: Any) -> None:
        """Start the next tensor."""
        self._missing = prod(shape) * DTYPE_BYTES[dtype]

    def write(self, part: str, piece: Buffer) -> None:
        """Its next bytes."""
        self._missing -= memoryview(piece).nbytes
        self._file.write(piece)

    def end(self) -> None:
        """The tensor is complete; raises ModelCorrupt when it is not."""
        if self._missing:
            raise ModelCorrupt(f"a tensor has {-self._missing} bytes too many", remedy=REMEDY, path=str(self._path))

    def finish(self, **_: Any) -> None:
        """All tensors are written: force them to disk and give the file its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._staged.replace(self._path)

    def abandon(self) -> None:
        """Nothing comes of it."""
        self._file.close()
        self._staged.unlink(missing_ok=True)
