"""Noise schedules: which share alpha(t) of the positions still holds data at time t (0 data, 1 noise)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from aios.contracts import Schedule


class _Uniform:
    """Steps of equal length in t; the schedule says how much each reveals."""

    def intervals(self, steps: int) -> Iterator[tuple[float, float]]:
        """Yield `steps` pairs (t, s), from t = 1 down to s = 0."""
        if steps < 1:
            raise ValueError(f"at least one step is needed, not {steps}")
        for step in range(steps, 0, -1):
            yield step / steps, (step - 1) / steps


class LogLinear(_Uniform):
    """alpha(t) = 1 - t: the same share is revealed at every step. Source: Sahoo et al. 2024, MDLM."""

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return 1.0 - t

    def inverse(self, alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the time at which `alpha` of the positions hold data."""
        return 1.0 - alpha


class Cosine(_Uniform):
    """alpha(t) = 1 - sin(pi t / 2): few are revealed while little is known. Source: Chang et al. 2022, MaskGIT."""

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return 1.0 - torch.sin(t * (math.pi / 2))

    def inverse(self, alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the time at which `alpha` of the positions hold data."""
        return torch.asin(1.0 - alpha) * (2 / math.pi)


SCHEDULES: Mapping[str, Schedule] = MappingProxyType({"log_linear": LogLinear(), "cosine": Cosine()})
