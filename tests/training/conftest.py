"""A corpus small enough to train on in a second."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from aios.training.data import Corpus, tokenise
from aios.training.sources import Document

RESERVED = ("<|pad|>", "<|mask|>", "<|eot|>", *(f"<|spare{index}|>" for index in range(3, 32)))
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
def tokenizer() -> Tokenizer:
    """A byte-level tokenizer of 320 entries, far fewer than the frozen ones; ids 0 to 31 are reserved."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=list(RESERVED), show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    made.train_from_iterator((line for d in documents(40) for line in d.lines), trainer)
    return made


@pytest.fixture(scope="session")
def corpus(tokenizer: Tokenizer) -> Corpus:
    train, held_out = tokenise(documents(40), tokenizer), tokenise(documents(20, 40), tokenizer)
    return Corpus(train={"houses": train}, held_out={"houses": held_out}, weights={"houses": 1.0})
