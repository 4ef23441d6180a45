"""Stretches of text, samples at matched entropy, and where a judge places them between a floor and real text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from aios.contracts import SamplingDefaults
from aios.lab import continuations
from aios.lab.continuations import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    Judge,
    Losses,
    by_document,
    diffusion,
    histogram_entropy,
    position,
    stretches,
    tuned,
)
from aios.model.config import TransformerConfig
from aios.model.score_network import TextScoreNetwork
from aios.quantisation.subject import LanguageNetwork, Subject
from aios.store import models
from tests.engine.conftest import write_language_model

SIZE = PROMPT_TOKENS + NEW_TOKENS


def test_documents_begin_before_they_go_on_and_short_ones_are_left_out() -> None:
    documents = {"a": [list(range(SIZE * 2 + 3)), list(range(500, 500 + SIZE))],
                 "b": [list(range(900, 900 + SIZE))] * 5, "c": [[1, 2, 3]]}
    rows = stretches(documents, {"a": 0.3, "b": 0.3, "c": 0.4}, 6)
    assert rows.shape == (6, SIZE)
    assert rows[:, 0].tolist() == [0, 500, SIZE, 900, 900, 900]
    assert stretches(documents, {"b": 1.0}, 2)[:, 0].tolist() == [900, 900], "a source without a share is left out"


def test_a_stream_falls_into_its_documents() -> None:
    assert by_document(np.array([5, 6, 2, 7, 2, 8], dtype=np.uint16), 2) == [[5, 6], [7], [8]]


def test_the_entropy_is_that_of_each_rows_histogram() -> None:
    rows = np.array([[1, 1, 1, 1], [1, 2, 3, 4]])
    assert histogram_entropy(rows) == pytest.approx(np.log(4) / 2)


def test_the_temperature_is_found_at_which_the_entropy_matches() -> None:
    def write(prompts: np.ndarray, temperature: float, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return rng.integers(0, max(int(40 * temperature), 1), size=(len(prompts), NEW_TOKENS))

    prompts = np.zeros((20, PROMPT_TOKENS), dtype=np.int64)
    wanted = histogram_entropy(write(prompts, 0.5, 1))
    found = tuned(write, prompts, wanted, 1.2, seed=1)
    assert abs(histogram_entropy(write(prompts, found, 1)) - wanted) < continuations.ENTROPY_TOLERANCE_NATS


def test_a_network_writes_by_seed_never_ends_the_text_and_follows_its_prompts() -> None:
    torch.manual_seed(0)
    shape = TransformerConfig.of(16, 1, head_dim=8, time_conditioning=False)
    sampling = SamplingDefaults(sampler="ancestral", steps_per_token=0.25, temperature=1.0, length=8)
    write = diffusion(TextScoreNetwork(shape, 30, never=(0, 1)).eval(), sampling, 2)
    prompts = np.random.default_rng(1).integers(3, 30, size=(continuations.BATCH_ROWS + 2, PROMPT_TOKENS))
    one, again, other = write(prompts, 1.0, 5), write(prompts, 1.0, 5), write(prompts, 1.0, 6)
    assert one.shape == (len(prompts), NEW_TOKENS) and (one == again).all() and (one != other).any()
    assert one.min() > 2
    assert (one[continuations.BATCH_ROWS:] == other[:2]).mean() < 0.9, "other prompts, whatever the seed"


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    write_language_model(tmp_path / "chat")
    subject = Subject.open(models.read_record(tmp_path / "chat"))
    assert isinstance(subject.network, LanguageNetwork)
    return Judge(subject.network.eval(), lambda text: subject.token_rows([text])[0], start=2)


def test_a_judge_scores_each_text_behind_its_own_beginning(judge: Judge) -> None:
    texts = [("the cat", " sat on the mat"), ("", "a dog ran"), ("we would like to book a table", " park"), ("a", "")]
    found = judge.losses(texts)
    assert found.bytes.tolist() == [15.0, 9.0, 5.0, 0.0]
    for (before, text), nats in zip(texts, found.nats, strict=True):
        given, told = [judge.start, *judge.encode(before)], judge.encode(text)
        logits = judge.network.head.project(judge.network.hidden(torch.tensor([given + told])))[0, :-1]
        alone = functional.cross_entropy(logits, torch.tensor((given + told)[1:]), reduction="none")[len(given) - 1:]
        assert nats == pytest.approx(float(alone.sum()), rel=1e-4, abs=1e-5)


def test_a_position_is_0_at_the_floor_and_1_at_real_text() -> None:
    rng = np.random.default_rng(0)
    real = rng.uniform(30, 50, 200)
    arms = [Losses(nats=real * factor, bytes=np.full(200, 40.0)) for factor in (1.0, 1.25, 1.5)]
    value, (low, high) = position(arms[1], arms[2], arms[0], seed=1)
    assert value == pytest.approx(0.5) and low <= 0.5 <= high and high - low < 0.01, "arms share their prompts"
    assert position(arms[2], arms[2], arms[0], 1)[0] == 0.0 and position(arms[0], arms[2], arms[0], 1)[0] == 1.0
