"""What a text score network writes: used to compare samplers on held-out text and to fill the model card."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from aios.contracts import Canvas, Logits, Modality, Prediction, Sampler, SamplingDefaults, Segment
from aios.diffusion.samplers import SAMPLERS
from aios.diffusion.schedules import LogLinear
from aios.model.score_network import TextScoreNetwork
from aios.training.vocabulary import EOT_ID, MASK_ID


def text_canvas(given: Int[Tensor, "b p"], length: int, tail: Int[Tensor, "b q"] | None = None) -> Canvas:
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
    )
    return Canvas(segments=(segment,))


def denoiser(network: TextScoreNetwork) -> Callable[[Canvas], Prediction]:
    """Return the network as samplers see it: one text segment in, logits out; before a tail no text ends."""

    def denoise(canvas: Canvas) -> Prediction:
        (segment,) = canvas.segments
        values = network(segment.x, t=segment.t)
        values[:, :, EOT_ID].masked_fill_(~segment.editable[:, -1:], -torch.inf)
        return Prediction(segments=(Logits(values=values),))

    return denoise


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
    sampler: Sampler = SAMPLERS[sampling.sampler]
    rng = torch.Generator().manual_seed(seed)
    canvas = text_canvas(given, sampling.length, tail)
    steps = max(1, round(sampling.length * sampling.steps_per_token))
    calls = 0
    states = sampler(denoiser(network), canvas, LogLinear(), steps, rng, temperature=sampling.temperature)
    for state in states:
        canvas, calls = state, calls + 1
    begin = given.shape[1]
    return canvas.segments[0].x[:, begin : begin + sampling.length], calls
