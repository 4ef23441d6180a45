"""Torch checkpoints: only such as torch reads without running anything that is stored in them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aios.errors import BadInput, ModelCorrupt, UnknownArchitecture
from aios.store.sources import (
    PIECE_BYTES,
    Pieces,
    Source,
    SourceTensor,
    identity_of,
    licence_of,
    read_object,
    texts_beside,
)
from aios.store.sources_safetensors import check_unique

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

DTYPES: Final[Mapping[str, str]] = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "int64": "i64", "int32": "i32",
    "int16": "i16", "int8": "i8", "uint8": "u8", "bool": "bool"}
INNER = ("state_dict", "model")   # where training scripts put the tensors
TENSORS_MAX = 100_000


def checkpoint_source(folder: Path, files: Sequence[Path]) -> Source:
    """The model of one or several checkpoints; raises ModelCorrupt for one that holds more than tensors."""
    texts = texts_beside(folder)
    tensors = [_described(name, tensor) for file in files for name, tensor in _tensors(file).items()]
    return Source(spec=read_object(folder / "config.json"), texts=texts, tensors=check_unique(tensors, files[0]),
                  licence=licence_of(texts), identity=identity_of([*files, folder / "config.json"], "checkpoint"))


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, mapped."""
    import torch

    if not zipfile.is_zipfile(path):
        raise BadInput(f"{path.name} is no checkpoint that can be mapped", path=str(path),
                       remedy="torch.save it again with torch >= 1.6, or better: save it as safetensors")
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:   # torch raises what it likes: UnpicklingError, RuntimeError, KeyError, ...
        raise ModelCorrupt(f"{path.name} is no checkpoint of plain tensors: {str(error)[:300]}", path=str(path),
                           remedy="save the model as safetensors") from error
    for key in INNER:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not 0 < len(found) <= TENSORS_MAX or not all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items()):
        raise ModelCorrupt(f"{path.name} holds no dictionary of tensors", path=str(path),
                           remedy="torch.save(model.state_dict(), FILE) makes one")
    return found


def _described(name: str, tensor: Tensor) -> SourceTensor:
    dtype = DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None or tensor.is_sparse or tensor.is_quantized:
        raise UnknownArchitecture(f"the tensor {name[:80]!r} is of {tensor.dtype}, {tensor.layout}",
                                  remedy="only dense tensors of plain types are read")
    return SourceTensor(name=name, dtype=dtype, shape=tuple(tensor.shape), bytes=tensor.nbytes,
                        pieces=_pieces(tensor))


def _pieces(tensor: Tensor) -> Pieces:
    def pieces() -> Iterator[tuple[str, memoryview]]:
        import torch

        flat = tensor.detach().contiguous().reshape(-1)
        if flat.numel() == 0:
            return
        raw: Any = flat.view(torch.uint8).numpy()
        view = memoryview(raw)
        yield from (("data", view[at:at + PIECE_BYTES]) for at in range(0, len(view), PIECE_BYTES))
    return pieces
