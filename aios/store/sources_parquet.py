"""Our own files as a source: for export to formats that know no packed codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aios.contracts import PackedTensor
from aios.store.sources import (
    PIECE_BYTES,
    Pieces,
    Precision,
    Source,
    SourceTensor,
    identity_of,
    licence_of,
    read_object,
    texts_beside,
)

if TYPE_CHECKING:
    from torch import Tensor

    from aios.store.weights import WeightLoader

PANEL_ROWS = 32   # of the packed order: any run of panels is a run of every buffer


def parquet_source(path: Path, *, precision: Precision) -> Source:
    """The model of a folder with model.parquet, every packed tensor dequantised to `precision`."""
    from aios.store.weights import WeightLoader

    texts = texts_beside(path.parent)
    loader = WeightLoader.open(path, check="none")
    loader.verify()   # what leaves the house is right
    tensors = [_tensor(loader, name, precision) for name in loader]
    return Source(spec=read_object(path.parent / "config.json"), texts=texts, tensors=tensors,
                  licence=licence_of(texts), identity=identity_of([path], "parquet", precision),
                  dequantised=sum(record.order > 0 for record in loader.records.values()),
                  derived_from=loader.derived_from)


def _tensor(loader: WeightLoader, name: str, precision: Precision) -> SourceTensor:
    record = loader.records[name]
    packed = record.order > 0
    return SourceTensor(name=name, dtype=precision if packed else record.dtype, shape=tuple(record.shape),
                        bytes=record.bytes,
                        pieces=_dequantised(loader, name, precision) if packed else _stored(loader, name))


def _stored(loader: WeightLoader, name: str) -> Pieces:
    def pieces() -> Iterator[tuple[str, memoryview]]:
        view = loader.packed_bytes(name)
        return (("data", view[at:at + PIECE_BYTES]) for at in range(0, len(view), PIECE_BYTES))
    return pieces


def _dequantised(loader: WeightLoader, name: str, precision: Precision) -> Pieces:
    def pieces() -> Iterator[tuple[str, memoryview]]:
        import torch

        from aios.store.quant import ArrowQuant

        whole = loader[name]
        assert isinstance(whole, PackedTensor)
        step = max(1, PIECE_BYTES // (4 * max(1, whole.columns)) // PANEL_ROWS) * PANEL_ROWS
        for first in range(0, whole.rows, step):
            weights: Tensor = ArrowQuant.dequantize(panels(whole, first, min(first + step, whole.rows)))
            weights = weights.half() if precision == "f16" else weights
            if weights.numel():
                raw: Any = weights.contiguous().reshape(-1).view(torch.uint8).numpy()
                yield "data", memoryview(raw)
    return pieces


def panels(packed: PackedTensor, first: int, last: int) -> PackedTensor:
    """Rows first..last of a packed matrix, nothing copied; `first` is a multiple of 32, `last` too or the end."""
    begin, end = first // PANEL_ROWS, -(-last // PANEL_ROWS)
    bytes_each = packed.codes.numel() // max(1, packed.scales.shape[0])
    return replace(packed, rows=last - first, codes=packed.codes[begin * bytes_each:end * bytes_each],
                   scales=packed.scales[begin:end], zeros=None if packed.zeros is None else packed.zeros[begin:end],
                   left=None if packed.left is None else packed.left[first:last])
