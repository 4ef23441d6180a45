"""Files of version 2 that are read for ever, and that the writer still writes byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from aios.contracts import PackedTensor
from aios.store.weights import WeightLoader, WeightWriter

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "weights"
SPEC = {"model_type": "llama", "hidden_size": 3, "note": "grüße"}
FINISH = {"card": "# Golden\n\nRead for ever.\n", "tokenizer_sha256": "0" * 64}
RELEASES = {
    "plain": "ddf0b0f9c7ea", "packed": "0f8ea4835391",
}


def ramp(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    count = int(torch.Size(shape).numel())
    return (torch.arange(count) * 37 % 251).to(dtype).reshape(shape)


def packed(bits: int, group_size: int, *, symmetric: bool, rank: int) -> PackedTensor:
    rows, columns = 2, 65
    groups = -(-columns // group_size)
    codes = ramp(32 * 96 * bits // 8, dtype=torch.uint8)
    return PackedTensor(
        rows=rows, columns=columns, bits=bits, group_size=group_size, codes=codes, scales=ramp(1, groups, 32),
        zeros=None if symmetric else -ramp(1, groups, 32), left=ramp(rows, rank) if rank else None,
        right=ramp(rank, columns) if rank else None)


CONTENT: dict[str, dict[str, Tensor | PackedTensor]] = {
    "plain": {
        "f32": ramp(2, 3, dtype=torch.float32) / 7, "f16": ramp(5), "bf16": ramp(1, 2, 3, dtype=torch.bfloat16),
        "f64": ramp(3, dtype=torch.float64) / 3, "i64": -ramp(4, dtype=torch.int64), "i32": ramp(2, dtype=torch.int32),
        "i16": ramp(2, 2, dtype=torch.int16), "i8": -ramp(3, dtype=torch.int8), "u8": ramp(9, dtype=torch.uint8),
        "bool": torch.tensor([[True], [False]]), "scalar": torch.tensor(0.5), "empty": torch.empty(2, 0)},
    "packed": {
        "int8": packed(8, 32, symmetric=True, rank=0), "int4": packed(4, 64, symmetric=False, rank=0),
        "int2": packed(2, 128, symmetric=False, rank=2)},
}


def parts(tensor: Tensor | PackedTensor) -> dict[str, Tensor]:
    return {"data": tensor} if isinstance(tensor, Tensor) else dict(tensor.parts)


@pytest.mark.parametrize("name", CONTENT)
def test_a_golden_file_is_read_as_it_was_meant(name: str) -> None:
    loader = WeightLoader.open(FOLDER / f"{name}.parquet")
    loader.verify()
    assert (loader.spec, loader.card) == (SPEC, FINISH["card"])
    assert loader.release[:12] == RELEASES[name]
    assert list(loader) == list(CONTENT[name])
    for tensor, expected in CONTENT[name].items():
        found = loader[tensor]
        assert found.shape == expected.shape and parts(found).keys() == parts(expected).keys()
        for part, value in parts(expected).items():
            assert parts(found)[part].dtype == value.dtype and torch.equal(parts(found)[part], value), (tensor, part)


@pytest.mark.parametrize("name", CONTENT)
def test_the_writer_still_writes_a_golden_file_byte_for_byte(name: str, tmp_path: Path) -> None:
    written = tmp_path / "model.parquet"
    with WeightWriter(written) as writer:
        for tensor, value in CONTENT[name].items():
            writer.add(tensor, value)
        writer.finish(spec=SPEC, card=FINISH["card"], tokenizer_sha256=FINISH["tokenizer_sha256"],
                      derived_from="1" * 64 if name == "packed" else None)
    assert written.read_bytes() == (FOLDER / f"{name}.parquet").read_bytes()
