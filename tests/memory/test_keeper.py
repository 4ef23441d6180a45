"""The keeper opens the store of a home when there is one, locks it without its secret, and is true to its encoder."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from aios.errors import EncoderChanged, KeyRefused, MemoryCorrupt
from aios.memory.keeper import ENCODER_NAME, Keeper, conditions
from aios.memory.record import Filter, NewMemory
from aios.messages import MemoryFilter
from tests.memory.conftest import DIM, encode

WHEN = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
ANCHOR = encode(["a text that never changes"])[0]


def new(text: str, **fields: object) -> NewMemory:
    return NewMemory(text=text, vector=encode([text])[0], **fields)


@pytest.fixture
def keeper(home):
    kept = Keeper(home)
    yield kept
    kept.close()


def test_a_home_without_memories_has_no_store_and_no_folder(keeper, home):
    assert keeper.store() is None
    assert not home.exists()


def test_a_store_has_the_dimension_of_its_first_vectors(keeper, home):
    keeper.open(dim=DIM).remember_many([new("one")])
    keeper.close()
    again = Keeper(home)
    store = again.open(dim=999)
    assert store.stats().dim == DIM and again.store() is store
    again.close()


def test_a_memory_that_is_kept_once_is_kept_once(keeper):
    keeper.open(dim=DIM)
    some = [new("a", time=WHEN), new("b", time=WHEN), new("a", time=WHEN)]
    first = keeper.remember_once(some)
    assert first[0] == first[2] != first[1]
    assert keeper.remember_once(some) == first
    others = [new("a", time=WHEN, namespace="n"), new("a", time=WHEN, source="s"), new("a b", time=WHEN),
              new("a", time=WHEN.replace(second=6))]
    assert len({*keeper.remember_once(others), *first}) == 6


def test_a_forgotten_memory_may_be_kept_again(keeper):
    store = keeper.open(dim=DIM)
    [number] = keeper.remember_once([new("a", time=WHEN)])
    store.forget(number)
    assert keeper.remember_once([new("a", time=WHEN)]) != [number]


def test_an_encoder_is_introduced_once_and_known_again_packed_otherwise(keeper, home):
    keeper.open(dim=DIM)
    keeper.check_encoder(None)
    with pytest.raises(EncoderChanged) as caught:
        keeper.check_encoder("r1")
    assert caught.value.details["introduce"] is True
    keeper.introduce("r1", "minilm", ANCHOR)
    keeper.check_encoder("r1")
    noise = np.random.default_rng(1).standard_normal(DIM).astype(np.float32)
    keeper.introduce("r2", "minilm", (ANCHOR + 0.02 * noise) * 3)
    keeper.close()
    other = Keeper(home)
    for release in ("r1", "r2"):
        other.check_encoder(release)


@pytest.mark.parametrize("vector", [encode(["something else"])[0], np.ones(DIM + 1, np.float32)])
def test_another_encoder_is_refused_with_the_name_of_the_first(keeper, vector):
    keeper.open(dim=DIM)
    keeper.introduce("r1", "minilm", ANCHOR)
    with pytest.raises(EncoderChanged, match="minilm") as caught:
        keeper.introduce("r9", "other", vector)
    assert "introduce" not in caught.value.details and "--encode" in caught.value.remedy
    with pytest.raises(EncoderChanged):
        keeper.check_encoder("r9")


def test_a_damaged_note_of_the_encoder_is_told_and_not_guessed(keeper, home):
    keeper.open(dim=DIM)
    (home / ENCODER_NAME).write_bytes(b"{}")
    (home / ENCODER_NAME).chmod(0o600)
    with pytest.raises(MemoryCorrupt):
        keeper.check_encoder("r1")


def test_a_passphrase_locks_the_store_until_it_is_given(home):
    first = Keeper(home, key="passphrase")
    with pytest.raises(KeyRefused) as caught:
        first.open(dim=DIM)
    assert caught.value.remedy == "aios memory unlock" and first.store() is None
    with pytest.raises(KeyRefused):
        first.unlock("short")
    first.unlock("correct horse battery")
    assert first.store() is None, "nothing is there until something is remembered"
    assert first.open(dim=DIM).stats().dim == DIM
    first.close()
    second = Keeper(home, key="file")        # what a store needs stands beside it
    with pytest.raises(KeyRefused):
        second.store()
    with pytest.raises(KeyRefused):
        second.unlock("wrong horse battery")
    with pytest.raises(KeyRefused, match="locked"):
        second.store()
    second.unlock("correct horse battery")
    assert second.store() is not None
    second.close()


def test_a_store_without_a_passphrase_cannot_be_unlocked(keeper):
    with pytest.raises(KeyRefused, match="file"):
        keeper.unlock("correct horse battery")
    keeper.open(dim=DIM)
    with pytest.raises(KeyRefused, match="file"):
        keeper.unlock("correct horse battery")


def test_what_is_empty_in_a_filter_is_no_condition():
    assert conditions(MemoryFilter(tags=[], sources=())) is None
    assert conditions(MemoryFilter(tags=["a"], since=WHEN)) == Filter(tags=["a"], since=WHEN)
