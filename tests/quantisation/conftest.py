"""A scratch home with a tiny encoder, a tiny language model and a tiny diffusion model, wide enough to be packed."""

from __future__ import annotations

from pathlib import Path

import pytest

from aios.config import Places
from tests.engine.conftest import write_encoder, write_language_model, write_text_model

TEXTS = ["the cat sat on the mat", "a dog ran in the park", "we would like to book a table", "good morning",
         "the dog sat on a table", "good cat", "we ran in the park", "a mat on the table in the park"]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Places:
    root = tmp_path_factory.mktemp("home")
    places = Places(config=root / "config", data=root / "data", state=root / "state", cache=root / "cache",
                    runtime=root / "run")
    places.create()
    write_encoder(places.models / "tiny-encoder", width=32, layers=2)
    write_language_model(places.models / "tiny-chat")
    write_language_model(places.models / "tiny-untied", kind="qwen2", chat=False)
    write_text_model(places.models / "tiny-text")
    return places


@pytest.fixture
def scratch(tmp_path: Path) -> Places:
    """Where compressed models of one test go."""
    return Places(config=tmp_path / "config", data=tmp_path / "data", state=tmp_path / "state",
                  cache=tmp_path / "cache", runtime=tmp_path / "run")
