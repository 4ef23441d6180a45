"""What rows of logits say of masked tokens: how sure the best one is, how open the distribution, and a draw from it.

All of it reads the logits where they are: a vocabulary of 32,000 makes rows that a pass over memory more would cost.
The mask has probability 0 (the SUBS parameterisation, see `processes.subs`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from aios import _native


class Rows:
    """The rows of logits (b, s, v) at the positions `where`, in their order.

    ValueError where a row allows no token, or holds what is no number.
    """

    def __init__(self, logits: Float[Tensor, "b s v"], where: Bool[Tensor, "b s"], mask_id: int) -> None:
        flat = logits.detach().to(device="cpu", dtype=torch.float32).reshape(-1, logits.shape[-1])
        asked = where.reshape(-1).nonzero()[:, 0].cpu()
        self._count, self._device = len(asked), logits.device
        self._rows = _native.LogitRows(_array(flat.contiguous()), _array(asked), mask_id)

    def best(self) -> Float[Tensor, " m"]:
        """The log-probability of the likeliest token of each row."""
        return self._asked(self._rows.best)

    def entropy(self) -> Float[Tensor, " m"]:
        """The entropy of each row in nats."""
        return self._asked(self._rows.entropy)

    def draw(self, temperature: float, rng: torch.Generator) -> Int[Tensor, " m"]:
        """A token from each row, its logits divided by `temperature`; at 0 the likeliest one.

        A uniform number finds its token in the cumulative distribution, in the order of ids.
        """
        uniforms = torch.rand(self._count, generator=rng, dtype=torch.float64)
        drawn = torch.empty(self._count, dtype=torch.long)
        self._rows.draw(temperature, _array(uniforms), _array(drawn), torch.get_num_threads())
        return drawn.to(self._device)

    def _asked(self, ask: Callable[..., None]) -> Float[Tensor, " m"]:
        out = torch.empty(self._count)
        ask(_array(out), torch.get_num_threads())
        return out.to(self._device)


def _array(tensor: Tensor) -> Any:
    return tensor.numpy()
