"""Streams, splits and windows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from aios.training import data
from aios.training.data import Corpus
from aios.training.sources import Document
from aios.training.vocabulary import EOT_ID


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


def test_a_stream_comes_back_document_by_document(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = [Document(name=str(index), lines=(f"Call {index}12 now, caf\u00e9!", "Ok.")) for index in range(200)]
    made = data.tokenise(documents, tokenizer)
    data.save_stream(made, tmp_path / "calls.npz")
    stream = data.load_stream(tmp_path / "calls.npz")
    assert np.array_equal(stream.starts, made.starts)
    texts = np.split(stream.tokens, np.flatnonzero(stream.tokens == EOT_ID) + 1)[:-1]
    decoded = [tokenizer.decode(text[:-1].tolist()) for text in texts]
    assert decoded == ["\n".join(document.lines) for document in documents]
    assert stream.bytes == sum(len(text.encode()) for text in decoded)
