"""A gap that breaks the grammar of its language is written anew from there on, until it keeps it or patience ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor

from aios.contracts import Canvas, Denoise
from aios.diffusion.samplers import left_to_right
from aios.engine.blame import blame
from aios.engine.router import Plan

TEMPERATURES: Final = (0.3, 0.5, 0.7)    # of the attempts, the last one of all that follow


class Repairing:
    """The repairs of one answer: how many there were, and whether it is flawed all the same."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.count = 0
        self.flawed = False

    def canvases(self, denoise: Denoise, first: Canvas, rng: torch.Generator) -> Iterator[Canvas]:
        """Yield the canvas after every denoiser call; `first` itself comes last where no attempt keeps the grammar."""
        canvas = first
        while (where := self._flaws(canvas)) is not None:
            if self.count == self._plan.repairs:
                self.flawed = True
                if self.count:
                    yield first
                return
            temperature = TEMPERATURES[min(self.count, len(TEMPERATURES) - 1)]
            self.count += 1
            for state in left_to_right(denoise, _masked(canvas, where), self._plan.head.schedule, int(where.sum()), rng,
                                       temperature=temperature):
                canvas = state
                yield state

    def _flaws(self, canvas: Canvas) -> Tensor | None:
        head: Any = self._plan.head
        if not hasattr(head, "flawed"):
            return None
        with blame(self._plan.plugin, "checking what it wrote"):
            where: Tensor | None = head.flawed(canvas, self.count)
        return where


def _masked(canvas: Canvas, where: Tensor) -> Canvas:
    [segment] = canvas.segments
    if segment.mask_id is None:
        raise TypeError("only tokens are written anew")
    return canvas.put(0, segment.fill(where, torch.full_like(segment.x, segment.mask_id)))
