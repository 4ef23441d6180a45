"""Tokenizers of text models and sentence encoders: round trips, reserved tokens, hostile text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from aios.contracts import Tokenizer as Contract
from aios.errors import ModelCorrupt
from aios.text import vocabulary as module
from aios.text.tokenizer import SentenceTokenizer, TextTokenizer, well_formed

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)


def byte_level() -> Tokenizer:
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=["<|mask|>", "<|eot|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    library.train_from_iterator(["the cat sat on the mat"] * 4, trainer)
    return library


TEXT: Contract = TextTokenizer(byte_level())


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT)
def test_any_text_comes_back_with_lone_surrogates_replaced(text: str) -> None:
    assert TEXT.decode(TEXT.encode(text)) == well_formed(text)


@settings(max_examples=100, deadline=None)
@given(ANY_TEXT)
def test_ids_are_within_the_vocabulary_and_never_reserved(text: str) -> None:
    assert all(2 <= token < TEXT.vocab_size for token in TEXT.encode(text))


def test_reserved_tokens_in_a_text_are_plain_text() -> None:
    ids = TEXT.encode("<|mask|> and <|eot|>")
    assert not {TEXT.special("<|mask|>"), TEXT.special("<|eot|>")} & set(ids)
    assert TEXT.decode(ids) == "<|mask|> and <|eot|>"


def test_reserved_tokens_are_dropped_from_decoded_text() -> None:
    eot = TEXT.special("<|eot|>")
    assert TEXT.decode([eot, *TEXT.encode("the cat"), eot]) == "the cat"
    assert TEXT.piece(eot) == ""


def test_an_unknown_reserved_token_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        TEXT.special("<|none|>")


def test_pieces_of_plain_text_add_up_to_it() -> None:
    assert "".join(TEXT.piece(token) for token in TEXT.encode("the cat sat")) == "the cat sat"


def test_bytes_that_are_no_text_alone_show_as_nothing() -> None:
    assert [TEXT.piece(token) for token in TEXT.encode("é")] == ["", ""]
    assert TEXT.decode(TEXT.encode("é")[:1]) == "\ufffd"


def test_surrogate_pairs_are_joined() -> None:
    assert well_formed("\ud83d\ude00 \udc00") == "😀 \ufffd"


def sentence(length_max: int) -> SentenceTokenizer:
    library = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "cat": 3}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    library.enable_padding(length=8)
    return SentenceTokenizer(library, length_max)


def test_sentences_are_wrapped_and_cut_and_never_padded() -> None:
    assert sentence(4).encode_batch(["cat", "", "cat cat cat cat", "\ud800"]) == [
        [1, 3, 2], [1, 2], [1, 3, 3, 2], [1, 0, 2]]


def test_a_megabyte_is_cut_before_it_is_tokenised() -> None:
    assert sentence(4).encode_batch(["cat " * (1 << 18)]) == [[1, 3, 3, 2]]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0"}', b"[" * 10_000])
def test_a_broken_file_is_a_corrupt_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ModelCorrupt, match=r"tokenizer\.json"):
        TextTokenizer.open(path)


def test_a_missing_or_huge_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelCorrupt, match="cannot read"):
        TextTokenizer.open(tmp_path / "absent.json")
    byte_level().save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(module, "TOKENIZER_BYTES_MAX", 10)
    with pytest.raises(ModelCorrupt, match="larger than 10"):
        TextTokenizer.open(tmp_path / "tokenizer.json")
