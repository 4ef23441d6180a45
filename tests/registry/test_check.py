from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aios.config import Places
from aios.errors import BadInput
from aios.registry.check import Check, check
from aios.registry.scaffold import write_plugin as scaffold

WritePlugin = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]

BAD_HEAD = """
from aios.hookspecs import hookimpl
from aios.testing.fake import FakeHead, OpenFakeHead
print("a plugin may say what it likes")

class Forgetful(OpenFakeHead):
    def decode(self, canvas):
        return []

class Head(FakeHead):
    def open(self, workbench, model):
        import aios.contracts
        return Forgetful("x", aios.contracts.Modality.TEXT, "fake")

@hookimpl
def aios_heads():
    return [Head()]
"""


@pytest.fixture(autouse=True)
def scratch_home(home: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_HOME", str(home.config.parent))


def failures(checks: list[Check]) -> list[str]:
    return [f"{one.name}: {one.detail}" for one in checks if one.ok is False]


def test_a_new_plugin_passes_every_check(home: Places) -> None:
    folder = scaffold("closer", home.plugins)
    checks = check("closer", home)
    assert failures(checks) == []
    assert len(checks) >= 9
    assert all(path.stat().st_mode & 0o077 == 0 for path in (folder, *folder.rglob("*")))


def test_a_new_plugins_own_tests_pass(tmp_path: Path) -> None:
    folder = scaffold("my-plugin_2", tmp_path)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider",
                           f"--rootdir={folder}", str(folder)], env={**os.environ, "PYTHONPATH": str(ROOT)},
                          cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


@pytest.mark.parametrize("name", ["", "A", "../x", "a b", "1a", "a" * 41])
def test_a_bad_name_writes_nothing(tmp_path: Path, name: str) -> None:
    parent = tmp_path / "empty"
    parent.mkdir()
    with pytest.raises(BadInput, match="no name for a plugin"):
        scaffold(name, parent)
    assert list(parent.iterdir()) == []


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(BadInput, match="is there already"):
        scaffold("mine", tmp_path)
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_head_that_breaks_a_law_is_told_which(home: Places, write_plugin: WritePlugin) -> None:
    write_plugin("forgetful", BAD_HEAD)
    found = failures(check("forgetful", home))
    assert found == ["text head: answers have parts and honest usage: an answer without parts"]


@pytest.mark.parametrize(("code", "complaint"), [
    ("raise ValueError('no')", "plugin failed at import: ValueError: no"),
    ("import os, sys; sys.stderr.write('x' * 10**7 + '\\nlast words'); os._exit(3)", "exit code 3 last words"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it ended with signal 11"),
])
def test_a_plugin_that_fails_fails_its_check_and_nothing_else(home: Places, write_plugin: WritePlugin, code: str,
                                                               complaint: str) -> None:
    folder = write_plugin("failing", code)
    [found] = failures(check(str(folder), home))
    assert complaint in found


def test_a_plugin_that_hangs_is_ended(home: Places, write_plugin: WritePlugin) -> None:
    write_plugin("hanging", "import time; time.sleep(600)")
    [found] = failures(check("hanging", home, seconds_max=5.0))
    assert "no end after 5 s" in found


def test_what_is_no_plugin_is_never_run(home: Places, write_plugin: WritePlugin, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    code = f"open({str(marker)!r}, 'w').close()\n"
    (write_plugin("torn", code) / "plugin.toml").write_text("=")
    (write_plugin("wide", code) / "__init__.py").chmod(0o666)
    (write_plugin("typo", code + "def (:\n"))
    write_plugin("boxed", code, runs_in="sandbox")
    for name in ("torn", "wide", "typo", "boxed"):
        assert failures(check(name, home)), name
    assert not marker.exists()
    with pytest.raises(BadInput, match="no plugin 'ghost'"):
        check("ghost", home)
