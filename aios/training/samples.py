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
from aios.training.vocabulary import MASK_ID


def text_canvas(given: Int[Tensor, "b p"], length: int) -> Canvas:
    """Return a canvas of the `given` tokens, fixed, and `length` masked ones behind them."""
    rows, prompt = given.shape
    x = torch.cat((given, torch.full((rows, length), MASK_ID)), dim=1)
    editable = (torch.arange(prompt + length) >= prompt).expand_as(x)
    positions = torch.arange(prompt + length).expand_as(x).unsqueeze(-1)
    segment = Segment(
        modality=Modality.TEXT,
        x=x,
        t=editable.float(),
        editable=editable,
        positions=positions,
        mask_id=MASK_ID,
    )
    return Canvas(segments=(segment,))


def denoiser(network: TextScoreNetwork) -> Callable[[Canvas], Prediction]:
    """Return the network as samplers see it: one text segment in, logits out."""

    def denoise(canvas: Canvas) -> Prediction:
        (segment,) = canvas.segments
        return Prediction(segments=(Logits(values=network(segment.x, t=segment.t)),))

    return denoise


@torch.inference_mode()
def write(
    network: TextScoreNetwork,
    given: Int[Tensor, "b p"],
    *,
    sampling: SamplingDefaults,
    seed: int,
) -> tuple[Int[Tensor, "b s"], int]:
    """Return `sampling.length` new tokens behind each row of `given`, and the number of denoiser calls."""
    sampler: Sampler = SAMPLERS[sampling.sampler]
    rng = torch.Generator().manual_seed(seed)
    canvas = text_canvas(given, sampling.length)
    steps = max(1, round(sampling.length * sampling.steps_per_token))
    calls = 0
    states = sampler(denoiser(network), canvas, LogLinear(), steps, rng, temperature=sampling.temperature)
    for state in states:
        canvas, calls = state, calls + 1
    return canvas.segments[0].x[:, given.shape[1] :], calls
