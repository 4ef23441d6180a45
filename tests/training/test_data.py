"""Streams, splits and windows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from aios.training import data
from aios.training.data import SPECIAL_TOKENS, Corpus, is_held_out, open_corpus, prepare
from aios.training.sources import Document, Source
from aios.training.vocabulary import EOT_ID, MASK_ID


def test_a_batch_depends_on_seed_and_step_alone(corpus: Corpus) -> None:
    first = corpus.batch(seed=1, step=5, rows=4, length=16)
    corpus.batch(seed=1, step=6, rows=4, length=16)
    assert torch.equal(corpus.batch(seed=1, step=5, rows=4, length=16), first)
    assert not torch.equal(corpus.batch(seed=2, step=5, rows=4, length=16), first)


def test_windows_begin_at_lines(corpus: Corpus) -> None:
    stream = corpus.train["houses"]
    starts = {tuple(window) for window in stream.windows(stream.starts, 8).tolist()}
    assert {tuple(row) for row in corpus.batch(seed=0, step=0, rows=32, length=8).tolist()} <= starts


def test_held_out_windows_do_not_overlap(corpus: Corpus) -> None:
    windows = corpus.held_out_windows("houses", rows=3, length=16)
    stream = corpus.held_out["houses"]
    assert windows.shape == (3, 16)
    joined = np.concatenate([stream.tokens, stream.tokens]).tolist()
    places = [
        i for w in windows.tolist() for i in range(0, len(stream.tokens), 16) if joined[i : i + 16] == w
    ]
    assert len(set(places)) >= 3


def test_about_five_documents_of_a_hundred_are_held_out_whatever_their_order() -> None:
    names = [Document(name=f"dialogue/{index}", lines=()) for index in range(4000)]
    share = sum(map(is_held_out, names)) / len(names)
    assert share == pytest.approx(data.HELD_OUT_PERCENT / 100, abs=0.01)


def test_the_mixture_follows_its_weights(corpus: Corpus) -> None:
    tokens = np.full(100, 40, dtype=np.uint16)
    other = data.Stream(tokens=tokens, starts=np.arange(100), bytes=100)
    mixed = replace(
        corpus,
        train={"houses": corpus.train["houses"], "forties": other},
        weights={"houses": 0.25, "forties": 0.75},
    )
    rows = mixed.batch(seed=3, step=0, rows=2000, length=4)
    assert (rows == 40).all(dim=1).float().mean().item() == pytest.approx(0.75, abs=0.04)


def some_text(_: Path) -> list[Document]:
    return [
        Document(name=str(index), lines=(f"Call {index}12 now, caf\u00e9!", "Ok.")) for index in range(200)
    ]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    source = Source(name="calls", file="calls", weight=1.0, origin="here", licence="none", read=some_text)
    (tmp_path / "calls").touch()
    monkeypatch.setattr(data, "MIXTURE", (source,))
    monkeypatch.setattr(data, "ELSEWHERE", replace(source, name="elsewhere", weight=0.0))
    prepare([tmp_path], tmp_path / "data", vocab_size=300, seed=1)
    return tmp_path / "data"


def test_prepared_text_comes_back_document_by_document(prepared: Path) -> None:
    corpus = open_corpus(prepared)
    tokenizer = Tokenizer.from_file(str(prepared / "tokenizer.json"))
    found = {}
    for split in (corpus.train["calls"], corpus.held_out["calls"]):
        texts = np.split(split.tokens, np.flatnonzero(split.tokens == EOT_ID) + 1)[:-1]
        decoded = [tokenizer.decode(text[:-1].tolist()) for text in texts]
        assert split.bytes == sum(len(text.encode()) for text in decoded)
        found |= dict.fromkeys(decoded, split)
    assert set(found) == {"\n".join(document.lines) for document in some_text(prepared)}
    assert len(corpus.held_out["elsewhere"].tokens) > len(corpus.train["calls"].tokens)


def test_the_tokenizer_reserves_ids_and_splits_numbers(prepared: Path) -> None:
    tokenizer = Tokenizer.from_file(str(prepared / "tokenizer.json"))
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(32))
    assert tokenizer.token_to_id("<|mask|>") == MASK_ID
    assert tokenizer.token_to_id("<|eot|>") == EOT_ID
    assert len(tokenizer.encode("2024").ids) == 4
    for text in ("Snowman \u2603\n\ttabs", "caf\u00e9 12"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
