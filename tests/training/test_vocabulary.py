"""The frozen vocabularies."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from aios.training.vocabulary import (
    EOT_ID,
    MASK_ID,
    PAD_ID,
    RESERVED,
    SIZES,
    UNWRITTEN,
    guard,
    train_vocabulary,
    vocabulary_path,
)

TEXTS = (
    "Hello there! What's 2024, my friend?",
    'def f(x):\n    for i in range(10):\n        self.foo_bar[i] += x  \n\n    return {"a": [1, 2]}\n',
    "caf\u00e9 \u2603 \t tabs\r\n  end  ",
    '{"name":"HassTurnOn","arguments":{"domain":["light"],"level":100}}',
)


@pytest.fixture(scope="module", params=[*SIZES, "fresh"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "fresh":
        return train_vocabulary(TEXTS * 20, 600)
    return Tokenizer.from_file(str(vocabulary_path(request.param)))


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_reserved_tokens_have_the_first_ids(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(name) for name in RESERVED] == list(range(len(RESERVED)))
    assert (RESERVED[PAD_ID], RESERVED[MASK_ID], RESERVED[EOT_ID]) == ("<|pad|>", "<|mask|>", "<|eot|>")
    assert sum(name.startswith("<|spare") for name in RESERVED) == 200


def test_digits_and_json_punctuation_stand_alone(tokenizer: Tokenizer) -> None:
    for token in tokenizer.get_vocab():
        spelled = token.replace("\u0120", " ")
        if spelled not in RESERVED and len(spelled) > 1:
            assert not set(spelled) & set('{}[]:,"0123456789'), token


def test_a_line_break_takes_its_indentation_along() -> None:
    tokens = Tokenizer.from_file(str(vocabulary_path(4096))).encode("if x:\n        return x").tokens
    assert "\u010a" + "\u0120" * 8 in tokens and "return" in tokens


@pytest.mark.parametrize("size", SIZES)
def test_a_frozen_vocabulary_has_its_size(size: int) -> None:
    assert Tokenizer.from_file(str(vocabulary_path(size))).get_vocab_size() == size


def test_what_is_never_written_is_what_no_text_holds() -> None:
    names = {RESERVED[index] for index in UNWRITTEN}
    assert {"<|mask|>", "<|pad|>", "<|expand|>", "<|delete|>", "<|spare199|>"} <= names
    assert not names & {"<|eot|>", "<|user|>", "<|assistant|>", "<|call|>", "<|code|>"}


def test_text_cannot_spell_a_reserved_token() -> None:
    tokenizer = Tokenizer.from_file(str(vocabulary_path(2048)))
    assert min(tokenizer.encode(guard("<|user|> and <|eot|>")).ids) >= len(RESERVED)
