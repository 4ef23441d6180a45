"""`aios bench quant`: ArrowQuant beside plain NumPy, hqq and torchao on the same matrix, and converting a large model.

Where a peer quantises to the same format the row is how many times faster ours is, and only if it loses no more: a
faster result that is worse is no result.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aios.lab.machine import torch_threads
from aios.lab.report import LabOptions, Report, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from aios.contracts import PackedTensor

ROWS, COLUMNS = 1536, 576       # a feed-forward matrix of a 135M model
GROUP_SIZE = 64
REPEATS, REPEATS_QUICK = 21, 5
INSTALL: Final = "install the peer: pip install 'aios-daemon[bench]'"

Run = Callable[[], object]


def run(options: LabOptions) -> Report:
    """All rows; about two minutes, most of them for the large model."""
    from aios.lab import bench_convert

    weights = _weights(options.seed)
    rows: list[Row] = []
    for index, bits in enumerate((4, 2)):
        options.progress(f"INT{bits} beside NumPy", 0.05 * index)
        rows += _beside_numpy(weights, bits, options)
    options.progress("beside hqq", 0.1)
    rows += _beside(options, weights, "hqq_vs_hqq_peer", "hqq", _hqq, {"method": "hqq"})
    options.progress("beside torchao", 0.2)
    rows += _beside(options, weights, "rtn_vs_torchao", "torchao", _torchao, {"symmetric": True})
    options.progress("converting a large model", 0.3)
    return Report.of("quant", [*rows, *bench_convert.rows(options)], options)


def _weights(seed: int) -> Tensor:
    """Random weights of a layer's size and spread."""
    import torch

    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed)) * 0.05


def _beside_numpy(weights: Tensor, bits: int, options: LabOptions) -> list[Row]:
    """One thread each; the loop's codes, scales and zeros are ours to the bit."""
    from aios.store.quant import ArrowQuant

    def ours() -> PackedTensor:
        return ArrowQuant.quantize(weights, bits=bits, group_size=GROUP_SIZE, threads=1)

    array, repeats = weights.numpy(), _repeats(options)
    packed, (codes, scales, zeros) = ours(), row_loop(array, bits)
    _, our_scales, our_zeros = ArrowQuant.unpack(packed)
    assert our_zeros is not None
    if not (np.array_equal(packed.codes.numpy(), codes) and np.array_equal(our_scales.numpy(), scales)
            and np.array_equal(our_zeros.numpy(), zeros)):
        return [Row(metric=f"int{bits}_rtn_vs_python", value=None, unit="x", better="higher", must=5, aim=50,
                    reason="the loop's result differs from ours")]
    mine, theirs = _interleaved([ours, lambda: row_loop(array, bits)], repeats)
    facts: dict[str, Any] = {"peer": "NumPy, row by row", "peer_version": np.__version__, "n": repeats}
    note = f"{ROWS}x{COLUMNS}, groups of {GROUP_SIZE}, 1 thread each, results equal to the bit"
    return [Row(metric=f"int{bits}_rtn_vs_python", value=theirs / mine, unit="x", better="higher", must=5, aim=50,
                reason=note, **facts),
            Row(metric=f"int{bits}_rtn_ms", value=mine * 1e3, unit="ms", better="lower", peer_value=theirs * 1e3,
                **facts)]


