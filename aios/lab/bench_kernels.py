"""`aios bench kernels`: products with packed weights beside the machine's peaks and torch, at sizes of three models.

What is timed is one layer's seven products as a network calls them, from Python, over weights that were not used for
longer than the last-level cache holds. Arms take turns, so that a slower moment of the machine meets all of them; a
row counts the products of all three models over the sum of their median times, and says each model's beside.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aios.lab.machine import machine_facts
from aios.lab.report import LabOptions, Report, Row

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# Each list: matrices (rows, columns) that read one input, of one layer.
Layer = tuple[tuple[tuple[int, int], ...], ...]
MODELS: Final[Mapping[str, Layer]] = {
    "135M": (((576, 576), (192, 576), (192, 576)), ((576, 576),), ((1536, 576), (1536, 576)), ((576, 1536),)),
    "350M": (((1024, 1024),) * 3, ((1024, 1024),), ((2816, 1024), (2816, 1024)), ((1024, 2816),)),
    "600M": (((2048, 1024), (1024, 1024), (1024, 1024)), ((1024, 2048),), ((3072, 1024), (3072, 1024)),
             ((1024, 3072),)),
}
BITS: Final = (8, 4, 2)
ROWS: Final = (1, 16, 64, 128, 512)
GROUP_SIZE: Final = 128
POOL_BYTES: Final = 160 << 20          # of codes, more than twice any last-level cache that this was measured on
SCALES: Final = POOL_BYTES * 4 // GROUP_SIZE * 10 // 9     # of all that 2 bits make of it; 576 is no whole groups
PEER_BYTES: Final = 96 << 20           # of a peer's weights: they are larger than ours and leave the cache sooner
REPEATS, REPEATS_QUICK = 15, 3
SLOW_REPEATS: Final = 3                # of arms that are ten times slower than the best
CALLS, CALLS_QUICK = 4000, 1000
PEAK_MUST, PEAK_AIM = 0.6, 0.8
READ: Final[Mapping[int, tuple[float, float]]] = {8: (0.7, 0.95), 4: (0.6, 0.85), 2: (0.4, 0.75)}
FLOAT: Final[Mapping[bool, tuple[float, float]]] = {False: (3.0, 4.5), True: (1.0, 1.5)}   # with AMX or without

Arm = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all arms share."""

    threads: int
    repeats: int
    isa: str
    rng: np.random.Generator
    pool: Tensor            # random codes
    halves: Tensor          # random scales


def run(options: LabOptions) -> Report:
    """All rows; about three minutes, less than one without 512 rows."""
    import torch

    before = torch.get_num_threads()
    setting = _setting(options)
    torch.set_num_threads(setting.threads)
    try:
        with torch.inference_mode():
            rows = [*_shares(setting, options), *_reading(setting, options), *_beside_torch(setting, options),
                    _dispatch(setting, options)]
    finally:
        torch.set_num_threads(before)
    return Report.of("kernels", rows, options)


def _setting(options: LabOptions) -> Setting:
    import torch

    rng = np.random.default_rng(options.seed)
    pool = torch.from_numpy(rng.integers(0, 256, POOL_BYTES, dtype=np.uint8))
    halves = torch.from_numpy(rng.uniform(0.001, 0.01, SCALES).astype(np.float16))
    return Setting(threads=len(os.sched_getaffinity(0)), repeats=REPEATS_QUICK if options.quick else REPEATS,
                   isa=machine_facts()["isa"], rng=rng, pool=pool, halves=halves)


def _layers(setting: Setting, layer: Layer, bits: int, activation_bits: int) -> Iterator[list[list[nn.Module]]]:
    """Layers without end, each over the next piece of the pool."""
    from aios.contracts import PackedTensor
    from aios.model.quant_linear import QuantLinear, use_activation_bits

    zeros = -setting.halves * 2 ** (bits - 1)
    made: list[list[list[nn.Module]]] = []
    code = scale = 0
    while code + _weights(layer) * bits // 8 <= POOL_BYTES:
        made.append([[] for _ in layer])
        for linears, group in zip(made[-1], layer, strict=True):
            for rows, columns in group:
                shape = rows // 32, -(-columns // GROUP_SIZE), 32
                last = code + rows * columns * bits // 8, scale + shape[0] * shape[1] * shape[2]
                linear = QuantLinear(PackedTensor(
                    rows=rows, columns=columns, bits=bits, group_size=GROUP_SIZE, order=1,
                    scales=setting.halves[scale:last[1]].reshape(shape), zeros=zeros[scale:last[1]].reshape(shape),
                    codes=setting.pool[code:last[0]]))
                use_activation_bits(linear, activation_bits)
                linears.append(linear)
                code, scale = last
    while True:
        yield from made


