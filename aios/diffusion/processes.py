"""The absorbing process of masked diffusion: how data becomes masks, and the distribution of the way back.

Source: Sahoo et al. 2024, "Simple and effective masked diffusion language models" (MDLM).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from aios.contracts import Canvas, Logits, Schedule, Segment, SegmentPrediction
from aios.diffusion.rows import Rows
from aios.diffusion.schedules import MaskingProfile


def absorb(segment: Segment, schedule: Schedule, t: float, rng: torch.Generator) -> Segment:
    """Return the segment at time t: every editable position is masked with probability 1 - alpha(t), alone."""
    if segment.mask_id is None:
        raise TypeError("only token segments can be absorbed")
    keep = schedule.alpha(torch.tensor(t, dtype=torch.float64))
    where = torch.rand(segment.x.shape, generator=rng) >= keep
    return segment.at(t).fill(where, torch.full_like(segment.x, segment.mask_id))


def reveal_probability(schedule: Schedule, t: float, s: float) -> float:
    """Return the chance (alpha_s - alpha_t) / (1 - alpha_t) that a position masked at t is data at s < t."""
    alpha_t, alpha_s = schedule.alpha(torch.tensor([t, s], dtype=torch.float64)).tolist()
    return float((alpha_s - alpha_t) / (1.0 - alpha_t))


def subs(logits: Float[Tensor, "... v"], mask_id: int) -> Float[Tensor, "... v"]:
    """Return log p(x_0 | x_t) at masked positions: the mask itself has probability 0.

    The other half of SUBS (what is revealed stays) is kept by `Segment.masked`: only masked positions are written.
    """
    logits = logits.float()
    barred = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    barred[mask_id] = True
    return logits.masked_fill(barred, -torch.inf).log_softmax(dim=-1)


def posterior(
    log_p: Float[Tensor, "... v"], mask_id: int, schedule: Schedule, t: float, s: float
) -> Float[Tensor, "... v"]:
    """Return q(x_s | x_t masked, x_0 ~ p): data with the reveal probability, else still masked (eq. 7)."""
    reveal = reveal_probability(schedule, t, s)
    probabilities = log_p.exp() * reveal
    probabilities[..., mask_id] = 1.0 - reveal
    return probabilities


def token_segments(canvas: Canvas) -> list[tuple[int, Segment]]:
    """Return the canvas's token segments with their indices; latent segments have no masks."""
    return [(index, segment) for index, segment in enumerate(canvas.segments) if segment.mask_id is not None]


def token_logits(predicted: SegmentPrediction) -> Float[Tensor, "b s v"]:
    """Return the logits predicted for a token segment."""
    if not isinstance(predicted, Logits):
        raise TypeError(f"a token segment needs logits, not {type(predicted).__name__}")
    return predicted.values


def rows_of(segment: Segment, predicted: SegmentPrediction, where: Bool[Tensor, "b s"]) -> Rows:
    """Return what is predicted at `where` of a token segment."""
    assert segment.mask_id is not None
    return Rows(token_logits(predicted), where, segment.mask_id)


def write(
    segment: Segment,
    predicted: SegmentPrediction,
    where: Bool[Tensor, "b s"],
    temperature: float,
    rng: torch.Generator,
) -> Segment:
    """Return the segment with tokens drawn from its prediction written at `where`."""
    ids = segment.x.clone()
    ids[where] = rows_of(segment, predicted, where).draw(temperature, rng)
    return segment.fill(where, ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """Token rows with some hidden: what the network sees, where it predicts, the weight of each prediction."""

    ids: Int[Tensor, "b s"]
    where: Bool[Tensor, "b s"]
    weights: Float[Tensor, " m"]  # in the order of ids[where]; weighted losses add up to nats per token


def hide(
    ids: Int[Tensor, "b s"],
    editable: Bool[Tensor, "b s"],
    mask_id: int,
    rng: torch.Generator,
    *,
    profile: MaskingProfile | None = None,
) -> Hidden:
    """Hide exactly k of the n editable tokens of each row, k uniform on 1..n and stratified over the batch.

    With the log-linear schedule the continuous-time bound on -log p(x) is the integral over t in (0, 1) of
    E[(1 / t) * sum over masked positions of -log p(x_i | x_t)] (MDLM, eq. 10). A network that is told no time
    gives the same prediction at every t, so the integral has a closed form: with k uniform on 1..n and exactly k
    positions hidden, the bound is E[(n / k) * sum] (Ou et al. 2024, "Your absorbing discrete diffusion secretly
    models the conditional distributions of clean data"). Its estimate varies less: no draw hides nothing. A
    `profile` draws k otherwise and corrects the weights by 1 / (n * p(k)).
    """
    rows = ids.shape[0]
    t = (torch.rand(1, generator=rng) + torch.arange(rows) / rows) % 1.0
    count = editable.sum(dim=1)
    if profile is not None:
        t = profile.inverse(t.double())
    k = (t * count).long().clamp(max=count - 1) + 1
    scores = torch.rand(ids.shape, generator=rng).masked_fill(~editable, 2.0)
    where = scores.argsort(dim=1).argsort(dim=1) < k[:, None]
    # A row's bound per token is (n / k) * sum / n; rows count in proportion to their n.
    weights = count / k / count.sum()
    if profile is not None:
        weights = weights / (count * (profile.cdf(k / count) - profile.cdf((k - 1) / count)))
    weights = weights[:, None].expand_as(where)[where]
    return Hidden(ids=ids.masked_fill(where, mask_id), where=where, weights=weights.float())
