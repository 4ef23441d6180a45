"""Samplers by name; each takes (denoise, canvas, schedule, steps, rng, *, temperature)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from aios.contracts import Sampler
from aios.diffusion.samplers.ancestral import ancestral
from aios.diffusion.samplers.blocks import in_blocks
from aios.diffusion.samplers.confidence import confidence
from aios.diffusion.samplers.entropy import entropy
from aios.diffusion.samplers.left_to_right import left_to_right

SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {"ancestral": ancestral, "confidence": confidence, "entropy": entropy, "left_to_right": left_to_right}
)

__all__ = ["SAMPLERS", "ancestral", "confidence", "entropy", "in_blocks", "left_to_right"]
