"""Laws of the native packed matrix: it multiplies what the order says, and refuses what does not fit."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aios._native import PackedMatrix, matmul_together

Floats = NDArray[np.float32]


def codes_of(data: NDArray[np.uint8], rows: int, columns: int, bits: int) -> NDArray[np.uint8]:
    """Plain codes (rows, columns), read as the order's text says: panels, blocks, bytes 4r + q, bits b*u."""
    per_block = 32 // bits
    panels, blocks = -(-rows // 32), -(-columns // 32) * 32 // per_block
    data = data.reshape(panels, blocks, 32, 1, 4)
    shifts = np.arange(8 // bits, dtype=np.uint8)[:, None] * bits
    plain = (data >> shifts) & (2**bits - 1)                     # panel, block, row, u, q
    return plain.transpose(0, 2, 1, 3, 4).reshape(panels * 32, -1)[:rows, :columns]


def random_matrix(seed: int, rows: int, columns: int, bits: int, group: int, *, symmetric: bool,
                  rank: int) -> tuple[PackedMatrix, Floats]:
    """A matrix of random bytes, padding included, and its weights."""
    rng = np.random.default_rng(seed)
    panels, groups = -(-rows // 32), -(-columns // group)
    data = rng.integers(0, 256, panels * 32 * (-(-columns // 32) * 32) * bits // 8, dtype=np.uint8)

    def halves(*shape: int) -> NDArray[np.float16]:
        return rng.standard_normal(shape).astype(np.float16)

    scales, zeros = halves(panels, groups, 32), None if symmetric else halves(panels, groups, 32)
    left, right = (halves(rows, rank), halves(rank, columns)) if rank else (None, None)
    parts = [None if part is None else part.view(np.uint16) for part in (scales, zeros, left, right)]
    matrix = PackedMatrix(rows, columns, bits, group, data, *parts)

    def spread(values: NDArray[np.float16]) -> Floats:
        by_row = values.transpose(0, 2, 1).reshape(panels * 32, groups).astype(np.float32)
        return np.repeat(by_row, group, axis=1)[:rows, :columns]

    codes = codes_of(data, rows, columns, bits).astype(np.float32)
    weights = spread(scales) * (codes - 2**(bits - 1)) if zeros is None else spread(zeros) + spread(scales) * codes
    if left is not None and right is not None:
        weights = weights + left.astype(np.float32) @ right.astype(np.float32)
    return matrix, weights


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 80), columns=st.integers(1, 200), m=st.integers(0, 9),
       bits=st.sampled_from([8, 4, 2]), group=st.sampled_from([32, 64, 128]), symmetric=st.booleans(),
       rank=st.sampled_from([0, 0, 1, 7]), threads=st.integers(1, 3))
def test_products_rows_and_weights_are_those_of_the_order(
        seed: int, rows: int, columns: int, m: int, bits: int, group: int, symmetric: bool, rank: int,
        threads: int) -> None:
    matrix, weights = random_matrix(seed, rows, columns, bits, group, symmetric=symmetric, rank=rank)
    rng = np.random.default_rng(seed)
    dense = np.empty((rows, columns), np.float32)
    matrix.dequantize(dense, threads)
    if rank:
        np.testing.assert_allclose(dense, weights, rtol=1e-5, atol=1e-3)
    else:
        np.testing.assert_array_equal(dense, weights)
    ids = rng.integers(0, rows, m)
    some = np.empty((m, columns), np.float32)
    matrix.gather(ids, some, threads)
    np.testing.assert_array_equal(some, dense[ids])
    x = rng.standard_normal((m, columns)).astype(np.float32)
    y = np.full((m, rows), np.nan, np.float32)
    matrix.matmul(x, y, threads)
    size = np.abs(x).astype(np.float64) @ (np.abs(weights) + 300).T.astype(np.float64)
    assert (np.abs(y - x.astype(np.float64) @ dense.T.astype(np.float64)) <= 1e-6 * size).all()


@pytest.fixture
def matrix() -> PackedMatrix:
    return random_matrix(1, 40, 50, 4, 32, symmetric=False, rank=2)[0]


def f32(*shape: int) -> Floats:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(("x", "y"), [
    (f32(2, 50), f32(2, 41)), (f32(2, 49), f32(2, 40)), (f32(3), f32(0)), (f32(2, 50), f32(3, 40)),
    (f32(2, 50).astype(np.float64), f32(2, 40)), (f32(2, 50), f32(2, 40).astype(np.int32)),
    (f32(50, 2).T, f32(2, 40)), (f32(2, 50), f32(40, 2).T), (b"no floats", f32(2, 40)), (None, f32(2, 40)),
    (f32(2, 50), f32(2, 40).tobytes()), ([0.0] * 50, f32(40)), (f32(2, 50), None)])
def test_buffers_that_do_not_fit_are_refused(matrix: PackedMatrix, x: Any, y: Any) -> None:
    with pytest.raises((ValueError, TypeError, BufferError)):
        matrix.matmul(x, y)


def test_a_result_may_not_overlap_its_input(matrix: PackedMatrix) -> None:
    both = f32(200)
    with pytest.raises(BufferError, match="overlaps"):
        matrix.matmul(both[:50], both[20:60])


@pytest.mark.parametrize("ids", [[-1], [40], [2**62], [0, 39, 40]])
def test_a_row_that_does_not_exist_is_an_index_error(matrix: PackedMatrix, ids: list[int]) -> None:
    with pytest.raises(IndexError, match="no row"):
        matrix.gather(np.array(ids), f32(len(ids), 50))


@pytest.mark.parametrize("change", [
    {"rows": 41 + 24}, {"rows": -1}, {"rows": 2**62}, {"columns": 65}, {"columns": 2**63 - 1}, {"bits": 3}, {"bits": 0},
    {"group_size": 48}, {"group_size": 0}, {"codes": np.zeros(1, np.uint8)}, {"codes": np.zeros(2048, np.float32)},
    {"scales": np.zeros(127, np.uint16)}, {"scales": np.zeros(128, np.float16)}, {"zeros": np.zeros(0, np.uint16)},
    {"left": np.zeros((40, 2), np.uint16)}, {"left": np.zeros((40, 300), np.uint16),
                                            "right": np.zeros((300, 50), np.uint16)},
    {"left": np.zeros(0, np.uint16), "right": np.zeros(0, np.uint16)}, {"codes": "text"}, {"scales": None}])
def test_parts_that_make_no_matrix_are_refused(change: dict[str, Any]) -> None:
    parts = {"rows": 40, "columns": 50, "bits": 4, "group_size": 32, "codes": np.zeros(2048, np.uint8),
             "scales": np.zeros(128, np.uint16)}
    PackedMatrix(**parts)
    with pytest.raises((ValueError, TypeError, BufferError, OverflowError)):
        PackedMatrix(**{**parts, **change})


def test_empty_matrices_work() -> None:
    empty = np.zeros(0, np.uint8), np.zeros(0, np.uint16)
    for rows, columns in itertools.product((0, 3), (0, 5)):
        if rows and columns:
            continue
        matrix = PackedMatrix(rows, columns, 4, 32, *empty)
        y = np.ones((2, rows), np.float32)
        matrix.matmul(f32(2, columns), y)
        assert not y.any()
        matrix.dequantize(f32(rows, columns))


def test_activations_have_32_16_or_8_bits() -> None:
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 256, 32 * 32, dtype=np.uint8)
    matrix = PackedMatrix(32, 32, 8, 32, codes, np.full((1, 1, 32), 0x2C00, np.uint16))
    x, exact = rng.standard_normal((4, 32), np.float32), np.zeros((4, 32), np.float32)
    matrix.matmul(x, exact)
    for bits, error_max in ((16, 1e-4), (8, 1.5e-2)):
        out = np.zeros_like(exact)
        matrix.matmul(x, out, 1, bits)
        assert np.abs(out - exact).max() < error_max * np.abs(exact).max()
    with pytest.raises(ValueError, match="32, 16 or 8"):
        matrix.matmul(x, exact, 1, 4)
    with pytest.raises(ValueError, match="16 or 8"):
        matmul_together([matrix], x, [exact], 1, 32)
    with pytest.raises(ValueError, match="not as many"):
        matmul_together([matrix], x, [], 1, 16)
    with pytest.raises(BufferError, match="overlaps"):
        matmul_together([matrix, matrix], x, [exact, exact], 1, 16)
    matmul_together([], x, [])


def test_products_run_on_the_threads_of_torch() -> None:
    script = """
import sys, threading
from pathlib import Path
import torch
from aios import _native
from aios.model.quant_linear import QuantLinear
from aios.store.quant import ArrowQuant
library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
print(_native.join_openmp(str(library)), _native.join_openmp("/nowhere/libtorch_cpu.so"), _native.join_openmp("a\\0b"))
torch.set_num_threads(3)
QuantLinear(ArrowQuant.quantize(torch.ones(512, 512)))(torch.ones(16, 512))
names = {task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
print(any(name.startswith("aios-matmul") for name in names), len(list(Path("/proc/self/task").iterdir())) > 2)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    if told[0] == "False":
        pytest.skip("this torch has no OpenMP")
    assert told == ["True", "False", "False", "False", "True"]
