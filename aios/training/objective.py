"""What text training asks of the network: which spans are diffused, the loss, and the bound on held-out text."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from aios.diffusion.processes import Hidden, hide
from aios.model.score_network import TextScoreNetwork

GIVEN_PREFIX_SHARE = 0.25  # rows that continue a given beginning
GIVEN_BOTH_SHARE = 0.15  # rows that fill between a given head and tail; the rest is plain masked diffusion
BOUND_SEED = (
    1_000_003  # the bound hides the same tokens whenever it is measured, so that its changes mean something
)
BOUND_BATCH_ROWS = 16


def editable_spans(rows: int, length: int, rng: torch.Generator) -> Bool[Tensor, "b s"]:
    """Return which positions of each row are diffused: all, all after a prefix, or a stretch within."""
    kind = torch.rand(rows, generator=rng)
    cuts = (torch.rand(rows, 2, generator=rng) * length).long().sort(dim=1).values
    given = kind < GIVEN_PREFIX_SHARE + GIVEN_BOTH_SHARE
    begin = torch.where(given, cuts[:, 0], 0)
    end = torch.where(given & (kind >= GIVEN_PREFIX_SHARE), cuts[:, 1] + 1, length)
    index = torch.arange(length)
    return (index >= begin[:, None]) & (index < end[:, None])


def masked_losses(
    network: TextScoreNetwork, states: Float[Tensor, "b s d"], hidden: Hidden, targets: Int[Tensor, "b s"]
) -> Float[Tensor, " m"]:
    """Return -log p in nats of every hidden token; only hidden positions are projected onto the vocabulary."""
    logits = network.logits(states[hidden.where])
    return functional.cross_entropy(logits, targets[hidden.where], reduction="none")


@torch.inference_mode()
def held_out_bound(
    network: TextScoreNetwork, windows: Int[Tensor, "b s"], mask_id: int, *, draws: int = 1
) -> float:
    """Return the bound on -log p(window) in nats per token, estimated from `draws` maskings of each window."""
    rng = torch.Generator().manual_seed(BOUND_SEED)
    total = 0.0
    for _ in range(draws):
        hidden = hide(windows, torch.ones_like(windows, dtype=torch.bool), mask_id, rng)
        states = torch.cat([network.hidden(ids) for ids in hidden.ids.split(BOUND_BATCH_ROWS)])  # type: ignore[no-untyped-call]
        total += float((masked_losses(network, states, hidden, windows) * hidden.weights).sum())
    return total / draws
