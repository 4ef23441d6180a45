"""Which memories matter for a query, and the Hopfield retrieval among them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios.errors import BadInput
from aios.memory import relevance
from aios.memory.conditioner import RELEVANT_MAX, MemoryConditioner, retrieve
from aios.memory.record import Floats, Memory
from aios.memory.relevance import FEATURES, Logistic, best_first, features
from aios.memory.vector_memory import ArrowStorage

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def memory(number: int, text: str, *, score: float = 0.5, age_days: int = 0, tags: Sequence[str] = ()) -> Memory:
    return Memory(id=number, text=text, metadata={}, namespace="default", tags=tuple(tags), source="", provenance="",
                  time=NOW - timedelta(days=age_days), score=score)


LOCKERS = [memory(number, f"{name}'s locker number is {100 + number}.", score=0.9 - 0.001 * number)
           for number, name in enumerate(("Anna", "Ben", "Clara", "Dorn", "Eska", "Fulm"), start=1)]


@pytest.mark.parametrize("number", range(1, 7))
def test_of_alike_sentences_the_one_with_the_rare_name_matters(number: int) -> None:
    name = LOCKERS[number - 1].text.split("'")[0]
    (found, chance), *others = best_first(relevance.shipped(), f"What is {name}'s locker number?", LOCKERS, "answer")
    assert found.id == number and chance > max(other for _, other in others)


def test_of_two_that_contradict_each_other_the_newer_one_matters() -> None:
    told = [memory(1, "My door code is 12.", age_days=40), memory(2, "My door code is 77.", age_days=3), *LOCKERS[2:]]
    found, _ = best_first(relevance.shipped(), "What is my door code?", told, "answer")[0]
    assert found.id == 2


def test_what_nobody_told_is_improbable() -> None:
    far = [replace(one, score=0.05) for one in LOCKERS]
    ranked = best_first(relevance.shipped(), "Who wrote the opera about a flute?", far, "answer")
    assert max(chance for _, chance in ranked) < 0.1


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200), st.lists(st.tuples(st.text(max_size=80), st.floats(-1, 1)), max_size=8))
def test_every_text_has_features_that_are_numbers(query: str, told: list[tuple[str, float]]) -> None:
    table = features(query, [memory(index, text, score=score) for index, (text, score) in enumerate(told)], "write")
    assert table.shape == (len(told), len(FEATURES)) and np.isfinite(table).all()


def test_a_scorer_learns_what_tells_the_labels_and_keeps_to_its_prior_without_evidence() -> None:
    rng = np.random.default_rng(1)
    table = rng.standard_normal((500, len(FEATURES)))
    matters = table[:, 2] > 0.3
    taught = Logistic.plain().fitted(table, matters, steadiness=1.0)
    right = (taught.log_odds(table) > 0) == matters
    assert right.mean() > 0.95
    assert np.argmax(np.abs(taught.weights)) == 2
    same = taught.fitted(table[:1], matters[:1], steadiness=1e9)
    assert np.allclose(same.weights, taught.weights, atol=1e-6)


def test_a_scorer_is_kept_as_it_is() -> None:
    scorer = relevance.shipped()
    again = Logistic.from_json(scorer.to_json({"trained": {"seed": 1}}))
    assert again == scorer


@pytest.mark.parametrize("change", [{"version": 2}, {"kind": "forest"}, {"weights": {}}, {"bias": None}, {"bias": "1"}])
def test_what_is_no_scorer_is_refused(change: dict[str, Any]) -> None:
    told = {**msgspec.json.decode(relevance.shipped().to_json({})), **change}
    with pytest.raises(BadInput):
        Logistic.from_json(msgspec.json.encode(told))


def test_a_stored_pattern_is_retrieved_from_a_noisy_query() -> None:
    rng = np.random.default_rng(2)
    patterns: Floats = rng.standard_normal((32, 64)).astype(np.float32)
    noisy = patterns[5] + 0.3 * rng.standard_normal(64).astype(np.float32)
    found = retrieve(noisy, patterns, np.ones(32, np.float32), beta=50.0)
    assert found.association.argmax() == 5 and found.association.sum() == pytest.approx(1.0, abs=1e-5)
    unit = patterns[5] / np.linalg.norm(patterns[5])
    assert float(found.state @ unit) > 0.999


def test_a_pattern_that_the_scorer_rules_out_attracts_nothing() -> None:
    patterns = np.eye(2, 4, dtype=np.float32)
    found = retrieve(patterns[0], patterns, np.array([0.0, 1.0], np.float32), beta=1.0)
    assert found.association[1] > 0.99


def test_further_updates_come_nearer_to_the_pattern() -> None:
    patterns = np.eye(3, 8, dtype=np.float32)
    query = np.array([0.8, 0.5, 0.1, 0, 0, 0, 0, 0], np.float32)
    one, three = (retrieve(query, patterns, np.ones(3, np.float32), beta=8.0, updates=updates) for updates in (1, 3))
    assert three.state[0] > one.state[0] > 0.8


@pytest.fixture
def conditioner(tmp_path: Path) -> Any:
    rng = np.random.default_rng(3)
    with ArrowStorage.open(tmp_path / "store", 16) as store:
        for one in LOCKERS:
            near = np.ones(16, np.float32) + 0.01 * rng.standard_normal(16).astype(np.float32)
            store.remember(one.text, vector=near, tags=["locker"], source="notes")
        yield MemoryConditioner(store)


QUERY = np.ones(16, np.float32)


def test_a_request_takes_along_the_texts_and_patterns_of_what_matters(conditioner: MemoryConditioner) -> None:
    passages = conditioner.passages("What is Dorn's locker number?", vector=QUERY)
    assert len(passages) == RELEVANT_MAX and passages[0].text == "Dorn's locker number is 104."
    assert passages[0].source == "notes" and all(len(one.vector or b"") == 64 for one in passages)
    scores = [one.score or 0.0 for one in passages]
    assert sum(scores) == pytest.approx(1.0, abs=1e-4) and scores[0] == max(scores)


def test_nothing_is_taken_along_where_nothing_matters(conditioner: MemoryConditioner) -> None:
    assert conditioner.passages("Who wrote the opera?", vector=-QUERY) == ()


def test_a_forgotten_memory_never_comes_back(conditioner: MemoryConditioner, tmp_path: Path) -> None:
    [first, *_] = conditioner.retrieve_relevant("What is Dorn's locker number?", vector=QUERY)
    store: Any = conditioner._store
    store.forget(first.memory.id)
    assert all("Dorn" not in one.text for one in conditioner.passages("What is Dorn's locker number?", vector=QUERY))


def test_a_query_without_vector_or_encoder_is_refused(conditioner: MemoryConditioner) -> None:
    with pytest.raises(BadInput, match="vector"):
        conditioner.retrieve_relevant("What is Dorn's locker number?")


def test_conditioning_needs_no_torch() -> None:
    program = "import sys; import aios.memory.conditioner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
