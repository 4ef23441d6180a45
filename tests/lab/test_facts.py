"""Facts of the evaluation: nothing of their phrasing was trained on, and what counts as using one."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from aios.lab import relevance_training
from aios.lab.facts import TEMPLATES, Fact, Template, used, world
from aios.lab.memory_training import examples
from aios.training.fact_sources import fact_document

FACT = Fact(kind="number", told="For Ola's seat they wrote down 431.", asked="?", value="431")
OTHER = Fact(kind="number", told="For Uwe's seat they wrote down 77.", asked="?", value="77")


def skeleton(text: str) -> str:
    """A sentence without names and numbers."""
    return re.sub(r"\b[A-Z]\w*\b|\d+|'s|[^a-z ]", "", text)


def test_no_template_of_the_evaluation_is_one_of_training() -> None:
    rng = random.Random(1)
    asked = {skeleton(fact.asked) for template in TEMPLATES for fact in world(template, rng, 3)}
    told = {skeleton(fact.told) for template in TEMPLATES for fact in world(template, rng, 3)}
    trained = {skeleton(piece) for number in range(400)
               for piece in re.split(r"<\|\w+\|>", fact_document(number).lines[0])}
    trained |= {skeleton(text) for one in examples(5, 200)
                for text in (one.question, *(passage.text for passage in one.passages))}
    assert not (asked | told) & trained


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.told)
def test_a_world_has_one_fact_for_each_owner_and_asks_for_what_it_tells(template: Template) -> None:
    facts = world(template, random.Random(2))
    assert len(facts) == 100 == len({fact.asked for fact in facts}) == len({fact.told for fact in facts})
    assert all(fact.value in fact.told and fact.value not in fact.asked for fact in facts)
    assert not any(used(fact.told, fact, []) for fact in facts), "a passage as it stands is no answer"


@pytest.mark.parametrize(("answer", "counts"), [
    ("431.", True), ("They wrote down 431.", True), ("431 and 77", False), ("4310", False), ("1431", False),
    ("", False),
    ("one two three four five six seven eight 431", True), ("one two three four five six seven eight nine 431", False),
    ("77", False)])
def test_a_fact_is_used_when_its_value_stands_there_alone_among_few_words(answer: str, counts: bool) -> None:
    assert used(answer, FACT, [OTHER]) is counts


def test_the_scorer_learns_from_made_up_stores_and_ranks_better_than_similarity() -> None:
    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.zeros((len(texts), 64), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                row[sum(word.encode()) % 64] += 1.0      # hashed words: many collide
        unit: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
        return unit

    done = relevance_training.train(encode, 1, stores=4)
    assert done.first_percent >= 90.0 and done.first_percent >= done.nearest_percent
