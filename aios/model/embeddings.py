"""What is added to, or rotated into, hidden states: modality, time and position."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

TIME_SCALE = 1000.0  # t in [0, 1] spans the usual 1,000 diffusion steps, so that the sinusoids resolve it
TIME_PERIOD_MAX = 10_000.0

Periodic = TypeVar("Periodic", bound="_Periodic")


class ModalityEmbedding(nn.Module):
    """Add which modality each token belongs to; starts at zero, so a new modality changes nothing."""

    def __init__(self, num_modalities: int, hidden_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_modalities, hidden_dim))

    def forward(self, modality: Int[Tensor, "b s"]) -> Float[Tensor, "b s d"]:
        return nn.functional.embedding(modality, self.weight)


class _Periodic(nn.Module):
    """Keeps frequencies that follow from the configuration; where parameters have no memory, from their first use.

    Nothing else about opening a network computes, and a process' first arithmetic brings in megabytes of torch's code.
    """

    frequencies: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", None, persistent=False)

    @abstractmethod
    def _frequencies(self) -> Tensor: ...

    def _ready(self) -> Tensor:
        if self.frequencies is None:
            with torch.inference_mode(False):
                self.frequencies = self._frequencies()
        return self.frequencies

    def _apply(self: Periodic, fn: Callable[..., Tensor], recurse: bool = True) -> Periodic:
        self._ready()   # so that they move and change their type with everything else
        moved: Periodic = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return moved


class SinusoidalTimeEmbedding(_Periodic):
    """Embed each token's time t (0 data, 1 noise); the last layer starts at zero.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models", appendix B (sinusoids, then an MLP).
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        if hidden_dim % 2:
            raise ValueError(f"hidden_dim must be even, not {hidden_dim}")
        self.hidden_dim = hidden_dim
        self.hidden = nn.Linear(hidden_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, hidden_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        if not self.out.weight.is_meta:
            self._ready()

    def _frequencies(self) -> Tensor:
        half = self.hidden_dim // 2
        return torch.exp(-math.log(TIME_PERIOD_MAX) * torch.arange(half) / half)

    def sinusoids(self, t: Float[Tensor, "b s"]) -> Float[Tensor, "b s d"]:
        """Return cosines then sines of `t` at geometric frequencies."""
        frequencies = self._ready()
        angles = (t * TIME_SCALE).unsqueeze(-1) * frequencies
        return torch.cat((angles.cos(), angles.sin()), dim=-1)

    def forward(self, t: Float[Tensor, "b s"]) -> Float[Tensor, "b s d"]:
        hidden: Tensor = self.hidden(self.sinusoids(t))
        out: Tensor = self.out(nn.functional.silu(hidden))
        return out


class RotaryEmbedding(_Periodic):
    """Angles of rotary position embedding, in the half-split layout of Llama.

    Source: Su et al. 2021, "RoFormer: enhanced transformer with rotary position embedding", eq. 15.
    """

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"head_dim must be even, not {head_dim}")
        self.head_dim, self.theta = head_dim, theta
        if not torch.empty(0).is_meta:
            self._ready()

    def _frequencies(self) -> Tensor:
        return self.theta ** (-torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim)

    def forward(
        self, positions: Int[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "b 1 s hd"], Float[Tensor, "b 1 s hd"]]:
        """Return cos and sin of every position's angles, ready to broadcast over heads."""
        frequencies = self._ready()
        angles = positions.unsqueeze(-1).to(frequencies.dtype) * frequencies
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
        return angles.cos(), angles.sin()


def rotate(
    x: Float[Tensor, "b h s hd"], cos: Float[Tensor, "b 1 s hd"], sin: Float[Tensor, "b 1 s hd"]
) -> Float[Tensor, "b h s hd"]:
    """Rotate queries or keys by their positions' angles."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
