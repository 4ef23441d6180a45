"""A command line run in this process, in a home of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aios.cli.main import main


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON object it must be."""
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty AIOS home."""
    monkeypatch.setenv("AIOS_HOME", str(tmp_path / "h"))
    monkeypatch.setenv("AIOS_EXPERIMENTS", str(tmp_path / "ledger"))
    return tmp_path / "h"


@pytest.fixture
def run(home: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """`aios WORDS...`; standard streams are no terminals."""

    def run(*words: str) -> Done:
        capfd.readouterr()
        code = main(words)
        captured = capfd.readouterr()
        return Done(code=code, out=captured.out, err=captured.err)

    return run
