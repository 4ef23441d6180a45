"""Entropy-bounded sampling: as many positions a step as can be drawn apart from each other."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from aios.contracts import Canvas, Denoise, Schedule
from aios.diffusion.processes import rows_of, token_segments, write

BUDGET_NATS = 0.1  # of dependence one step may ignore; the paper's quality holds up to about this value


def entropy(
    denoise: Denoise,
    canvas: Canvas,
    schedule: Schedule,
    steps: int,
    rng: torch.Generator,
    *,
    temperature: float = 1.0,
    budget_nats: float = BUDGET_NATS,
) -> Iterator[Canvas]:
    """Unmask a row's surest positions while their joint entropy allows; yields after every denoiser call.

    Positions are taken in order of entropy H as long as sum(H) - max(H) <= `budget_nats`, which bounds the mutual
    information that drawing them apart ignores. At least one is taken, and at least as many as the schedule needs
    to end within `steps`; often far fewer steps are used.
    Source: Ben-Hamu et al. 2025, "Accelerated sampling from masked diffusion models via entropy bounded unmasking".
    """
    started = {index: segment.masked.sum(dim=1) for index, segment in token_segments(canvas)}
    for t, s in schedule.intervals(steps):
        masked = {index: segment.masked.sum(dim=1) for index, segment in token_segments(canvas)}
        if not any(bool((count > 0).any()) for count in masked.values()):
            return
        left_share = 1.0 - schedule.alpha(torch.tensor(s, dtype=torch.float64))
        canvas = canvas.at(t)
        prediction = denoise(canvas)
        for index, segment in token_segments(canvas):
            nats = torch.full(segment.x.shape, torch.inf, device=segment.x.device)
            nats[segment.masked] = rows_of(segment, prediction.segments[index], segment.masked).entropy()
            ascending, order = nats.sort(dim=1)
            fits = (ascending.cumsum(dim=1) - ascending) <= budget_nats
            needed = masked[index] - (started[index] * left_share).round().long()
            count = torch.maximum(fits.sum(dim=1), needed.clamp(min=1))
            where = segment.masked & (order.argsort(dim=1) < count[:, None])
            canvas = canvas.put(index, write(segment, prediction.segments[index], where, temperature, rng))
        yield canvas
