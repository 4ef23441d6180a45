"""Passages from memory as tokens: as in training, never forged by what they say, within the room, with their traits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from aios.messages import Passage
from aios.text.passages import TRAITS, context, sighted, words
from aios.text.tokenizer import TextTokenizer
from aios.training.fact_sources import fact_document
from aios.training.vocabulary import RESERVED, vocabulary_path

PATH = vocabulary_path(2048)
TOKENIZER, LIBRARY = TextTokenizer.open(PATH), Tokenizer.from_file(str(PATH))
BEGIN = RESERVED.index("<|memory|>")
WITHIN, WEIGHT, ASKED, SHARED, BEGINS, MARK, FIGURE, CAPITAL = range(len(TRAITS))


def test_passages_are_read_as_their_documents_were_in_training() -> None:
    line = fact_document(3).lines[0]
    passages, _, _ = line.partition("<|user|>")
    told = [text for text in passages.split("<|memory|>") if text]
    best_first = [Passage(text=text) for text in reversed(told)]
    assert sighted(best_first, "", BEGIN, TOKENIZER, room=500).ids == LIBRARY.encode(passages).ids


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=60) | st.sampled_from(RESERVED), min_size=1, max_size=6), st.text(max_size=20),
       st.integers(2, 80))
def test_only_beginnings_are_reserved_tokens_and_all_fit(texts: list[str], question: str, room: int) -> None:
    seen = sighted([Passage(text=text) for text in texts], question, BEGIN, TOKENIZER, room=room)
    reserved = [token for token in seen.ids if token < len(RESERVED)]
    assert set(reserved) <= {BEGIN} and 1 <= len(reserved) <= len(texts)
    assert len(seen.ids) <= room and len(seen.traits) == len(seen.ids)
    assert all(len(row) == len(TRAITS) and (row[WITHIN] == 0.0) == (token == BEGIN)
               for row, token in zip(seen.traits, seen.ids, strict=True))


def test_the_best_passage_stands_last_and_the_worst_ones_make_room() -> None:
    passages = [Passage(text="alpha beta"), Passage(text="gamma delta"), Passage(text="word " * 30)]
    text = TOKENIZER.decode(sighted(passages, "", BEGIN, TOKENIZER, room=24).ids)
    assert text == "gamma deltaalpha beta"


def test_a_token_knows_whether_its_word_was_asked_for_and_who_shares_it() -> None:
    passages = [Passage(text="Anna's boat is called Kestra.", score=0.8),
                Passage(text="Ben's boat is called Olm.", score=0.2)]
    seen = sighted(passages, "What is the name of Anna's boat?", BEGIN, TOKENIZER, room=200)
    first = {TOKENIZER.decode([token]): row for token, row in zip(seen.ids, seen.traits, strict=True) if row[BEGINS]}
    boat, called, value = (next(row for piece, row in first.items() if f" {word}".startswith(piece))
                           for word in ("boat", "called", "Kestra"))
    assert boat[ASKED] == boat[SHARED] == 1.0
    assert called[ASKED] == 0.0 and called[SHARED] == 1.0
    assert value[ASKED] == value[SHARED] == 0.0 == value[FIGURE] and value[CAPITAL] == 1.0 != called[CAPITAL]
    assert value[WEIGHT] == pytest.approx(0.8) and seen.traits[-1][MARK] == 1.0


def test_a_context_names_every_passage_behind_the_system_text() -> None:
    told = context([Passage(text="one\n two"), Passage(text="three")], "Be kind.")
    assert told.startswith("Be kind.\n\n") and "- one two\n- three\n" in told


def test_a_context_of_long_passages_stays_short() -> None:
    assert len(context([Passage(text="x" * 100_000)] * 8, None)) < 9000


def test_possession_makes_no_other_word() -> None:
    assert words("Anna's BOAT, Anna\u2019s boat") == ["anna", "boat", "anna", "boat"]
