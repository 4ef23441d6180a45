"""A conversion keeps every tensor, survives any interruption, and leaves nothing half done under its final name."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aios.config import Places
from aios.errors import AiosError, BadInput, Busy, ModelCorrupt, ModelError, UnknownArchitecture
from aios.store import convert, models, sources_safetensors
from aios.store.convert import ModelConverter
from aios.store.importing import export_model, import_model
from aios.store.quant import ArrowQuant
from aios.store.record import verify
from aios.store.weights import WeightLoader, WeightWriter
from tests.store.conftest import contents, tensor_file, write_folder
from tests.store.gguf_files import write_gguf

SPEC = b'{"model_type": "bert", "hidden_size": 4}'


def tensors() -> dict[str, torch.Tensor]:
    """One of every element type, and the shapes that are easily got wrong."""
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
             torch.int8, torch.uint8]
    found = {str(kind).removeprefix("torch."): torch.arange(-3, 9).reshape(3, 4).to(kind) for kind in kinds}
    return found | {"bool": torch.tensor([True, False]), "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4),
                    "large": torch.arange(3_000_000, dtype=torch.int32).reshape(3, 1_000_000)}


def hugging_face(folder: Path, *, shards: int = 1) -> Path:
    """A Hugging Face folder with `tensors()` in one or several files."""
    write_folder(folder, {"config.json": SPEC, "tokenizer.json": b"{}", "README.md": b"---\nlicense: mit\n---\n# T\n"})
    everything = list(tensors().items())
    if shards == 1:
        save_file(dict(everything), folder / "model.safetensors")
        return folder
    places = {}
    for index in range(shards):
        name = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        mine = dict(everything[index::shards])
        save_file(mine, folder / name)
        places |= dict.fromkeys(mine, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def same(found: Any, expected: dict[str, torch.Tensor]) -> bool:
    return set(found) == set(expected) and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_of_a_hugging_face_folder_arrives_unchanged(tmp_path: Path, shards: int) -> None:
    folder = ModelConverter.convert(hugging_face(tmp_path / "m", shards=shards))
    assert folder == tmp_path / "m.aios"
    loader = WeightLoader.open(folder / "model.parquet")
    loader.verify()
    assert same(loader, tensors())
    assert (loader.spec, loader.card) == (json.loads(SPEC), "---\nlicense: mit\n---\n# T\n")
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json", "README.md", "model.parquet"}
    assert all(not path.stat().st_mode & 0o077 for path in [folder, *folder.iterdir()])


def test_a_release_does_not_depend_on_the_container(tmp_path: Path) -> None:
    one = ModelConverter.convert(hugging_face(tmp_path / "one"))
    three = ModelConverter.convert(hugging_face(tmp_path / "three", shards=3) / "model.safetensors.index.json",
                                   target=tmp_path / "converted")
    back = ModelConverter.convert(one, "safetensors")
    again = ModelConverter.convert(back / "model.safetensors", target=tmp_path / "again")
    releases = {WeightLoader.open(folder / "model.parquet").release for folder in (one, three, again)}
    assert len(releases) == 1
    assert same(load_file(back / "model.safetensors"), tensors())


def test_packed_tensors_leave_as_what_they_stand_for(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", quantised="Q4_1")
    folder = ModelConverter.convert(tmp_path / "m.gguf", target=tmp_path / "packed")
    exact = ModelConverter.convert(folder, "safetensors", target=tmp_path / "exact", precision="f32")
    short = ModelConverter.convert(tmp_path / "m.gguf", "safetensors", target=tmp_path / "short")
    name = "model.layers.0.mlp.gate_proj.weight"
    packed = WeightLoader.open(folder / "model.parquet")[name]
    weights = ArrowQuant.dequantize(packed)   # type: ignore[arg-type]
    assert torch.equal(load_file(exact / "model.safetensors")[name], weights)
    assert torch.equal(load_file(short / "model.safetensors")[name], weights.half())


def test_a_residual_is_part_of_what_leaves(tmp_path: Path) -> None:
    write_folder(tmp_path / "m", {"config.json": SPEC})
    packed = replace(ArrowQuant.quantize(torch.randn(70, 96), bits=2, group_size=32),
                     left=torch.randn(70, 3).half(), right=torch.randn(3, 96).half())
    with WeightWriter(tmp_path / "m" / "model.parquet") as writer:
        writer.add("w", packed)
        writer.finish(spec=json.loads(SPEC), card="", tokenizer_sha256="")
    found = load_file(ModelConverter.convert(tmp_path / "m", "safetensors", precision="f32") / "model.safetensors")
    assert torch.allclose(found["w"], ArrowQuant.dequantize(packed), atol=1e-6)


@pytest.mark.parametrize("nested", [False, True])
def test_a_torch_checkpoint_is_read_without_running_what_it_holds(tmp_path: Path, nested: bool) -> None:
    write_folder(tmp_path / "m", {"config.json": SPEC})
    state = tensors() | {"strided": torch.arange(12).reshape(3, 4).T}
    torch.save({"state_dict": state, "epoch": 3} if nested else state, tmp_path / "m" / "pytorch_model.bin")
    loader = WeightLoader.open(ModelConverter.convert(tmp_path / "m") / "model.parquet")
    assert same(loader, state)


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "m", {"config.json": SPEC})
    path = tmp_path / "m" / "pytorch_model.bin"
    if legacy:
        path.write_bytes(pickle.dumps(Trap()))
    else:
        torch.save({"a": Trap()}, path)
    with pytest.raises(AiosError) as caught:
        ModelConverter.convert(tmp_path / "m")
    assert "safetensors" in caught.value.remedy
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("content", [
    {"a": 3}, {}, [torch.zeros(2)], {3: torch.zeros(2)}, {"a": torch.zeros(2, dtype=torch.complex64)}])
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    write_folder(tmp_path / "m", {"config.json": SPEC})
    torch.save(content, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises((ModelCorrupt, UnknownArchitecture)):
        ModelConverter.convert(tmp_path / "m")


@pytest.mark.parametrize("index", [
    {}, {"weight_map": {}}, {"weight_map": {"a": "../model.safetensors"}}, {"weight_map": {"a": "/etc/passwd"}},
    {"weight_map": {"a": ".."}}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "absent.safetensors"}}])
def test_an_index_names_only_files_beside_it(tmp_path: Path, index: object) -> None:
    write_folder(tmp_path / "m", {"config.json": SPEC, "model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises((ModelCorrupt, BadInput)):
        ModelConverter.convert(tmp_path / "m")


def test_a_tensor_that_two_shards_hold_is_refused(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}).encode()
    write_folder(tmp_path / "m", {"config.json": SPEC, "model.safetensors.index.json": index,
                                  "1.safetensors": tensor_file(), "2.safetensors": tensor_file()})
    with pytest.raises(ModelCorrupt, match="twice"):
        ModelConverter.convert(tmp_path / "m")


def test_what_is_no_model_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    write_folder(tmp_path / "no-config", {"model.safetensors": tensor_file()})
    for path in (tmp_path / "absent", tmp_path / "empty", tmp_path / "a.txt", tmp_path / "no-config"):
        with pytest.raises(BadInput) as caught:
            ModelConverter.convert(path)
        assert caught.value.remedy
    for arguments in ({"output_format": "gguf"}, {"precision": "int3"}):
        with pytest.raises(BadInput):
            ModelConverter.convert(hugging_face(tmp_path / str(*arguments)), **arguments)   # type: ignore[arg-type]


def test_a_tokenizer_that_is_not_read_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "m", {"config.json": SPEC, "model.safetensors": tensor_file(), "tokenizer.model": b"x"})
    with pytest.raises(UnknownArchitecture, match=r"tokenizer\.model"):
        ModelConverter.convert(tmp_path / "m")


def test_a_target_that_exists_is_never_touched(tmp_path: Path) -> None:
    hugging_face(tmp_path / "m")
    (tmp_path / "m.aios").mkdir()
    with pytest.raises(BadInput, match="exists already"):
        ModelConverter.convert(tmp_path / "m")
    assert not list((tmp_path / "m.aios").iterdir())


def test_an_interrupted_conversion_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hugging_face(tmp_path / "m")
    expected = (ModelConverter.convert(path, target=tmp_path / "whole") / "model.parquet").read_bytes()
    total = sum(tensor.nbytes for tensor in tensors().values())

    def interrupt(done: int, in_all: int, phase: str) -> None:
        assert in_all == total
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ModelConverter.convert(path, progress=interrupt)
    assert not (tmp_path / "m.aios").exists()
    read: list[int] = []
    original = sources_safetensors.read_pieces
    monkeypatch.setattr(sources_safetensors, "read_pieces", lambda path, begin, end: (
        read.append(end - begin), original(path, begin, end))[1])
    folder = ModelConverter.convert(path)
    assert (folder / "model.parquet").read_bytes() == expected
    assert sum(read) < total // 2
    assert {path.name for path in tmp_path.iterdir()} == {"m", "whole", "m.aios"}


def test_a_killed_conversion_goes_on_as_well(tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "m")
    expected = (ModelConverter.convert(path, target=tmp_path / "whole") / "model.parquet").read_bytes()
    code = textwrap.dedent("""
        import os, signal, sys
        from aios.store.convert import ModelConverter
        def kill(done, total, phase):
            if done > total // 2:
                os.kill(os.getpid(), signal.SIGKILL)
        ModelConverter.convert(sys.argv[1], progress=kill)
    """)
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert not (tmp_path / "m.aios").exists()
    assert (ModelConverter.convert(path) / "model.parquet").read_bytes() == expected


def test_a_changed_source_is_never_mixed_with_what_was_written_before(tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "m")

    def interrupt(done: int, total: int, phase: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ModelConverter.convert(path, progress=interrupt)
    changed = {name: tensor + 1 if tensor.dtype != torch.bool else ~tensor for name, tensor in tensors().items()}
    save_file(changed, path / "model.safetensors")
    os.utime(path / "model.safetensors", ns=(1, 1))
    assert same(WeightLoader.open(ModelConverter.convert(path) / "model.parquet"), changed)


def test_a_source_that_is_cut_while_it_is_read_leaves_nothing(tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "m")

    def cut(done: int, total: int, phase: str) -> None:
        if done > total // 2:
            os.truncate(path / "model.safetensors", 100)

    with pytest.raises(ModelCorrupt, match="cut"):
        ModelConverter.convert(path, progress=cut)
    left = list((tmp_path / ".m.aios.partial").iterdir())
    assert not [file for file in left if file.name.startswith("model.parquet")]


def test_a_full_disk_is_one_clear_error_that_can_be_gone_on_from(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hugging_face(tmp_path / "m")
    with monkeypatch.context() as patch:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(convert, "settle", full)
        with pytest.raises(ModelError, match="No space left"):
            ModelConverter.convert(path)
    assert same(WeightLoader.open(ModelConverter.convert(path) / "model.parquet"), tensors())


def test_two_conversions_into_one_folder_do_not_mix(tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "m")
    refused: list[str] = []

    def again(done: int, total: int, phase: str) -> None:
        if not refused:
            with pytest.raises(Busy) as caught:
                ModelConverter.convert(path)
            refused.append(caught.value.message)

    assert same(WeightLoader.open(ModelConverter.convert(path, progress=again) / "model.parquet"), tensors())
    assert refused


def test_an_imported_model_is_installed_and_leaves_again_as_it_came(tmp_path: Path, places: Places) -> None:
    done = import_model(hugging_face(tmp_path / "m"), "mine", places=places)
    assert models.find("mine", places) == done.record
    assert (done.record.licence, done.record.source, done.dequantised) == ("mit", "import of m", 0)
    verify(done.record)
    out = export_model("mine", tmp_path / "out", places=places)
    assert out.dequantised == 0
    assert same(load_file(tmp_path / "out" / "model.safetensors"), tensors())
    export_model("mine", tmp_path / "copy", "parquet", places=places)
    again = import_model(tmp_path / "out", "again", places=places)
    assert again.record.release == done.record.release
    assert WeightLoader.open(tmp_path / "copy" / "model.parquet").release == done.record.release
    assert not (tmp_path / "copy" / "model.json").exists()


@pytest.mark.parametrize("name", ["minilm", "tiny", "../x", "UPPER"])
def test_a_name_that_is_taken_or_impossible_is_refused(
        model: object, tmp_path: Path, places: Places, name: str) -> None:
    with pytest.raises(BadInput):
        import_model(hugging_face(tmp_path / "m"), name, places=places)


def test_an_import_that_fails_installs_nothing(tmp_path: Path, places: Places) -> None:
    write_folder(tmp_path / "m", contents({"model_type": "mamba"}))
    with pytest.raises(UnknownArchitecture):
        import_model(tmp_path / "m", "mine", places=places)
    write_folder(tmp_path / "n", contents() | {"model.safetensors": tensor_file()[:-1]})
    with pytest.raises(ModelCorrupt, match=r"model\.safetensors"):
        import_model(tmp_path / "n", "mine", places=places)
    assert models.names(places) == []


def test_a_damaged_model_does_not_leave(tmp_path: Path, places: Places) -> None:
    record = import_model(hugging_face(tmp_path / "m"), "mine", places=places).record
    at = WeightLoader.open(record.path / "model.parquet", check="none").records["large"].offset
    data = bytearray((record.path / "model.parquet").read_bytes())
    data[at] ^= 1
    (record.path / "model.parquet").write_bytes(data)
    for output_format in ("safetensors", "parquet"):
        with pytest.raises(ModelCorrupt, match="large"):
            export_model("mine", tmp_path / "out", output_format, places=places)   # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
