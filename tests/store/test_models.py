"""What lies in a model's folder is what its record says, or it is not opened."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from aios.config import Places
from aios.errors import AiosError, BadInput, ModelCorrupt, ModelMissing, UnknownArchitecture
from aios.store import models
from aios.store.convert import convert_into
from aios.store.housekeeping import LEFTOVER_AGE_S, housekeep
from aios.store.record import ModelRecord, read_record, release_id, seal, verify
from aios.store.sources import open_source
from tests.store.conftest import contents, write_folder


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_sealed_model_is_found_verified_and_opened(model: ModelRecord, places: Places) -> None:
    found = models.find("tiny", places)
    assert found == model
    assert (found.kind, found.architecture, found.embedded) == ("encoder", "bert", False)
    verify(found)
    tensors = models.open_tensors(found)
    assert {name: record.shape for name, record in tensors.records.items()} == {"a": (2, 2), "b": (3,), "empty": (0, 4)}
    assert bytes(tensors.packed_bytes("b")) == b"xyz"
    assert tensors.release == found.release


@pytest.mark.parametrize("name", ["config.json", "model.parquet", "pooling.json", "tokenizer.json"])
def test_verify_names_the_file_in_which_one_bit_changed(model: ModelRecord, name: str) -> None:
    flip(model.path / name, 0 if name.endswith(".json") else -1)
    with pytest.raises(ModelCorrupt, match=name.partition(".")[0]):
        verify(model)


@pytest.mark.parametrize("name", ["config.json", "model.parquet", "pooling.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_opening_names_the_file_that_is_cut_or_gone(model: ModelRecord, name: str, damage: str) -> None:
    path = model.path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelCorrupt, match=name):
        models.open_tensors(model)


def test_one_changed_bit_in_the_weights_is_named_before_an_answer_leaves(model: ModelRecord) -> None:
    with closing(models.open_tensors(model)) as tensors:
        tensors.intact(wait=True)
        offset = tensors.records["b"].offset
    flip(model.path / "model.parquet", offset)
    with closing(models.open_tensors(model)) as tensors, pytest.raises(ModelCorrupt, match=r"model\.parquet.*\bb\b"):
        tensors.intact(wait=True)
    with pytest.raises(ModelCorrupt, match=r"model\.parquet.*\bb\b"):
        verify(model)


def test_weights_of_another_model_are_refused(model: ModelRecord, places: Places, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", contents() | {"config.json": b'{"model_type": "bert", "hidden_size": 8}'})
    convert_into(open_source(other), tmp_path / "converted")
    foreign = (tmp_path / "converted" / "model.parquet").read_bytes()
    assert len(foreign) == (model.path / "model.parquet").stat().st_size
    (model.path / "model.parquet").write_bytes(foreign)
    with pytest.raises(ModelCorrupt, match=r"model\.parquet"):
        models.open_tensors(model)
    with pytest.raises(ModelCorrupt, match="another"):
        seal(model.path, name="tiny", source="", source_version="", licence="")


def test_a_model_of_an_earlier_version_says_how_to_renew_it(model: ModelRecord, places: Places) -> None:
    path = model.path / "model.json"
    old = {"files": [{"name": "model.safetensors", "bytes": 1, "sha256": "", "crc32c": 7}], "version": 1}
    path.write_text(json.dumps(json.loads(path.read_text()) | old))
    with pytest.raises(ModelCorrupt, match="earlier version") as caught:
        models.find("tiny", places)
    assert caught.value.remedy == "aios models pull tiny"


def test_an_unknown_architecture_is_refused(model: ModelRecord) -> None:
    (model.path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UnknownArchitecture, match="mamba"):
        seal(model.path, name="tiny", source="", source_version="", licence="")


def test_the_release_follows_spec_tokenizer_and_tensors_but_not_the_spelling_of_the_spec() -> None:
    base = release_id({"a": 1, "b": [1, 2]}, "t", "w")
    assert release_id({"b": [1, 2], "a": 1}, "t", "w") == base
    assert len({base, release_id({"a": 2, "b": [1, 2]}, "t", "w"), release_id({"a": 1, "b": [1, 2]}, "u", "w"),
                release_id({"a": 1, "b": [1, 2]}, "t", "v")}) == 4


@pytest.mark.parametrize("change", [{"name": "other"}, {"version": 3}, {"files": []}, {"kind": "magic"},
                                    {"files": [{"name": "../x", "bytes": 1, "sha256": ""}]}])
def test_a_record_that_does_not_describe_its_folder_is_refused(model: ModelRecord, change: dict[str, object]) -> None:
    path = model.path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelCorrupt, match="record"):
        read_record(model.path)


def test_a_broken_model_is_listed_with_its_problem_beside_the_others(model: ModelRecord, places: Places) -> None:
    shutil.copytree(model.path, places.models / "broken")
    (places.models / ".staging-left").mkdir()
    lines = {line.name: line for line in models.listing(places)}
    assert set(lines) == {"tiny", "broken"}
    assert lines["tiny"].record == model
    assert "record" in (lines["broken"].problem or "")
    assert lines["broken"].to_json()["problem"]


def test_a_removed_model_is_gone_and_an_embedded_one_stays(model: ModelRecord, places: Places) -> None:
    shutil.copytree(model.path, models.embedded_folder() / "tiny")
    assert models.find("tiny", places).embedded
    with pytest.raises(BadInput, match="part of the package"):
        models.remove("tiny", places)
    shutil.rmtree(models.embedded_folder())
    models.remove("tiny", places)
    assert models.names(places) == []
    assert [path.name for path in places.models.iterdir()] == [".lock"]
    with pytest.raises(ModelMissing):
        models.remove("tiny", places)


@pytest.mark.parametrize("name", ["..", "../tiny", "/etc", "Tiny", ".lock", "", "a" * 65, "a/b", "a\0"])
def test_a_name_never_leaves_the_folder_of_models(places: Places, name: str) -> None:
    for act in (models.find, models.remove):
        with pytest.raises(BadInput):
            act(name, places)


def test_a_missing_model_says_how_to_get_it(places: Places) -> None:
    with pytest.raises(ModelMissing) as missing:
        models.find("minilm", places)
    assert missing.value.remedy == "aios models pull minilm"


def test_a_link_in_the_folder_of_models_is_no_model(model: ModelRecord, places: Places) -> None:
    (places.models / "link").symlink_to(model.path)
    assert models.names(places) == ["tiny"]


def test_housekeeping_reports_damage_and_removes_leftovers(model: ModelRecord, places: Places) -> None:
    (places.models / ".staging-left").mkdir()
    assert housekeep(places) == {"models": {"tiny": None}, "removed": [".staging-left"]}
    flip(model.path / "model.parquet")
    problem = housekeep(places)["models"]["tiny"]
    assert problem is not None
    assert "model.parquet" in problem


def test_the_store_is_imported_without_torch_or_numpy() -> None:
    heavy = "{'torch', 'numpy', 'safetensors', 'tokenizers'}"
    rooms = "aios.store.importing, aios.store.pull, aios.store.housekeeping"
    code = f"import sys, {rooms}; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_error_of_the_store_says_what_to_do(model: ModelRecord, places: Places) -> None:
    flip(model.path / "config.json", 0)
    for act in (lambda: verify(model), lambda: models.find("absent", places), lambda: models.remove("..", places)):
        with pytest.raises(AiosError) as caught:
            act()
        assert caught.value.remedy


def test_an_interrupted_import_is_kept_for_a_day(places: Places) -> None:
    for name, age in (("new", 0.0), ("old", LEFTOVER_AGE_S + 60)):
        folder = places.models / f".import-{name}"
        folder.mkdir()
        os.utime(folder, (time.time() - age,) * 2)
    assert housekeep(places)["removed"] == [".import-old"]
