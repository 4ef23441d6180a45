"""Samplers by name; each takes (denoise, canvas, schedule, steps, rng, *, temperature)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from aios.contracts import Sampler
from aios.diffusion.samplers.ancestral import ancestral
from aios.diffusion.samplers.confidence import confidence
from aios.diffusion.samplers.entropy import entropy

SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {"ancestral": ancestral, "confidence": confidence, "entropy": entropy}
)

__all__ = ["SAMPLERS", "ancestral", "confidence", "entropy"]
