"""The wheel, installed into an environment of its own, is a working AIOS: plugins and the default model inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FULL = "AIOS_WHEEL_FULL"   # set: every dependency is installed anew, as a stranger's pip would (minutes, gigabytes)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    maturin = Path(sys.executable).parent / "maturin"
    subprocess.run([maturin, "build", "--release", "--locked", "--out", out], cwd=ROOT, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel; by default its dependencies are borrowed from this environment."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    full = bool(os.environ.get(FULL))
    subprocess.run([python, "-m", "pip", "install", "-q", *([] if full else ["--no-deps"]), wheel],
                   check=True, capture_output=True)
    if not full:
        site = Path(subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                                   check=True, capture_output=True, text=True).stdout.strip())
        # A folder named in a .pth file is searched, but its own .pth files (our editable install) are not run.
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def aios(python: Path, home: Path, *argv: str) -> dict[str, Any]:
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "AIOS_HOME": str(home / "aios")}
    done = subprocess.run([python.parent / "aios", *argv, "--json"], cwd=home, env=env, capture_output=True,
                          text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_wheel_holds_plugins_and_model_and_nothing_at_top_level(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"aios", "aios_daemon"}
    assert "aios/_plugins/text_head/plugin.toml" in names
    assert "aios/_models/text-default/model.parquet" in names
    assert "aios/_native.pyi" in names
    assert {"aios/lab/sets/heldout_functions.parquet", "aios/lab/sets/heldout_text.parquet"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.startswith("aios/_native/")]


def test_the_installed_command_writes_text_offline(python: Path, tmp_path: Path) -> None:
    where = subprocess.run([python, "-c", "import aios; print(aios.__file__)"], cwd=tmp_path, check=True,
                           capture_output=True, text=True).stdout
    assert str(python.parent.parent) in where, "the installed package is the one that is used"
    aios(python, tmp_path, "start")
    try:
        answer = aios(python, tmp_path, "diffuse", "I would like", "--length", "16", "--seed", "3")
        assert answer["text"].strip()
        assert answer["verdict"]["plugin"] == "text_head"
        states = {plugin["name"]: plugin["state"] for plugin in aios(python, tmp_path, "plugins", "list")["plugins"]}
        assert states["text_head"] == "active"
    finally:
        aios(python, tmp_path, "stop")
