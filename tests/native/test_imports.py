"""Foreign files are believed only when every byte of them is accounted for; their blocks mean what ggml says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aios import _native
from aios.contracts import PackedTensor
from aios.store.quant import ArrowQuant

REFUSALS = (ValueError, NotImplementedError)
# Where a block keeps halves: everything else in it may be any byte.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2],
          "Q6_K": [208]}


def safetensors_file(header: object, payload: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + payload


def tensor(begin: int, end: int, shape: list[int], dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (rows * columns // elements, size), dtype=np.uint8)
    for at in HALVES[kind]:
        halves = rng.normal(0, 0.1, len(blocks)).astype(np.float16)
        blocks[:, at:at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return blocks


def test_safetensors_are_listed_in_file_order_by_path_and_from_bytes(tmp_path: Path) -> None:
    header = {"__metadata__": {"k": "v"}, "b": tensor(2, 10, [1, 2], "F32"), "a": tensor(0, 2, [2])}
    data = safetensors_file(header, bytes(10))
    (tmp_path / "m").write_bytes(data)
    begin = len(data) - 10
    expected = [("a", "u8", [2], begin, begin + 2), ("b", "f32", [1, 2], begin + 2, begin + 10)]
    assert _native.read_safetensors(str(tmp_path / "m")) == _native.read_safetensors(data) == expected


@pytest.mark.parametrize(("header", "payload"), [
    ({}, b""),
    (b"[]", b""),
    (b"{", b""),
    (b"[" * 100_000, b""),
    (b'{"__metadata__":' + b"[" * 100_000, b""),
    (b"\xff\xfe", b""),
    ({"a": 3}, b""),
    ({"a": tensor(0, 4, [4])}, bytes(3)),                                  # truncated
    ({"a": tensor(0, 4, [4])}, bytes(5)),                                  # bytes that belong to nobody
    ({"a": tensor(1, 5, [4])}, bytes(5)),                                  # a gap in front
    ({"a": tensor(0, 4, [4]), "b": tensor(5, 6, [1])}, bytes(6)),          # a gap between
    ({"a": tensor(0, 4, [4]), "b": tensor(3, 5, [2])}, bytes(5)),          # an overlap
    ({"a": tensor(0, 4, [4]), "b": tensor(0, 4, [4])}, bytes(4)),          # the same bytes twice
    (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
     bytes(2)),                                                            # the same name twice
    (b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', bytes(1)),
    ({"a": tensor(0, 4, [5])}, bytes(4)),                                  # shape and bytes disagree
    ({"a": tensor(0, 4, [1], "F64")}, bytes(4)),
    ({"a": tensor(0, 4, [2**62, 4])}, bytes(4)),
    ({"a": tensor(0, 0, [0, 2**62, 4])}, b""),
    ({"a": tensor(0, 4, [-2, -2])}, bytes(4)),
    ({"a": tensor(-4, 0, [4])}, bytes(4)),
    ({"a": tensor(4, 0, [4])}, bytes(4)),
    ({"a": tensor(0, 4, [4], "PICKLE")}, bytes(4)),
    ({"a": tensor(0, 1, [1] * 9)}, bytes(1)),
    ({"a": tensor(0, 4, [4]) | {"extra": 1}}, bytes(4)),
    ({"a": {"dtype": "U8", "shape": [4]}}, bytes(4)),
    ({"a": tensor(0, 4, ["4"])}, bytes(4)),  # type: ignore[list-item]
    ({"a" * 513: tensor(0, 4, [4])}, bytes(4)),
])
def test_a_lying_safetensors_header_is_refused(header: object, payload: bytes) -> None:
    with pytest.raises(REFUSALS):
        _native.read_safetensors(safetensors_file(header, payload))


@pytest.mark.parametrize("length", [1, 100, (16 << 20) + 1, 2**63, 2**64 - 1])
def test_a_header_longer_than_its_file_is_refused_before_it_is_read(length: int) -> None:
    with pytest.raises(ValueError, match="a header of"):
        _native.read_safetensors(length.to_bytes(8, "little"))


@given(data=st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_bytes_never_do_anything_but_raise(data: bytes) -> None:
    for read in (_native.read_safetensors, _native.read_gguf):
        with pytest.raises(REFUSALS):
            read(data)
        with pytest.raises(REFUSALS):
            read(b"GGUF" + (3).to_bytes(4, "little") + data[:-1] + b"\xff" * 16)


@pytest.mark.parametrize("source", [3, None, "", "\0", "/nonexistent/file", [b"x"], "\udcff"])
def test_what_is_no_file_raises(source: Any) -> None:
    for read in (_native.read_safetensors, _native.read_gguf):
        with pytest.raises((OSError, TypeError, ValueError, BufferError)):
            read(source)


@pytest.mark.parametrize("kind", HALVES)
def test_blocks_have_the_very_values_of_the_reference(kind: str) -> None:
    blocks = random_blocks(kind, 100, 512)
    expected = gguf.dequantize(blocks, GGMLQuantizationType[kind]).ravel()
    single = np.frombuffer(_native.gguf_dequantize(kind, blocks), np.float32)
    assert np.array_equal(single.view(np.uint32), expected.view(np.uint32))
    half = np.frombuffer(_native.gguf_dequantize(kind, blocks, half=True), np.float16)
    assert np.array_equal(half.view(np.uint16), expected.astype(np.float16).view(np.uint16))


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 96])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_repacked_blocks_stand_for_the_same_values(kind: str, rows: int) -> None:
    import torch

    columns, panels = 96, -(-rows // 32)
    blocks = random_blocks(kind, rows, columns)
    codes, scales, zeros = _native.gguf_pack(kind, blocks, rows, columns)
    shape = panels, columns // 32, 32
    packed = PackedTensor(
        rows=rows, columns=columns, bits=_native.gguf_block(kind)[2], group_size=32,
        codes=torch.frombuffer(bytearray(codes), dtype=torch.uint8),
        scales=torch.frombuffer(bytearray(scales), dtype=torch.float16).view(shape),
        zeros=None if zeros is None else torch.frombuffer(bytearray(zeros), dtype=torch.float16).view(shape))
    expected = gguf.dequantize(blocks, GGMLQuantizationType[kind]).reshape(rows, columns)
    assert np.array_equal(ArrowQuant.dequantize(packed).numpy(), expected)


def test_wrong_blocks_are_refused() -> None:
    block = bytes(18)
    for call in (
            lambda: _native.gguf_dequantize("Q4_0", block[:-1]), lambda: _native.gguf_dequantize("I32", bytes(4)),
            lambda: _native.gguf_dequantize("Q2_K", block), lambda: _native.gguf_block("nonsense"),
            lambda: _native.gguf_pack("Q4_0", block, 1, 64), lambda: _native.gguf_pack("Q4_0", block, 1 << 40, 1 << 40),
            lambda: _native.gguf_pack("Q6_K", bytes(210), 1, 256), lambda: _native.gguf_pack("Q4_0", b"", 1, 0 + 31)):
        with pytest.raises(REFUSALS):
            call()
    with pytest.raises(ValueError, match="f16"):
        _native.gguf_dequantize("F32", np.float32(1e6).tobytes(), half=True)
    assert _native.gguf_dequantize("Q4_0", b"") == b""
