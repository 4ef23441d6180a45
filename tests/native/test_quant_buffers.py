"""The quantiser's native functions refuse every buffer that is not what they say, and survive any values."""

from __future__ import annotations

import numpy as np
import pytest

from aios import _native

ROWS, COLUMNS, BITS, GROUP = 40, 70, 4, 32
SIZES = (ROWS, COLUMNS, BITS, GROUP)
CODES, SCALES = 64 * 96 * BITS // 8, (2, 3, 32)
REFUSED = (ValueError, BufferError, TypeError, OverflowError)


def parts(zeros: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    return np.zeros(CODES, np.uint8), np.zeros(SCALES, np.uint16), np.zeros(SCALES, np.uint16) if zeros else None


def frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


WRONG = {
    "nothing": None, "bytes": b"12345678", "a string": "codes", "empty": np.zeros(0, np.float32),
    "one axis": np.zeros(ROWS * COLUMNS, np.float32), "three axes": np.zeros((1, ROWS, COLUMNS), np.float32),
    "f64": np.zeros((ROWS, COLUMNS)), "strided": np.zeros((ROWS, 2 * COLUMNS), np.float32)[:, ::2],
    "transposed": np.zeros((COLUMNS, ROWS), np.float32).T, "too narrow": np.zeros((ROWS, COLUMNS - 40), np.float32),
    "swapped bytes": np.zeros((ROWS, COLUMNS), ">f4"), "reversed": np.zeros((ROWS, COLUMNS), np.float32)[::-1],
    "no stride": np.broadcast_to(np.float32(0), (ROWS, COLUMNS)),
    "unaligned": np.frombuffer(bytes(4 * ROWS * COLUMNS + 1), np.uint8)[1:].view("f4").reshape(ROWS, COLUMNS),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_must_be_a_plain_f32_matrix(name: str) -> None:
    for method in (_native.quant_rtn, _native.quant_hqq):
        with pytest.raises(REFUSED):
            method(WRONG[name], BITS, GROUP, parts(), 1)
    with pytest.raises(REFUSED):
        _native.quant_gptq(WRONG[name], BITS, GROUP, parts(), 1, hessian=np.eye(COLUMNS), damping=0.01, search=True)
    with pytest.raises(REFUSED):
        _native.quant_dequantize(SIZES, parts(), frozen(np.zeros((ROWS, COLUMNS), np.float32)), 1)


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("wrong", [
    np.zeros(CODES - 1, np.uint8), np.zeros(CODES + 1, np.uint8), np.zeros(SCALES, np.float16),
    np.zeros(192 * 2, np.uint16)[::2], np.zeros(191, np.uint16), frozen(np.zeros(CODES, np.uint8)),
    frozen(np.zeros(SCALES, np.uint16)), np.zeros(0, np.uint16), 7, object()])
def test_outputs_must_be_writable_and_of_the_right_size(index: int, wrong: object) -> None:
    out = list(parts())
    out[index] = wrong
    with pytest.raises(REFUSED):
        _native.quant_rtn(np.zeros((ROWS, COLUMNS), np.float32), BITS, GROUP, tuple(out), 1)
    with pytest.raises(REFUSED):
        _native.quant_pack(SIZES, (np.zeros((ROWS, COLUMNS), np.uint8), np.zeros((ROWS, 3), np.uint16),
                                   np.zeros((ROWS, 3), np.uint16)), tuple(out), 1)


def test_an_output_may_not_overlap_another_buffer() -> None:
    codes, scales, _ = parts()
    weights = np.zeros((ROWS, COLUMNS), np.float32)
    with pytest.raises(BufferError):
        _native.quant_rtn(weights, BITS, GROUP, (codes, scales, scales), 1)
    memory = np.zeros(ROWS * COLUMNS * 4 + CODES, np.uint8)
    inside = memory[8:8 + ROWS * COLUMNS * 4].view(np.float32).reshape(ROWS, COLUMNS)
    with pytest.raises(BufferError):
        _native.quant_rtn(inside, BITS, GROUP, (memory[:CODES], *parts()[1:]), 1)
    with pytest.raises(BufferError):
        _native.quant_dequantize(SIZES, (memory[:CODES], *parts()[1:]), inside, 1)


@pytest.mark.parametrize("sizes", [
    (-1, 1, 4, 32), (1, 1, 5, 32), (1, 1, 4, 0), (2 ** 63, 1, 4, 32), (2 ** 64, 1, 4, 32), (2 ** 30, 2 ** 30, 8, 32),
    (2 ** 62, 2 ** 62, 8, 32), (1, 1, 4), ("a", 1, 4, 32), (1.5, 1, 4, 32), None])
def test_sizes_that_lie_are_refused(sizes: object) -> None:
    with pytest.raises(REFUSED):
        _native.quant_dequantize(sizes, parts(), np.zeros((ROWS, COLUMNS), np.float32), 1)
    with pytest.raises(REFUSED):
        _native.quant_unpack(sizes, parts(), (np.zeros((ROWS, COLUMNS), np.uint8), *parts()[1:]), 1)


@pytest.mark.parametrize("threads", [0, 1, 10 ** 9])
def test_any_number_of_threads_will_do(threads: int) -> None:
    out = parts()
    _native.quant_rtn(np.ones((ROWS, COLUMNS), np.float32), BITS, GROUP, out, threads)
    assert out[2][0, 0, 0] == np.float16(1).view(np.uint16)


def test_random_bit_patterns_are_quantised_or_refused_and_packed_ones_read() -> None:
    noise = np.random.default_rng(5)
    for _ in range(200):
        rows, columns = (int(size) for size in noise.integers(0, 70, 2))
        bits, group = int(noise.choice((8, 4, 2))), int(noise.choice((32, 64, 128)))
        panels, groups, wide = -(-rows // 32), -(-columns // group), -(-columns // 32) * 32
        shape = (panels, groups, 32)
        out = (noise.integers(0, 256, panels * 32 * wide * bits // 8, np.uint8),
               noise.integers(0, 1 << 16, shape, np.uint16), noise.integers(0, 1 << 16, shape, np.uint16))
        plain = np.empty((rows, columns), np.float32)
        _native.quant_dequantize((rows, columns, bits, group), out, plain, 1)
        weights = noise.integers(0, 1 << 32, (rows, columns), np.uint32).view(np.float32)
        for method in (_native.quant_rtn, _native.quant_hqq):
            for values in (weights, np.clip(np.nan_to_num(weights), -65504, 65504).astype(np.float32)):
                try:
                    method(values, bits, group, out, 1)
                except ValueError:
                    assert not (np.abs(values) <= 65504).all()


@pytest.mark.parametrize("shape", [(0, 0), (1, 0), (0, 3), (41, 2), (40, 300)])
def test_factors_must_fit_the_loss(shape: tuple[int, int]) -> None:
    lost = np.ones((40, 70), np.float32)
    with pytest.raises(REFUSED):
        _native.quant_residual(lost, np.zeros(shape, np.uint16), np.zeros((shape[1], 70), np.uint16), 1)
    with pytest.raises(REFUSED):
        _native.quant_residual(lost, np.zeros((40, 2), np.uint16), np.zeros((2, 70), np.uint16), 1,
                               hessian=np.full((70, 70), np.nan))
    with pytest.raises(REFUSED):
        _native.quant_residual(lost * np.nan, np.zeros((40, 2), np.uint16), np.zeros((2, 70), np.uint16), 1)