def _arm(layers: Iterator[list[list[nn.Module]]], inputs: Mapping[int, Tensor]) -> Arm:
    """One layer's products; the next call takes the next layer."""
    from aios.model.quant_linear import linear_together

    def call() -> None:
        for group in next(layers):
            first: Any = group[0]
            linear_together(group, inputs[first.packed.packed.columns])

    return call


def _inputs(setting: Setting, layer: Layer, m: int) -> dict[int, Tensor]:
    import torch

    widths = {columns for group in layer for _, columns in group}
    return {width: torch.from_numpy(setting.rng.standard_normal((m, width), dtype=np.float32)) for width in widths}


def _weights(layer: Layer) -> int:
    return sum(rows * columns for group in layer for rows, columns in group)


def _turns(arms: Sequence[Arm], repeats: int) -> list[float]:
    """Median seconds of each arm; they take turns, after a warm-up."""
    seconds: list[list[float]] = [[] for _ in arms]
    for turn in range(repeats + 2):
        for arm, taken in zip(arms, seconds, strict=True):
            began = time.perf_counter()
            arm()
            if turn > 1:
                taken.append(time.perf_counter() - began)
    return [median(taken) for taken in seconds]


def _shares(setting: Setting, options: LabOptions) -> list[Row]:
    """The part of the exact int8 peak that products of many rows reach, and their rates."""
    from aios.lab.kernel_peaks import SEQUENCES

    rows: list[Row] = []
    for index, m in enumerate(ROWS[1:-1] if options.quick else ROWS[1:]):     # 512 rows take as long as all others
        options.progress(f"{m} rows", 0.05 + 0.1 * index)
        rates = _rates(setting, m, 8)
        best, name = max((rates[name][0], name) for name in SEQUENCES)
        judged = m in (64, 128)
        peak = f"peak {best / 1e9:.0f} GOP/s ({SEQUENCES[name]}, exact for bytes, no loads)"
        worst = min(rates[f"INT{bits}"][0] for bits in BITS)
        rows.append(Row(
            metric=f"int8_peak_share_m{m}", value=worst / best if best else None, unit="", better="higher",
            must=PEAK_MUST if judged else None, aim=PEAK_AIM if judged else None, n=setting.repeats,
            excused=not best, reason=f"{_said(setting)}, 8-bit activations, the worst of INT8, INT4, INT2; {peak}"))
        rows += [_rate_row(setting, f"int{bits}_gops_m{m}", rates[f"INT{bits}"], 8) for bits in BITS]
        if m == 128:
            exact = _rates(setting, m, 16)
            rows += [_rate_row(setting, f"int{bits}_a16_gops_m{m}", exact[f"INT{bits}"], 16) for bits in BITS]
    return rows


def _rates(setting: Setting, m: int, activation_bits: int) -> dict[str, tuple[float, dict[str, float]]]:
    """Operations a second of the peaks and of every width, in turns: over all models, and of each."""
    from aios.lab.kernel_peaks import SEQUENCES, operations, run_products

    peaks = {name: operations(name, setting.threads) for name in SEQUENCES}
    found: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in (*peaks, *(f"INT{b}" for b in BITS))}
    for model, layer in MODELS.items():
        inputs = _inputs(setting, layer, m)
        arms: list[Arm] = [partial(run_products, name, setting.threads) for name in peaks]
        arms += [_arm(_layers(setting, layer, bits, activation_bits), inputs) for bits in BITS]
        work = [*peaks.values(), *(2.0 * m * _weights(layer) for _ in BITS)]
        for name, operations_, seconds in zip(found, work, _turns(arms, setting.repeats), strict=True):
            found[name][model] = operations_, seconds
    return {name: (sum(work for work, _ in each.values()) / sum(seconds for _, seconds in each.values()),
                   {model: work / seconds for model, (work, seconds) in each.items()})
            for name, each in found.items()}


