"""`aios models quantize` in a home of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aios.config import Places
from aios.errors import BadInput, ModelMissing
from tests.engine.conftest import write_encoder
from tests.quantisation.conftest import TEXTS

if TYPE_CHECKING:
    from tests.cli.conftest import Run


@pytest.fixture
def tiny(home: Path) -> Path:
    """An installed encoder with random weights."""
    places = Places.find()
    places.create()
    write_encoder(places.models / "tiny", width=32)
    return places.models / "tiny"


@pytest.fixture
def texts(tmp_path: Path) -> str:
    file = tmp_path / "texts"
    file.write_text("\n".join(TEXTS))
    return str(file)


def test_a_model_is_compressed_with_a_table_of_before_and_after(run: Run, tiny: Path, texts: str) -> None:
    done = run("models", "quantize", "tiny", "--bits", "8", "--calibrate", texts)
    assert done.code == 0
    assert "encoder.layer.0.attention.self.query.weight" in done.out
    assert "int8 g64" in done.out
    assert "no stsb_en.parquet" in done.out   # quality is null with its reason
    assert "tiny-int8" in [model["name"] for model in run("models", "list", "--json").json["models"]]


def test_json_holds_every_tensor_and_counts_all_bits(run: Run, tiny: Path, texts: str) -> None:
    done = run("models", "quantize", "tiny", "--budget-bits", "7", "--calibrate", texts, "--as", "small", "--json")
    found = done.json
    assert found["name"] == "small"
    assert found["bits_per_weight"] <= 7 < found["bits_per_weight_before"] == 32
    assert sum(tensor["bytes"] for tensor in found["tensors"]) == found["bytes"]
    assert found["quality"]["before"] is None and found["quality"]["reason"]
    assert run("models", "show", "small", "--json").json["derived_from"] == found["derived_from"]
    assert run("models", "verify", "small").code == 0


@pytest.mark.parametrize("words", [
    ("--bits", "3"), ("--group", "16"), ("--budget-mb", "0"), ("--budget-mb", "0.001"), ("--budget-bits", "nan"),
    ("--rank", "8", "--budget-bits", "5"), ("--rank", "999"), ("--as", "../up"), ("--as", "tiny"),
    ("--calibrate", "/nowhere")])
def test_what_cannot_be_is_refused_with_a_remedy(run: Run, tiny: Path, words: tuple[str, ...]) -> None:
    done = run("models", "quantize", "tiny", *words, "--json")
    assert done.code == BadInput.exit_code
    assert done.json["error"]["remedy"]


def test_an_absent_model_is_missing(run: Run, home: Path) -> None:
    assert run("models", "quantize", "absent").code == ModelMissing.exit_code
