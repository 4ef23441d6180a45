"""What breaks the grammar of a gap's language is written anew, so often and no more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from aios.contracts import Canvas, Logits, Modality, Prediction
from aios.diffusion.samplers import SAMPLERS
from aios.engine.pipeline import generate
from aios.engine.router import REPAIRS, Plan, plan
from aios.errors import BadInput
from aios.messages import REPAIRS_MAX, Diffuse, Infill, Response, check
from aios.testing import FakeHead

GAP = Infill(prefix="<", suffix=">", modality="code", length=4)
OPENED: Any = type(FakeHead().open(None, None))   # type: ignore[arg-type]


class Strict(OPENED):   # type: ignore[misc]
    """Writes aaaa, then bb.. in place of what is refused, then cc..; likes the second half of the gap at the `likes`-th
    attempt."""

    def __init__(self, likes: int) -> None:
        super().__init__("", Modality.CODE, "fake")
        self.likes, self.round = likes, 0
        self.attempts: list[int] = []

    def _predict(self, canvas: Canvas, condition: Any, adapters: Any = ()) -> Prediction:
        [segment] = canvas.segments
        wanted = torch.full(segment.x.shape, ord("a") + self.round)
        return Prediction(segments=(Logits(values=99.0 * torch.nn.functional.one_hot(wanted, 300).float()),))

    def flawed(self, canvas: Canvas, attempt: int) -> Tensor | None:
        self.attempts.append(attempt)
        self.round += 1
        where = canvas.segments[0].editable.clone()
        where[0, :3] = False
        return None if attempt >= self.likes else where


def answered(head: Any, **changes: Any) -> tuple[list[Any], Response]:
    told = {"request": GAP, "plugin": "fake", "head": head, "sampler": "confidence", "sample": SAMPLERS["confidence"],
            "steps": 4, "temperature": 0.0, "length": 4, "seed": 1, "repairs": 5, **changes}
    states, quanta = [], generate(Plan(**told))
    while True:
        try:
            states.append(next(quanta))
        except StopIteration as done:
            return states, done.value


@pytest.mark.parametrize(("likes", "text"), [(0, "aaaa"), (1, "aabb"), (3, "aadd")])
def test_refused_parts_are_written_anew_until_the_head_likes_them(likes: int, text: str) -> None:
    head = Strict(likes)
    states, response = answered(head)
    assert response.text == text and head.attempts == list(range(likes + 1))
    assert (response.verdict.repairs, response.verdict.flawed) == (likes, False)
    assert response.usage.steps == 4 + 2 * likes
    assert [state.step for state in states] == list(range(4 + 2 * likes + 1))


def test_when_patience_ends_the_first_text_is_the_answer_and_it_says_so() -> None:
    states, response = answered(Strict(9), repairs=2)
    assert response.text == "aaaa"
    assert (response.verdict.repairs, response.verdict.flawed) == (2, True)
    assert states[-1].rendered() == "<aaaa>"


def test_without_repairs_a_flaw_is_told_and_nothing_else_happens() -> None:
    states, response = answered(Strict(9), repairs=0)
    assert (response.text, response.verdict.repairs, response.verdict.flawed) == ("aaaa", 0, True)
    assert len(states) == 5


def test_only_gaps_are_repaired_and_only_by_heads_that_know_a_grammar() -> None:
    assert plan(GAP, "fake", Strict(1)).repairs == REPAIRS
    assert plan(Infill(prefix="", suffix="", repairs=3), "fake", Strict(1)).repairs == 3
    assert plan(Diffuse(prompt=""), "fake", Strict(1)).repairs == 0
    assert plan(GAP, "fake", FakeHead().open(None, None)).repairs == 0   # type: ignore[arg-type]


@pytest.mark.parametrize("repairs", [-1, REPAIRS_MAX + 1])
def test_a_number_of_repairs_out_of_range_is_refused(repairs: int) -> None:
    with pytest.raises(BadInput):
        check(Infill(prefix="", suffix="", repairs=repairs))