def _rate_row(setting: Setting, metric: str, found: tuple[float, dict[str, float]], activation_bits: int) -> Row:
    each = ", ".join(f"{model} {rate / 1e9:.0f}" for model, rate in found[1].items())
    return Row(metric=metric, value=found[0] / 1e9, unit="GOP/s", better="higher", n=setting.repeats,
               reason=f"{_said(setting)}, {activation_bits}-bit activations; {each}")


def _said(setting: Setting) -> str:
    return f"{setting.isa}, {setting.threads} threads, groups of {GROUP_SIZE}"


def _reading(setting: Setting, options: LabOptions) -> list[Row]:
    """The part of the read bandwidth at which one row reads its weights."""
    from aios.lab.kernel_peaks import read_bytes_per_s

    rows: list[Row] = []
    memory = setting.pool.numpy()
    for index, bits in enumerate(BITS):
        options.progress(f"one row, INT{bits}", 0.5 + 0.05 * index)
        seconds, read, bandwidths = 0.0, 0.0, []
        each = []
        for model, layer in MODELS.items():
            layers, inputs = _layers(setting, layer, bits, 16), _inputs(setting, layer, 1)
            taken = _turns([_arm(layers, inputs)], 20 * setting.repeats)[0]
            bandwidths += [read_bytes_per_s(memory, setting.threads) for _ in range(setting.repeats)]
            size = _weights(layer) * (bits / 8 + 4 / GROUP_SIZE)     # a scale and a zero of two bytes each
            seconds, read = seconds + taken, read + size
            each.append(f"{model} {size / taken / 1e9:.1f}")
        bandwidth = median(bandwidths)
        must, aim = READ[bits]
        rows.append(Row(metric=f"read_bandwidth_share_m1_int{bits}", value=read / seconds / bandwidth, unit="",
                        better="higher", must=must, aim=aim, n=20 * setting.repeats,
                        reason=f"{_said(setting)}, 16-bit activations; of {bandwidth / 1e9:.1f} GB/s: "
                               + ", ".join(each)))
    return rows


def _beside_torch(setting: Setting, options: LabOptions) -> list[Row]:
    """128 rows beside torch's float and int8 products, arms in turns."""
    import torch

    m, names = 128, ["INT8", "INT4", "INT2", "fp32", "dynamic int8"]
    total = dict.fromkeys(names, 0.0)
    for index, (model, layer) in enumerate(MODELS.items()):
        options.progress(f"beside torch, {model}", 0.65 + 0.1 * index)
        inputs = _inputs(setting, layer, m)
        arms = [*(_arm(_layers(setting, layer, bits, 8), inputs) for bits in BITS),
                _plain(setting, layer, inputs, torch.float32), _dynamic(setting, layer, inputs)]
        for name, seconds in zip(names, _turns(arms, setting.repeats), strict=True):
            total[name] += seconds
    layer = MODELS["135M"]              # what is ten times slower, on the smallest model only
    inputs = _inputs(setting, layer, m)
    half = _turns([_plain(setting, layer, {k: x.bfloat16() for k, x in inputs.items()}, torch.bfloat16)], SLOW_REPEATS)
    exact = _turns([_int_mm(setting, layer, m)], 1)
    work = 2.0 * m * sum(map(_weights, MODELS.values()))
    small = 2.0 * m * _weights(layer)
    rates = {name: work / seconds for name, seconds in total.items()}
    rates |= {"bf16": small / half[0], "_int_mm": small / exact[0]}
    amx = setting.isa == "amx"
    return [*_versus(setting, "vs_torch_float_m128", rates, ("fp32", "bf16"), *FLOAT[amx]),
            *_versus(setting, "vs_torch_int8_m128", rates, ("_int_mm", "dynamic int8"), 1.0, 1.5)]