def row_loop(weights: NDArray[np.float32], bits: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Packed codes, scales and zeros (rows, groups) of round-to-nearest as one writes it in NumPy, row by row.

    Rows are a multiple of 32, columns of the group size.
    """
    rows, columns = weights.shape
    most, together = 2 ** bits - 1, 8 // bits
    codes = np.empty((rows // 32, columns * bits // 32, 32, 4), np.uint8)
    scales = np.empty((rows, columns // GROUP_SIZE), np.float16)
    zeros = np.empty_like(scales)
    shifts = (bits * np.arange(together, dtype=np.uint8))[:, None]
    for at, row in enumerate(weights):
        groups = row.reshape(-1, GROUP_SIZE)
        zeros[at] = groups.min(axis=1)
        zero = zeros[at].astype(np.float32)
        scales[at] = (groups.max(axis=1) - zero) / np.float32(most)
        inverse = np.float32(1) / scales[at].astype(np.float32)
        places = (groups - zero[:, None]) * inverse[:, None]
        plain = np.rint(places.clip(0, most)).astype(np.uint8).reshape(-1, together, 4)
        codes[at // 32, :, at % 32] = np.bitwise_or.reduce(plain << shifts, axis=1)
    return codes.reshape(-1), scales, zeros


def _beside(options: LabOptions, weights: Tensor, metric: str, package: str,
            peer: Callable[[Tensor], tuple[Callable[[], Run], Callable[[], Tensor]]],
            settings: dict[str, Any]) -> list[Row]:
    """Ours beside a peer at 4 bits, on the number of threads at which the peer is fastest."""
    from aios.store.quant import ArrowQuant

    shape: dict[str, Any] = {"metric": metric, "unit": "x", "better": "higher", "must": 1.0, "aim": 2.0,
                             "peer": package}
    try:
        release = version(package)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")      # of the peer, about its own future
            prepare, result = peer(weights)
    except (PackageNotFoundError, ImportError) as error:
        return [Row(**shape, value=None, reason=f"{INSTALL} ({error})")]
    repeats = _repeats(options)
    timed: list[tuple[float, float, int]] = []
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        def ours(threads: int = threads) -> PackedTensor:
            return ArrowQuant.quantize(weights, bits=4, group_size=GROUP_SIZE, threads=threads, **settings)

        with torch_threads(threads):
            seconds = _interleaved([lambda: ours, prepare], repeats, prepared=True)
        timed.append((seconds[0], seconds[1], threads))
    mine, theirs, threads = min(timed, key=lambda times: times[1])
    packed = ArrowQuant.quantize(weights, bits=4, group_size=GROUP_SIZE, **settings)
    lost, peer_lost = _lost(weights, ArrowQuant.dequantize(packed)), _lost(weights, result())
    note = (f"{ROWS}x{COLUMNS}, 4 bits, groups of {GROUP_SIZE}, {threads} threads each; "
            f"relative squared error {lost:.6f}, peer {peer_lost:.6f}")
    facts: dict[str, Any] = {"peer_version": release, "n": repeats}
    worse = lost > peer_lost
    return [Row(**shape, **facts, value=None if worse else theirs / mine,
                reason=f"ours loses more: {note}" if worse else note),
            Row(metric=metric.partition("_vs_")[0] + f"_beside_{package}_ms", value=mine * 1e3, unit="ms",
                better="lower", peer=package, peer_value=theirs * 1e3, **facts)]


def _hqq(weights: Tensor) -> tuple[Callable[[], Run], Callable[[], Tensor]]:
    """hqq with its own optimiser, in f32 on the CPU."""
    import torch

    quantizer = import_module("hqq.core.quantize").Quantizer

    def quantize() -> tuple[Tensor, dict[str, Any]]:
        made: tuple[Tensor, dict[str, Any]] = quantizer.quantize(
            weights, nbits=4, group_size=GROUP_SIZE, axis=1, device="cpu", compute_dtype=torch.float32)
        return made

    def result() -> Tensor:
        codes, meta = quantize()
        left: Tensor = quantizer.dequantize(codes, {**meta, "compute_dtype": torch.float32})
        return left.reshape(weights.shape)

    return lambda: quantize, result


def _torchao(weights: Tensor) -> tuple[Callable[[], Run], Callable[[], Tensor]]:
    """torchao's IntxWeightOnly on a linear layer, symmetric, as it comes."""
    import torch

    api, granularity = import_module("torchao.quantization"), import_module("torchao.quantization.granularity")
    int4: torch.dtype = getattr(torch, "int4")   # noqa: B009  torch's stubs do not list it
    config = api.IntxWeightOnlyConfig(weight_dtype=int4, granularity=granularity.PerGroup(GROUP_SIZE))

    def layer() -> torch.nn.Linear:
        linear = torch.nn.Linear(COLUMNS, ROWS, bias=False, device="meta")
        linear.weight = torch.nn.Parameter(weights.clone(), requires_grad=False)
        return linear

    def prepare() -> Run:
        linear = layer()
        return lambda: api.quantize_(linear, config)

    def result() -> Tensor:
        linear = layer()
        api.quantize_(linear, config)
        packed: Any = linear.weight
        left: Tensor = packed.dequantize()
        return left

    return prepare, result


def _lost(weights: Tensor, left: Tensor) -> float:
    """Squared error relative to the weights' squares."""
    return float((weights - left).square().sum() / weights.square().sum())


def _interleaved(arms: Sequence[Callable[[], Any]], repeats: int, *, prepared: bool = False) -> list[float]:
    """Median seconds of each arm, which take turns, after a warm-up; `prepared` arms make anew what is timed."""
    seconds: list[list[float]] = [[] for _ in arms]
    for turn in range(repeats + 1):
        for arm, taken in zip(arms, seconds, strict=True):
            work = arm() if prepared else arm
            began = time.perf_counter()
            work()
            if turn:
                taken.append(time.perf_counter() - began)
    return [median(taken) for taken in seconds]


def _repeats(options: LabOptions) -> int:
    return REPEATS_QUICK if options.quick else REPEATS
