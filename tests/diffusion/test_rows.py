"""Laws of reading rows of logits: they say what the whole distribution, written out, would."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aios.diffusion.processes import subs
from aios.diffusion.rows import Rows

MASK = 3


def rng(seed: int = 11) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(2, 700), st.integers(0, 2**16), st.floats(0.1, 30.0))
@settings(max_examples=40, deadline=None)
def test_the_best_and_the_entropy_are_those_of_the_distribution(columns: int, seed: int, width: float) -> None:
    logits = torch.randn(2, 5, columns, generator=rng(seed)) * width
    where = torch.rand(2, 5, generator=rng(seed)) < 0.6
    log_p = subs(logits.double()[where], min(MASK, columns - 1)).double()
    rows = Rows(logits, where, min(MASK, columns - 1))
    torch.testing.assert_close(rows.best(), log_p.amax(dim=-1).float(), atol=1e-5, rtol=1e-4)
    nats = torch.special.entr(log_p.exp()).sum(dim=-1).float()
    torch.testing.assert_close(rows.entropy(), nats, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_follow_the_tempered_probabilities(temperature: float) -> None:
    log_p = torch.tensor([0.6, 0.3, 0.1, 0.9]).log()
    expected = (log_p[:MASK] / temperature).softmax(dim=-1)
    drawn = Rows(log_p.expand(1, 50_000, 4), torch.ones(1, 50_000, dtype=torch.bool), MASK).draw(temperature, rng())
    torch.testing.assert_close(torch.bincount(drawn, minlength=3) / 50_000, expected, atol=0.01, rtol=0)


def test_without_temperature_the_likeliest_token_but_the_mask_is_taken() -> None:
    logits = torch.randn(3, 7, 50, generator=rng())
    logits[..., MASK] = 100.0
    where = torch.zeros(3, 7, dtype=torch.bool)
    where[1, 2:5] = where[2, 0] = True
    barred = logits.clone()
    barred[..., MASK] = -torch.inf
    assert torch.equal(Rows(logits, where, MASK).draw(0.0, rng()), barred[where].argmax(dim=-1))


def test_tokens_without_probability_are_never_drawn_and_seeds_repeat() -> None:
    logits = torch.full((1, 4000, 900), -torch.inf)
    logits[..., 5::7] = torch.randn(4000, 128, generator=rng())
    where = torch.ones(1, 4000, dtype=torch.bool)
    drawn = Rows(logits, where, MASK).draw(3.0, rng())
    assert set((drawn % 7).tolist()) == {5} and len(drawn.unique()) == 128
    assert torch.equal(drawn, Rows(logits, where, MASK).draw(3.0, rng()))
    assert not torch.equal(drawn, Rows(logits, where, MASK).draw(3.0, rng(12)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_without_a_distribution_are_refused(bad: float) -> None:
    logits = torch.full((1, 2, 6), bad)
    logits[..., MASK] = 1.0
    rows = Rows(logits, torch.tensor([[False, True]]), MASK)
    for ask in (rows.best, rows.entropy, lambda: rows.draw(1.0, rng())):
        with pytest.raises(ValueError, match="row of logits"):
            ask()
    nothing = Rows(logits, torch.zeros(1, 2, dtype=torch.bool), MASK)
    assert len(nothing.best()) == len(nothing.draw(1.0, rng())) == 0
