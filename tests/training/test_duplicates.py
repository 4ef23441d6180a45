"""Documents that were seen before."""

from __future__ import annotations

import random

import numpy as np

from aios.training.duplicates import Seen, resemblance
from aios.training.sources import Document

WORDS = [f"word{index}" for index in range(500)]


def text(seed: int, count: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def document(*lines: str) -> Document:
    return Document(name="", lines=lines)


def test_equal_words_are_an_exact_repetition_whatever_their_case_and_marks() -> None:
    seen = Seen()
    assert seen.repeats(document("Hello there, you!")) is None
    assert seen.repeats(document("hello there: You")) == "exact"
    assert seen.repeats(document("hello there, we")) is None


def test_text_without_words_is_told_apart() -> None:
    seen = Seen()
    assert seen.repeats(document("{}")) is None
    assert seen.repeats(document("[]")) is None
    assert seen.repeats(document("{}")) == "exact"


def test_a_document_with_a_few_words_changed_is_near_and_one_half_new_is_not() -> None:
    seen = Seen()
    assert [seen.repeats(document(text(seed))) for seed in range(50)] == [None] * 50
    for seed in range(50):
        words = text(seed).split()
        words[100] = "changed"
        assert seen.repeats(document(" ".join(words))) == "near"
        half = text(seed).split()[:100] + text(seed + 1000).split()[:100]
        assert seen.repeats(document(" ".join(half))) is None


def test_short_documents_repeat_exactly_or_not_at_all() -> None:
    seen = Seen()
    assert seen.repeats(document("turn on the light in the kitchen please")) is None
    assert seen.repeats(document("turn on the light in the bathroom please")) is None


def test_resemblance_is_common_over_all() -> None:
    assert resemblance(np.arange(4), np.arange(2, 8)) == 2 / 8
