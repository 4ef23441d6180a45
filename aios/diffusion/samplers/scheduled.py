"""The loop of samplers that reveal as many positions a step as the schedule says, and differ in which."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from aios.contracts import Canvas, Denoise, Schedule, Segment, SegmentPrediction
from aios.diffusion.processes import token_segments, write

# segment, its prediction, how many positions of each row (b,) -> where to reveal (b, s)
Choose = Callable[[Segment, SegmentPrediction, Int[Tensor, " b"]], Bool[Tensor, "b s"]]


def scheduled(
    choose: Choose,
    denoise: Denoise,
    canvas: Canvas,
    schedule: Schedule,
    steps: int,
    rng: torch.Generator,
    temperature: float,
) -> Iterator[Canvas]:
    """Yield the canvas after every denoiser call.

    Of n positions masked at the start, round(n * (1 - alpha_s)) are left after the step that ends at s.
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
            predicted = prediction.segments[index]
            where = choose(segment, predicted, reveal[index])
            canvas = canvas.put(index, write(segment, predicted, where, temperature, rng))
        yield canvas
