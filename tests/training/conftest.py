"""A corpus small enough to train on in a second."""

from __future__ import annotations

import pytest

from aios.training.data import Corpus, tokenise, train_tokenizer
from aios.training.sources import Document

COLOURS = ("red", "green", "blue", "grey")


def documents(count: int, start: int = 0) -> list[Document]:
    """Dialogues that repeat themselves: a few words, in an order that never changes."""
    return [
        Document(
            name=str(index),
            lines=(f"The {COLOURS[index % 4]} house.", f"Is it {COLOURS[index % 4]}?", "Yes, it is."),
        )
        for index in range(start, start + count)
    ]


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    tokenizer = train_tokenizer((line for d in documents(40) for line in d.lines), 320)
    train, held_out = tokenise(documents(40), tokenizer), tokenise(documents(20, 40), tokenizer)
    return Corpus(train={"houses": train}, held_out={"houses": held_out}, weights={"houses": 1.0})
