"""Laws of schedules and of the absorbing process."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aios.contracts import Modality, Segment
from aios.diffusion.processes import absorb, hide, posterior, reveal_probability, subs
from aios.diffusion.schedules import SCHEDULES, LogLinear

MASK = 3


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_goes_from_data_to_noise_and_inverts(schedule) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha = schedule.alpha(t)
    assert alpha[0] == pytest.approx(1.0) and alpha[-1] == pytest.approx(0.0)
    assert (alpha.diff() < 0).all()
    torch.testing.assert_close(schedule.inverse(alpha), t, atol=1e-6, rtol=0)


@given(st.integers(1, 300))
def test_intervals_join_noise_to_data(steps: int) -> None:
    pairs = list(LogLinear().intervals(steps))
    assert len(pairs) == steps
    assert pairs[0][0] == 1.0 and pairs[-1][1] == 0.0
    assert all(t > s for t, s in pairs)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(pairs))


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        next(LogLinear().intervals(0))


@pytest.mark.parametrize("t", [0.0, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_forward_process_masks_the_right_share_of_what_may_change(schedule, t: float) -> None:
    x = torch.randint(0, 3, (400, 100))
    editable = torch.arange(100).expand_as(x) >= 20
    segment = Segment(
        modality=Modality.TEXT,
        x=x,
        t=torch.zeros_like(x, dtype=torch.float32),
        editable=editable,
        positions=torch.arange(100).expand_as(x).unsqueeze(-1),
        mask_id=MASK,
    )
    noisy = absorb(segment, schedule, t, torch.Generator().manual_seed(5))
    assert torch.equal(noisy.x[:, :20], x[:, :20])
    assert torch.equal(noisy.x[~noisy.masked], x[~noisy.masked])
    share = noisy.masked[:, 20:].float().mean().item()
    assert share == pytest.approx(1 - float(schedule.alpha(torch.tensor(t))), abs=0.01)
    assert (noisy.t == editable * t).all()


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_two_reverse_steps_compose_to_one(schedule) -> None:
    t, r, s = 0.9, 0.5, 0.2
    stay = (1 - reveal_probability(schedule, t, r)) * (1 - reveal_probability(schedule, r, s))
    assert stay == pytest.approx(1 - reveal_probability(schedule, t, s))


def test_the_posterior_is_a_distribution_with_the_right_share_of_masks() -> None:
    log_p = subs(torch.randn(5, 4), MASK)
    q = posterior(log_p, MASK, LogLinear(), 0.8, 0.6)
    torch.testing.assert_close(q.sum(dim=-1), torch.ones(5))
    torch.testing.assert_close(q[:, MASK], torch.full((5,), 0.75))
    torch.testing.assert_close(q[:, :MASK] / 0.25, log_p.exp()[:, :MASK])


def test_subs_never_predicts_the_mask() -> None:
    log_p = subs(torch.full((2, 4), 100.0), MASK)
    assert log_p[:, MASK].isneginf().all()
    torch.testing.assert_close(log_p.exp().sum(dim=-1), torch.ones(2))


def test_hiding_spreads_counts_evenly_and_its_weights_make_a_mean() -> None:
    ids = torch.randint(0, 3, (64, 32))
    editable = torch.arange(32).expand_as(ids) >= 16
    hidden = hide(ids, editable, MASK, torch.Generator().manual_seed(2))
    assert not (hidden.where & ~editable).any()
    assert torch.equal(hidden.ids, ids.masked_fill(hidden.where, MASK))
    counts = hidden.where.sum(dim=1)
    assert torch.equal(torch.bincount(counts, minlength=17)[1:], torch.full((16,), 4))
    assert hidden.weights.sum() == pytest.approx(1.0)
