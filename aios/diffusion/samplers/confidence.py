"""Confidence sampling: the easiest positions first."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from aios.contracts import Canvas, Denoise, Schedule
from aios.diffusion.processes import log_probabilities, token_segments, write


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
            log_p = log_probabilities(segment, prediction.segments[index])
            best = log_p.amax(dim=-1).masked_fill(~segment.masked, -torch.inf)
            where = segment.masked & (
                best.argsort(dim=1, descending=True).argsort(dim=1) < reveal[index][:, None]
            )
            canvas = canvas.put(index, write(segment, prediction.segments[index], where, temperature, rng))
        yield canvas
