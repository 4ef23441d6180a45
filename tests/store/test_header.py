"""A tensor file is believed only when every byte of it is accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios.errors import ModelCorrupt
from aios.store.header import HEADER_BYTES_MAX, check_tensors


def write(path: Path, header: object, payload: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + payload)
    return path


def tensor(begin: int, end: int, shape: list[int], dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_are_listed_in_file_order(tmp_path: Path) -> None:
    header = {"__metadata__": {"k": "v"}, "b": tensor(2, 10, [1, 2], "F32"), "a": tensor(0, 2, [2])}
    path = write(tmp_path / "m", header, bytes(10))
    assert [(e.name, e.begin, e.end, e.shape) for e in check_tensors(path)] == [("a", 0, 2, (2,)), ("b", 2, 10, (1, 2))]


@pytest.mark.parametrize(("header", "payload"), [
    ({}, b""),
    (b"[]", b""),
    (b"{", b""),
    (b"[" * 100_000, b""),
    (b"\xff\xfe", b""),
    ({"a": 3}, b""),
    ({"a": tensor(0, 4, [4])}, bytes(3)),                                  # truncated
    ({"a": tensor(0, 4, [4])}, bytes(5)),                                  # bytes that belong to nobody
    ({"a": tensor(1, 5, [4])}, bytes(5)),                                  # a gap in front
    ({"a": tensor(0, 4, [4]), "b": tensor(5, 6, [1])}, bytes(6)),          # a gap between
    ({"a": tensor(0, 4, [4]), "b": tensor(3, 5, [2])}, bytes(5)),          # an overlap
    ({"a": tensor(0, 4, [4]), "b": tensor(0, 4, [4])}, bytes(4)),          # the same bytes twice
    ({"a": tensor(0, 4, [5])}, bytes(4)),                                  # shape and bytes disagree
    ({"a": tensor(0, 4, [1], "F64")}, bytes(4)),
    ({"a": tensor(0, 4, [2**62, 4])}, bytes(4)),
    ({"a": tensor(0, 4, [-2, -2])}, bytes(4)),
    ({"a": tensor(-4, 0, [4])}, bytes(4)),
    ({"a": tensor(0, 4, [4], "PICKLE")}, bytes(4)),
    ({"a": tensor(0, 1, [1] * 9)}, bytes(1)),
    ({"a": tensor(0, 4, [4]) | {"extra": 1}}, bytes(4)),
    ({"a": {"dtype": "U8", "shape": [4]}}, bytes(4)),
    ({"a": tensor(0, 4, ["4"])}, bytes(4)),  # type: ignore[list-item]
])
def test_a_lying_header_is_refused_by_name(tmp_path: Path, header: object, payload: bytes) -> None:
    with pytest.raises(ModelCorrupt, match="weights"):
        check_tensors(write(tmp_path / "weights", header, payload))


@pytest.mark.parametrize("length", [1, 100, HEADER_BYTES_MAX + 1, 2**63, 2**64 - 1])
def test_a_header_longer_than_its_file_is_refused_before_it_is_read(tmp_path: Path, length: int) -> None:
    path = tmp_path / "weights"
    path.write_bytes(length.to_bytes(8, "little"))
    with pytest.raises(ModelCorrupt, match="a header of"):
        check_tensors(path)


@given(data=st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_bytes_never_do_anything_but_raise(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(data)
    with pytest.raises(ModelCorrupt):
        check_tensors(path)