def _versus(setting: Setting, metric: str, rates: Mapping[str, float], peers: tuple[str, str], must: float,
            aim: float) -> list[Row]:
    """The headline is the mean speed of our three widths beside the better peer; each width stands below it."""
    import torch

    best = max(rates[peer] for peer in peers)
    ours = {bits: rates[f"INT{bits}"] for bits in BITS}
    said = ", ".join(f"{peer} {rates[peer] / 1e9:.0f}" for peer in peers)
    facts: dict[str, Any] = {"unit": "x", "better": "higher", "n": setting.repeats, "peer": "torch",
                             "peer_version": str(torch.__version__)}
    note = f"{_said(setting)}, 8-bit activations; GOP/s: {said}"
    mean = len(ours) / sum(1 / rate for rate in ours.values())
    each = ", ".join(f"INT{bits} {rate / 1e9:.0f}" for bits, rate in ours.items())
    return [Row(metric=metric, value=mean / best, must=must, aim=aim, **facts,
                reason=f"harmonic mean of INT8, INT4, INT2; {note}, {each}"),
            *(Row(metric=f"int{bits}_{metric}", value=rate / best, **facts, reason=note)
              for bits, rate in ours.items())]


def _copies(layer: Layer, bytes_each: int) -> int:
    return max(2, -(-PEER_BYTES // (_weights(layer) * bytes_each)))


def _plain(setting: Setting, layer: Layer, inputs: Mapping[int, Tensor], dtype: torch.dtype) -> Arm:
    """torch.nn.functional.linear over distinct float weights."""
    import torch

    shapes = [shape for group in layer for shape in group]
    sets = [[torch.randn(shape).to(dtype) for shape in shapes] for _ in range(_copies(layer, dtype.itemsize))]
    turn = iter(range(1 << 60))

    def call() -> None:
        for weight in sets[next(turn) % len(sets)]:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    return call


def _dynamic(setting: Setting, layer: Layer, inputs: Mapping[int, Tensor]) -> Arm:
    """torch's dynamically quantised linear layers, as they come."""
    import torch

    def quantised(rows: int, columns: int) -> Any:
        one = torch.nn.Sequential(torch.nn.Linear(columns, rows, bias=False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")      # of torch, about its own future
            quantise: Any = torch.ao.quantization.quantize_dynamic
            return quantise(one, {torch.nn.Linear}, dtype=torch.qint8)

    shapes = [shape for group in layer for shape in group]
    sets = [[(columns, quantised(rows, columns)) for rows, columns in shapes] for _ in range(_copies(layer, 1))]
    turn = iter(range(1 << 60))

    def call() -> None:
        for columns, linear in sets[next(turn) % len(sets)]:
            linear(inputs[columns])

    return call


def _int_mm(setting: Setting, layer: Layer, m: int) -> Arm:
    """torch._int_mm: raw integers, no scales."""
    import torch

    def of(*shape: int) -> Tensor:
        return torch.from_numpy(setting.rng.integers(-127, 128, shape, dtype=np.int8))

    pairs = [(of(m, columns), of(rows, columns)) for group in layer for rows, columns in group]

    def call() -> None:
        for x, weight in pairs:
            torch._int_mm(x, weight.t())

    return call


def _dispatch(setting: Setting, options: LabOptions) -> Row:
    """The smallest call from Python: one row, 32 by 32, everything in the cache."""
    import torch

    from aios.contracts import PackedTensor
    from aios.model.quant_linear import QuantLinear

    options.progress("the smallest call", 0.98)
    halves = setting.halves[:32].reshape(1, 1, 32)
    linear = QuantLinear(PackedTensor(rows=32, columns=32, bits=8, group_size=GROUP_SIZE, order=1, scales=halves,
                                      zeros=None, codes=setting.pool[:1024]))
    x, calls = torch.ones(1, 32), CALLS_QUICK if options.quick else CALLS
    taken = []
    for _ in range(calls):
        began = time.perf_counter()
        linear(x)
        taken.append(time.perf_counter() - began)
    return Row(metric="dispatch_us", value=median(taken) * 1e6, unit="us", better="lower", must=30, aim=8, n=calls,
               reason=f"{setting.isa}; QuantLinear of 32 by 32 on one row, as a network calls it")
