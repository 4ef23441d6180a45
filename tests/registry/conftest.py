"""A scratch home and plugins written into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aios.config import Places
from aios.registry import discovery

WritePlugin = Callable[..., Path]

HEAD = """
from aios.hookspecs import hookimpl

class Head:
    modality, process = "text", "absorbing"
    def open(self, workbench, model):
        raise NotImplementedError

@hookimpl
def aios_heads():
    return [Head()]
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A home of its own, with no first-party plugins and no installed ones."""
    root = tmp_path / "home"
    places = Places(config=root / "config", data=root / "data", state=root / "state", cache=root / "cache",
                    runtime=root / "run")
    places.create()
    (tmp_path / "first-party").mkdir()
    monkeypatch.setattr(discovery, "first_party_folder", lambda: tmp_path / "first-party")
    monkeypatch.setattr(discovery, "_search_path", lambda: [str(tmp_path / "site")])
    return places


@pytest.fixture
def write_plugin(home: Places) -> WritePlugin:
    """write_plugin(name, code, parent=..., **manifest fields) -> its folder; files only we can write."""

    def write(name: str, code: str = HEAD, parent: Path | None = None, **fields: object) -> Path:
        folder = (parent or home.plugins) / name
        folder.mkdir(parents=True, mode=0o755)
        said = {"name": name, "version": "1.0", "api": 1, "runs_in": "worker", "capabilities": ["heads"],
                "description": "for a test", **fields}
        lines = [f"{key} = {str(value).lower() if isinstance(value, bool) else value!r}" for key, value in said.items()]
        (folder / "plugin.toml").write_text("\n".join(lines) + "\n")
        (folder / "__init__.py").write_text(code)
        for file in folder.iterdir():
            file.chmod(0o644)
        folder.chmod(0o755)
        return folder

    return write
