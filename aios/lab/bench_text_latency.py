"""`aios bench text-latency`: how long a whole text of masks takes to become words, on networks of random weights.

Random weights take as long as learned ones and write nothing. A run is what a request costs inside the worker: every
step is a whole forward (embeddings, attention, norms, feed-forward, the head at masked positions) and a draw.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from aios.lab.load_models import random_codes, score_network, shapes
from aios.lab.machine import machine_facts, torch_threads
from aios.lab.report import LabOptions, Report, Row

if TYPE_CHECKING:
    from aios.model.denoiser import TextDenoiser

STEPS: Final = 4
BITS, GROUP_SIZE = 2, 128
REPEATS, REPEATS_QUICK = 15, 5
SAMPLER: Final = "confidence"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One row: which network, how many tokens, and what is asked of it."""

    metric: str
    network: str
    tokens: int
    must: float
    aim: float


ROWS: Final = (
    Measured(metric="ac2_64_ms", network="350M", tokens=64, must=300, aim=170),
    Measured(metric="ac2_128_ms", network="350M", tokens=128, must=500, aim=330),
    Measured(metric="minilm_scale_4_steps_ms", network="22M", tokens=64, must=500, aim=60),
)


def run(options: LabOptions) -> Report:
    """All rows, the two sizes one after another; under a minute."""
    import torch

    rows: list[Row] = []
    with torch_threads() as threads, torch.inference_mode():
        for name in ("350M", "22M"):
            options.progress(f"a network of {name} parameters", len(rows) / len(ROWS))
            spec = specification(name)
            denoise = denoiser(spec, options.seed)
            for one in ROWS:
                if one.network == name:
                    options.progress(f"{one.tokens} tokens, {name} parameters", len(rows) / len(ROWS))
                    rows.append(_row(one, spec, denoise, options, threads))
    return Report.of("text-latency", rows, options)


def specification(name: str) -> dict[str, Any]:
    """config.json of the network: 342M parameters, or about those of MiniLM."""
    spec = score_network(24)
    if name == "22M":
        from aios.model.config import TransformerConfig

        spec |= {"transformer": TransformerConfig.of(384, 6, ffn_dim=1024).to_dict(), "vocab_size": 30_522}
    return spec


def denoiser(spec: dict[str, Any], seed: int) -> TextDenoiser:
    """The network with random codes for weights, as samplers see it."""
    import torch

    from aios.model.denoiser import TextDenoiser
    from aios.model.score_network import TextScoreNetwork

    generator = torch.Generator().manual_seed(seed)
    tensors = {name: random_codes(shape, BITS, GROUP_SIZE, generator) if len(shape) == 2 and shape[0] >= 32
               else torch.ones(shape) for name, shape in shapes(spec).items()}
    network = TextScoreNetwork.open(spec, tensors).eval()
    return TextDenoiser(network, end_ids=(spec["tokens"]["eot"],))


def _row(one: Measured, spec: dict[str, Any], denoise: TextDenoiser, options: LabOptions, threads: int) -> Row:
    taken = [_seconds(one.tokens, denoise, options.seed + turn)
             for turn in range(1 + (REPEATS_QUICK if options.quick else REPEATS))][1:]
    middle = median(taken)
    work = operations(spec, one.tokens)
    facts = machine_facts()
    return Row(metric=one.metric, value=middle * 1e3, unit="ms", better="lower", must=one.must, aim=one.aim,
               n=len(taken), reason=(
                   f"random weights, INT{BITS} in groups of {GROUP_SIZE}, 8-bit activations, {STEPS} steps, batch 1, "
                   f"{threads} threads, {facts['isa']}; {min(taken) * 1e3:.0f} to {max(taken) * 1e3:.0f} ms; its "
                   f"products are {work / 1e9:.0f} billion operations, {work / middle / 1e9:.0f} a second"))


def operations(spec: dict[str, Any], tokens: int) -> float:
    """Multiplications and additions of all products with weights in one run; the head is asked at masked positions."""
    layers = sum(rows * columns for name, (rows, columns) in _matrices(spec) if ".layers." in name)
    transformer = spec["transformer"]
    head = spec["vocab_size"] * transformer["hidden_dim"]
    masked = sum(tokens - tokens * step // STEPS for step in range(STEPS))
    return float(2 * (layers * tokens * STEPS + head * masked))


def _matrices(spec: dict[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, shape in shapes(spec).items():
        if len(shape) == 2:
            yield name, (shape[0], shape[1])


def _seconds(tokens: int, denoise: TextDenoiser, seed: int) -> float:
    """One text: nothing is given, every token is new."""
    import torch

    from aios.contracts import Canvas, Modality, Segment
    from aios.diffusion.samplers import SAMPLERS
    from aios.diffusion.schedules import LogLinear
    from aios.model.denoiser import Past

    began = time.perf_counter()
    x = torch.zeros(1, tokens, dtype=torch.long)
    editable = torch.ones_like(x, dtype=torch.bool)
    segment = Segment(modality=Modality.TEXT, x=x, t=editable.float(), editable=editable,
                      positions=torch.arange(tokens)[None, :, None], mask_id=0, memo=Past())
    rng = torch.Generator().manual_seed(seed % 2**31)
    *_, last = SAMPLERS[SAMPLER](denoise, Canvas(segments=(segment,)), LogLinear(), STEPS, rng, temperature=1.0)
    taken = time.perf_counter() - began
    assert not bool(last.segments[0].masked.any()), "every token is written"
    return taken
