"""Ancestral sampling: the reverse process itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from aios.contracts import Canvas, Denoise, Schedule
from aios.diffusion.processes import reveal_probability, token_segments, write


def ancestral(
    denoise: Denoise,
    canvas: Canvas,
    schedule: Schedule,
    steps: int,
    rng: torch.Generator,
    *,
    temperature: float = 1.0,
) -> Iterator[Canvas]:
    """Unmask tokens at random, step by step; yields the canvas after every denoiser call.

    Each masked position is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t), from t = 1 down to 0,
    its token drawn from p(x_0 | x_t). An interval that happens to reveal nothing needs no denoiser call.
    Source: Sahoo et al. 2024, "Simple and effective masked diffusion language models", eq. 7.
    """
    for t, s in schedule.intervals(steps):
        chance = reveal_probability(schedule, t, s)
        reveal = {
            index: segment.masked & (torch.rand(segment.x.shape, generator=rng) < chance)
            for index, segment in token_segments(canvas)
        }
        if not any(bool(where.any()) for where in reveal.values()):
            continue
        canvas = canvas.at(t)
        prediction = denoise(canvas)
        for index, segment in token_segments(canvas):
            canvas = canvas.put(
                index, write(segment, prediction.segments[index], reveal[index], temperature, rng)
            )
        yield canvas
