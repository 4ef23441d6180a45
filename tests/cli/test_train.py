"""`aios train embedded` hands its options on, and exports what was trained."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Run


def test_training_ends_with_an_exported_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def train(*given: Any, **options: Any) -> Any:
        seen.append((given, options))
        return SimpleNamespace(step=3, tokens=300, best_bound=2.5)

    monkeypatch.setattr("aios.training.embedded.train_embedded", train)
    monkeypatch.setattr("aios.training.embedded.export_embedded", lambda *given: seen.append(given))
    monkeypatch.setattr(os, "nice", lambda niceness: niceness)
    out = tmp_path / "run"
    done = run("train", "embedded", "--data", str(tmp_path), "--out", str(out), "--steps", "3", "--eager", "--json")
    assert done.json == {"model": str(out / "text-default"), "run": str(out), "step": 3, "tokens": 300,
                         "held_out_bound": 2.5}
    assert seen == [(([tmp_path], out), {"minutes": None, "steps": 3, "compile_network": False}),
                    (out / "best.safetensors", out, out / "text-default")]


def test_a_folder_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    done = run("train", "embedded", "--data", str(tmp_path / "nowhere"))
    assert done.code == 65
    assert "nowhere" in done.err
