"""What the README tells people to type works: its shell and Python blocks are run against a real daemon.

```sh and ```python blocks are executed. ```console blocks are recorded sessions: their commands must exist.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aios.cli import main as cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
RUNNABLE = [(kind, text) for kind, text in BLOCKS if kind in ("sh", "python")]
BLOCK_SECONDS_MAX = 180   # the plugin's block imports torch in four processes


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A home of its own with a running daemon, an encoder of random weights, and `aios` and `python` on the path."""
    folder = tmp_path_factory.mktemp("r")
    home, programs = folder / "h", folder / "bin"
    programs.mkdir()
    for name, words in (("aios", "-m aios"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        (programs / name).chmod(0o755)
    (home / "config").mkdir(parents=True, mode=0o700)
    # Two threads that wait for each other take many times as long on a machine that is busy with something else.
    (home / "config/daemon.toml").write_text("[model]\nthreads = 1\n")
    runpy.run_path(str(ROOT / "tests/engine/conftest.py"))["write_encoder"](home / "data/models/minilm")
    found = {**os.environ, "AIOS_HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1",
             "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    yield found
    subprocess.run(["aios", "stop"], env=found, timeout=60, check=True, capture_output=True)


@pytest.mark.parametrize(("kind", "text"), RUNNABLE, ids=[f"{kind}-{text.split()[1]}" for kind, text in RUNNABLE])
def test_a_block_does_what_it_says(kind: str, text: str, environ: dict[str, str], tmp_path: Path) -> None:
    subprocess.run(["aios", "start"], env=environ, timeout=60, check=True, capture_output=True)
    command = ["bash", "-euo", "pipefail", "-c", text] if kind == "sh" else ["python", "-c", text]
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True,
                          timeout=BLOCK_SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def test_every_recorded_command_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for line in re.findall(r"^\$ (.*)$", README, flags=re.MULTILINE):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert words[1] in targets, line
        else:
            assert words[0] == "aios", line
            assert known(words[1:]), line


@pytest.mark.parametrize("line", sorted(set(re.findall(r"`aios ([a-z][^`]*)`", README))))
def test_every_command_in_the_prose_exists(line: str) -> None:
    assert known(shlex.split(line))


def known(words: list[str]) -> bool:
    """Whether the words name a command, with its options spelt right; `NAME` and the like are left alone."""
    here: Any = cli.command()
    for index, word in enumerate(words):
        if isinstance(here, cli.LazyCommand):
            here = here.load()
        if not getattr(here, "commands", None):
            options = {option for param in here.params for option in (*param.opts, *param.secondary_opts)}
            return all(not word.startswith("-") or word.partition("=")[0] in options for word in words[index:])
        if word not in here.commands:
            return False
        here = here.commands[word]
    return True


def test_the_house_is_drawn_as_it_stands() -> None:
    drawing = next(text for _, text in BLOCKS if text.startswith("aios/"))
    rooms = set(re.findall(r"^  ([\w./]+)", drawing, flags=re.MULTILINE))
    there = {path.name + ("/" if path.is_dir() else "") for path in (ROOT / "aios").iterdir()
             if not path.name.startswith(("__pycache__", "__main__", "_models", "_plugins", "_templates"))
             and not path.name.endswith(".so")}
    assert rooms == there
    for top in re.findall(r"^([\w]+/)", drawing, flags=re.MULTILINE):
        assert (ROOT / top).is_dir()
