"""Sampling in the order of reading."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from aios.contracts import Canvas, Denoise, Schedule
from aios.diffusion.processes import token_segments, write


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

    Of n positions masked at the start, round(n * (1 - alpha_s)) are left after the step that ends at s. One position
    a step is the order whose likelihood block diffusion reports.
    """
    started = {index: segment.masked.sum(dim=1) for index, segment in token_segments(canvas)}
    for t, s in schedule.intervals(steps):
        left_share = 1.0 - schedule.alpha(torch.tensor(s, dtype=torch.float64))
        reveal = {
            index: segment.masked.sum(dim=1) - (started[index] * left_share).round().long()
            for index, segment in token_segments(canvas)
        }
        if not any(bool((count > 0).any()) for count in reveal.values()):
            continue
        canvas = canvas.at(t)
        prediction = denoise(canvas)
        for index, segment in token_segments(canvas):
            where = segment.masked & (segment.masked.cumsum(dim=1) <= reveal[index][:, None])
            canvas = canvas.put(index, write(segment, prediction.segments[index], where, temperature, rng))
        yield canvas
