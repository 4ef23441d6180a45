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


PROFILE_BINS = 16
PROFILE_FLOOR = 0.25  # of the uniform mass: no share of masks is ever forgotten, weights stay below 4
PROFILE_MEMORY = 0.98  # of a running mean over batches


class MaskingProfile:
    """How often each share of masks is drawn in training: in proportion to the spread of its losses.

    The bound is an integral over time; drawing t with density p(t) and weighting by 1 / p(t) leaves it as it is, and
    its estimate varies least where p follows the root mean square of the integrand: an entropic schedule, learned
    while training. Source: importance sampling of the time as in Nichol and Dhariwal 2021, section 3.3.
    """

    def __init__(self) -> None:
        self.squares = torch.ones(PROFILE_BINS, dtype=torch.float64)

    def edges(self) -> Float[Tensor, " n"]:
        """Return the distribution function of the masked share at the edges of its bins, from 0 to 1."""
        mass = self.squares.sqrt()
        mass = PROFILE_FLOOR / PROFILE_BINS + (1 - PROFILE_FLOOR) * mass / mass.sum()
        return torch.cat((torch.zeros(1, dtype=torch.float64), mass.cumsum(0)))

    def cdf(self, share: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the probability of a masked share up to `share`."""
        edges = self.edges()
        place = share.double().clamp(0, 1) * PROFILE_BINS
        low = place.long().clamp(max=PROFILE_BINS - 1)
        return edges[low] + (edges[low + 1] - edges[low]) * (place - low)

    def inverse(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the masked share below which lies probability `u`."""
        edges = self.edges()
        low = torch.searchsorted(edges, u.double().contiguous(), right=True).sub(1).clamp(0, PROFILE_BINS - 1)
        return (low + (u - edges[low]) / (edges[low + 1] - edges[low])) / PROFILE_BINS

    def observe(self, share: Float[Tensor, " n"], value: Float[Tensor, " n"]) -> None:
        """Learn from integrand values (nats a token, before weighting by 1 / p) seen at masked shares."""
        bins = (share.double() * PROFILE_BINS).ceil().long().clamp(1, PROFILE_BINS) - 1
        ones = torch.ones_like(value, dtype=torch.float64)
        count = torch.zeros(PROFILE_BINS, dtype=torch.float64).index_add_(0, bins, ones)
        total = torch.zeros(PROFILE_BINS, dtype=torch.float64).index_add_(0, bins, value.double().square())
        fresh = torch.where(count > 0, total / count.clamp(min=1), self.squares)
        self.squares.lerp_(fresh, 1 - PROFILE_MEMORY)


SCHEDULES: Mapping[str, Schedule] = MappingProxyType({"log_linear": LogLinear(), "cosine": Cosine()})
