"""Block by block: any sampler, a few tokens at a time. Source: Arriola et al. 2025, "Block diffusion"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from aios.contracts import Canvas, Denoise, Sampler, Schedule, Segment


def in_blocks(sample: Sampler, size: int) -> Sampler:
    """Return a sampler that finishes `size` editable tokens with `sample` before it begins the next ones.

    It is for canvases of one token segment that is written onward. The steps are shared out among the blocks, one at
    least for each; once every row has drawn a token that ends the text, nothing more is written.
    """

    def sample_blocks(
        denoise: Denoise,
        canvas: Canvas,
        schedule: Schedule,
        steps: int,
        rng: torch.Generator,
        *,
        temperature: float = 1.0,
    ) -> Iterator[Canvas]:
        (segment,) = canvas.segments
        columns = segment.editable.any(dim=0).nonzero()[:, 0]
        blocks = torch.split(columns, size)
        for number, block in enumerate(blocks):
            inside = torch.zeros_like(segment.editable).index_fill(1, block, True)
            part = Canvas(segments=(replace(segment, editable=segment.editable & inside),))
            own = max(1, steps * (number + 1) // len(blocks) - steps * number // len(blocks))
            for state in sample(denoise, part, schedule, own, rng, temperature=temperature):
                segment = replace(segment, x=state.segments[0].x)
                yield Canvas(segments=(segment,))
            if _ended(segment):
                return

    return sample_blocks


def _ended(segment: Segment) -> bool:
    ends = torch.isin(segment.x, torch.tensor(segment.end_ids, dtype=segment.x.dtype)) & segment.editable
    return bool(ends.any(dim=1).all())
