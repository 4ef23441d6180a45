"""Tokens are drawn from the distribution that transformers' filters leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aios.engine import sampling
from aios.engine.sampling import Choice, draw
from aios.messages import Generate

VOCABULARY = 50
CHOICES = [
    Choice(), Choice(temperature=0.5), Choice(top_k=5), Choice(top_p=0.6), Choice(min_p=0.2),
    Choice(top_k=7, top_p=0.5),
    Choice(temperature=1.7, top_p=0.9, min_p=0.05), Choice(repetition_penalty=1.5, top_k=20), Choice(top_p=0.01),
    Choice(top_k=1000)]


def expected(logits: torch.Tensor, choice: Choice, seen: torch.Tensor) -> torch.Tensor:
    """The distribution (v,) by transformers' own processors, in its order."""
    transformers = pytest.importorskip("transformers")
    warpers: list[Any] = [transformers.RepetitionPenaltyLogitsProcessor(choice.repetition_penalty),
                          transformers.TemperatureLogitsWarper(choice.temperature)]
    if choice.top_k:
        warpers.append(transformers.TopKLogitsWarper(choice.top_k))
    if choice.top_p < 1:
        warpers.append(transformers.TopPLogitsWarper(choice.top_p))
    if choice.min_p:
        warpers.append(transformers.MinPLogitsWarper(choice.min_p))
    scores, ids = logits[None].clone(), seen.nonzero().T
    for warp in warpers:
        scores = warp(ids, scores)
    return scores.softmax(dim=-1)[0]


@pytest.mark.parametrize("candidates", [1024, 3])
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_draws_follow_transformers_filters(choice: Choice, candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CANDIDATES", candidates)
    logits, seen = torch.randn(VOCABULARY) * 2, torch.rand(VOCABULARY) < 0.3
    rng = torch.Generator().manual_seed(1)
    draws = torch.tensor([draw(logits, choice, rng, seen) for _ in range(2000)])
    found = torch.bincount(draws, minlength=VOCABULARY) / len(draws)
    wanted = expected(logits, choice, seen)
    assert not found[wanted == 0].any()
    assert float((found - wanted).abs().sum()) / 2 < 0.09


def test_without_temperature_the_most_likely_token_is_taken() -> None:
    logits = torch.tensor([1.0, 3.0, 2.9])
    assert draw(logits, Choice(temperature=0.0), torch.Generator(), None) == 1
    seen = torch.tensor([False, True, False])
    assert draw(logits, Choice(temperature=0.0, repetition_penalty=2.0), torch.Generator(), seen) == 2


def test_the_request_outranks_the_model_and_the_model_the_house() -> None:
    house = Choice.of_model({})
    assert (house.temperature, house.top_p) == (0.7, 0.95)
    model = Choice.of_model({"do_sample": True, "temperature": 0.2, "top_k": 40})
    assert model == Choice(temperature=0.2, top_k=40)
    assert Choice.of_model({"do_sample": False, "temperature": 0.2}) == house
    assert Choice.of_model({"temperature": "hot", "top_p": True, "top_k": -1}) == house
    asked = model.asked(Generate(prompt="x", temperature=0.0, min_p=0.1))
    assert asked == Choice(temperature=0.0, top_k=40, min_p=0.1)
    assert asked.plain and asked.filters == {}
    assert model.filters == {"top_k": 40}
