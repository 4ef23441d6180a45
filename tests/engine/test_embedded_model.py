"""The model inside the package: it answers at once, without network, with nothing installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from aios.config import Config, ModelSection, Places
from aios.engine.arrow import ArrowEngine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ArrowEngine:
    empty: Path = tmp_path_factory.mktemp("home")
    places = Places(config=empty, data=empty, state=empty, cache=empty, runtime=empty)
    return ArrowEngine.open(Config(model=ModelSection(threads=1)), places=places)


def test_a_prompt_is_continued(engine: ArrowEngine) -> None:
    response = engine.diffuse("I would like to", length=24, seed=1)
    assert response.verdict.model == "text-default"
    assert response.text.strip()
    assert response.text == engine.diffuse("I would like to", length=24, seed=1).text


def test_a_gap_is_filled(engine: ArrowEngine) -> None:
    response = engine.infill("Good morning. ", " Thank you very much.", length=12, seed=1)
    assert response.usage.completion_tokens == 12


def test_what_it_writes_is_mostly_words(engine: ArrowEngine) -> None:
    text = "".join(engine.diffuse("I would like to", length=48, seed=seed).text for seed in range(4))
    assert sum(character.isalpha() or character in " ,.'?!\n" for character in text) > 0.9 * len(text)
