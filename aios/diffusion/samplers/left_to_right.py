"""Sampling in the order of reading."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from aios.contracts import Canvas, Denoise, Schedule, Segment, SegmentPrediction
from aios.diffusion.samplers.scheduled import scheduled


def left_to_right(
    denoise: Denoise,
    canvas: Canvas,
    schedule: Schedule,
    steps: int,
    rng: torch.Generator,
    *,
    temperature: float = 1.0,
) -> Iterator[Canvas]:
    """Unmask the first positions that are still masked; yields the canvas after every denoiser call.

    One position a step is the order whose likelihood block diffusion reports.
    """
    return scheduled(_first, denoise, canvas, schedule, steps, rng, temperature)


def _first(segment: Segment, predicted: SegmentPrediction, count: Int[Tensor, " b"]) -> Bool[Tensor, "b s"]:
    return segment.masked & (segment.masked.cumsum(dim=1) <= count[:, None])
