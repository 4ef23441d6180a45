"""What a text score network writes: used to compare samplers on held-out text and to fill the model card."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from aios.contracts import Canvas, Modality, Sampler, SamplingDefaults, Segment
from aios.diffusion.samplers import SAMPLERS, in_blocks
from aios.diffusion.schedules import LogLinear
from aios.model.denoiser import Past, TextDenoiser
from aios.model.score_network import TextScoreNetwork
from aios.training.vocabulary import EOT_ID, MASK_ID


def text_canvas(
    given: Int[Tensor, "b p"], length: int, tail: Int[Tensor, "b q"] | None = None, *, onward: bool = False
) -> Canvas:
    """Return a canvas of the `given` tokens, fixed, `length` masked ones behind them, and a fixed `tail`."""
    rows, prompt = given.shape
    tail = given[:, :0] if tail is None else tail
    x = torch.cat((given, torch.full((rows, length), MASK_ID), tail), dim=1)
    index = torch.arange(x.shape[1])
    editable = ((index >= prompt) & (index < prompt + length)).expand_as(x)
    segment = Segment(
        modality=Modality.TEXT,
        x=x,
        t=editable.float(),
        editable=editable,
        positions=index.expand_as(x).unsqueeze(-1),
        mask_id=MASK_ID,
        onward=onward,
        end_ids=(EOT_ID,),
        memo=Past(),
    )
    return Canvas(segments=(segment,))


def sampler_of(sampling: SamplingDefaults, *, tail: bool) -> tuple[Sampler, float]:
    """Return the sampler of these settings and its temperature, for a canvas with or without a given tail."""
    if tail:
        warmth = sampling.infill_temperature
        return SAMPLERS[sampling.infill_sampler or sampling.sampler], sampling.temperature if warmth is None else warmth
    sampler = SAMPLERS[sampling.sampler]
    return in_blocks(sampler, sampling.block) if sampling.block else sampler, sampling.temperature


@torch.inference_mode()
def write(
    network: TextScoreNetwork,
    given: Int[Tensor, "b p"],
    *,
    sampling: SamplingDefaults,
    seed: int,
    tail: Int[Tensor, "b q"] | None = None,
) -> tuple[Int[Tensor, "b s"], int]:
    """Return `sampling.length` new tokens behind each row of `given`, before `tail`, and how often the network ran."""
    tailed = tail is not None and tail.shape[1] > 0
    rng = torch.Generator().manual_seed(seed)
    canvas = text_canvas(given, sampling.length, tail, onward=bool(sampling.block) and not tailed)
    steps = max(1, round(sampling.length * sampling.steps_per_token))
    calls = 0
    sample, temperature = sampler_of(sampling, tail=tailed)
    denoise = TextDenoiser(network, end_ids=(EOT_ID,))
    for state in sample(denoise, canvas, LogLinear(), steps, rng, temperature=temperature):
        canvas, calls = state, calls + 1
    begin = given.shape[1]
    return canvas.segments[0].x[:, begin : begin + sampling.length], calls
