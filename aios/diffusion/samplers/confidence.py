"""Confidence sampling: the easiest positions first."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from aios.contracts import Canvas, Denoise, Schedule, Segment, SegmentPrediction
from aios.diffusion.processes import rows_of
from aios.diffusion.samplers.scheduled import scheduled


def confidence(
    denoise: Denoise,
    canvas: Canvas,
    schedule: Schedule,
    steps: int,
    rng: torch.Generator,
    *,
    temperature: float = 1.0,
) -> Iterator[Canvas]:
    """Unmask the positions whose best token is most probable; yields the canvas after every denoiser call.

    Of n positions masked at the start, round(n * (1 - alpha_s)) are left after the step that ends at s. The choice
    of positions looks at the distributions, not at the tokens drawn from them, so that one position a step draws
    exactly from the model. Sources: Chang et al. 2022, "MaskGIT" (confidence, schedule); Kim et al. 2025, "Train
    for the worst, plan for the best" (the best token's probability as the confidence).
    """
    return scheduled(_surest, denoise, canvas, schedule, steps, rng, temperature)


def _surest(segment: Segment, predicted: SegmentPrediction, count: Int[Tensor, " b"]) -> Bool[Tensor, "b s"]:
    best = torch.full(segment.x.shape, -torch.inf, device=segment.x.device)
    best[segment.masked] = rows_of(segment, predicted, segment.masked).best()
    return segment.masked & (best.argsort(dim=1, descending=True).argsort(dim=1) < count[:, None])
