"""Safetensors files, one or several shards, with the files of a Hugging Face folder beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from aios.errors import ModelCorrupt
from aios.store.sources import (
    REMEDY,
    Pieces,
    Source,
    SourceTensor,
    identity_of,
    licence_of,
    read_object,
    read_pieces,
    reading,
    texts_beside,
)


def safetensors_source(folder: Path, shards: Sequence[Path]) -> Source:
    """The model of one or several files; their tensors in file order, unchanged."""
    texts = texts_beside(folder)
    tensors = check_unique([tensor for shard in shards for tensor in shard_tensors(shard)], shards[0])
    return Source(spec=read_object(folder / "config.json"), texts=texts, tensors=tensors, licence=licence_of(texts),
                  identity=identity_of([*shards, folder / "config.json"], "safetensors"))


def shard_tensors(path: Path) -> list[SourceTensor]:
    """Every tensor of a file in file order; raises ModelCorrupt unless they cover it exactly."""
    from aios._native import read_safetensors

    with reading(path):
        extents = read_safetensors(str(path))
    return [SourceTensor(name=name, dtype=dtype, shape=tuple(shape), bytes=end - begin,
                         pieces=stored(path, begin, end))
            for name, dtype, shape, begin, end in extents]


def stored(path: Path, begin: int, end: int) -> Pieces:
    """The bytes of a file as they are, as a tensor's data."""
    def pieces() -> Iterator[tuple[str, memoryview]]:
        return (("data", piece) for piece in read_pieces(path, begin, end))
    return pieces


def check_unique(tensors: list[SourceTensor], path: Path) -> list[SourceTensor]:
    """The tensors; raises ModelCorrupt when two have one name."""
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise ModelCorrupt(f"the tensor {tensor.name[:80]!r} is stored twice", remedy=REMEDY, path=str(path))
        seen.add(tensor.name)
    return tensors
