"""An engine in a library recalls from a snapshot of its home's memories; inside the daemon that is done before."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios.config import Config, Places
from aios.engine.arrow import ArrowEngine
from aios.memory.vector_memory import ArrowStorage
from aios.messages import ChatMessage, Diffuse, Generate, Passage
from tests.engine.conftest import SENTENCES


@pytest.fixture
def remembering(home: Places, settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                ) -> Iterator[tuple[ArrowEngine, ArrowStorage]]:
    """An engine, and the store that it reads while another process would write it."""
    monkeypatch.setattr(Places, "memory", property(lambda places: tmp_path / "memory"))
    engine = ArrowEngine.open(settings, places=home)
    with ArrowStorage.open(tmp_path / "memory", 16, encode=engine.encode) as store:
        yield engine, store
    shutil.rmtree(tmp_path / "memory")


def test_a_request_takes_along_what_is_remembered_now(remembering: tuple[ArrowEngine, ArrowStorage]) -> None:
    engine, store = remembering
    asked = Generate(prompt=SENTENCES[0], memory="auto")
    assert engine.route(asked) == Generate(prompt=SENTENCES[0])
    first = store.remember(SENTENCES[0], source="diary")
    store.remember(SENTENCES[2])
    lent = engine.route(asked)
    assert lent.memory == "off" and (lent.passages[0].id, lent.passages[0].source) == (first, "diary")
    store.forget(first)
    assert first not in [one.id for one in engine.route(asked).passages]


def test_what_is_recalled_for_is_what_the_user_said_last(remembering: tuple[ArrowEngine, ArrowStorage]) -> None:
    engine, store = remembering
    ids = store.remember(SENTENCES[0]), store.remember(SENTENCES[2])
    said = tuple(ChatMessage(role=role, content=text) for role, text in (
        ("user", SENTENCES[0]), ("assistant", "no"), ("user", SENTENCES[2]), ("assistant", SENTENCES[0])))
    assert engine.route(Generate(messages=said, memory="auto")).passages[0].id == ids[1]


def test_passages_that_are_given_are_taken_as_they_are(remembering: tuple[ArrowEngine, ArrowStorage]) -> None:
    engine, _ = remembering
    given = Generate(prompt="x", passages=(Passage(text="y"),))
    assert engine.route(given) == given


def test_without_memories_a_request_is_what_it_was(home: Places, settings: Config, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Places, "memory", property(lambda places: tmp_path / "none"))
    engine = ArrowEngine.open(settings, places=home)
    wished = list(engine.ask(Diffuse(prompt="good", memory="auto", length=4, steps=2, seed=1)))
    plain = list(engine.ask(Diffuse(prompt="good", length=4, steps=2, seed=1)))
    assert wished == plain and not (tmp_path / "none").exists()
