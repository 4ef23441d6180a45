"""Homes, fake owners and a fake model worker: what the service's tests stand on."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aios.config import Places
from aios.errors import AiosError
from aios.lab.scratch_home import ScratchDaemon
from aios.service.spawn import python_command

HERE = Path(__file__).parent
FAKE_WORKER = HERE / "fake_worker.py"
FAKE_PLUGIN = HERE / "fake_plugin"


@pytest.fixture
def places() -> Iterator[Places]:
    """An empty home with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="aios-") as folder:
        root = Path(folder)
        places = Places(config=root / "config", data=root / "data", state=root / "state", cache=root / "cache",
                        runtime=root / "run")
        places.create()
        yield places


@pytest.fixture
def scratch() -> Iterator[ScratchDaemon]:
    """A home for a daemon process that is ended whatever happens."""
    with tempfile.TemporaryDirectory(prefix="aios-") as folder:
        daemon = ScratchDaemon(Path(folder) / "home")
        try:
            yield daemon
        finally:
            daemon.end()


class FakeOwner:
    """Collects what a connection would send."""

    def __init__(self) -> None:
        self.clogged = False
        self.answers: dict[int, AiosError | Any] = {}
        self.states: list[tuple[int, Any]] = []

    def respond(self, msgid: int, error: AiosError | None, result: Any = None) -> None:
        assert msgid not in self.answers, "every request is answered once"
        self.answers[msgid] = error if error is not None else result

    def show(self, msgid: int, state: Any) -> None:
        self.states.append((msgid, state))


@pytest.fixture
def owner() -> FakeOwner:
    return FakeOwner()


@pytest.fixture
def fake_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the worker link start tests/service/fake_worker.py: the same protocol, no torch."""
    def command(module: str, *arguments: str) -> list[str]:
        if module != "aios.service.worker":
            return python_command(module, *arguments)
        return [sys.executable, "-P", str(FAKE_WORKER), *arguments]

    monkeypatch.setattr("aios.service.child_link.python_command", command)


@pytest.fixture
def install_plugin() -> Callable[[Places], None]:
    """Copy the fake plugin, which obeys words in its prompt, into a home."""
    def install(places: Places) -> None:
        target = places.plugins / "obedient"
        shutil.copytree(FAKE_PLUGIN, target, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (target, *target.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)

    return install
