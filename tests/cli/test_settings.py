"""The annotated daemon.toml at the top of the repository is complete and true."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from aios.config import Config, parse

TEXT = (Path(__file__).resolve().parents[2] / "daemon.toml").read_text(encoding="utf-8")


def test_as_it_is_it_sets_nothing() -> None:
    assert parse(TEXT.encode()) == Config()


def test_every_key_is_there_with_its_default() -> None:
    uncommented = re.sub(r"(?m)^#(?=\w+ = )", "", TEXT)
    assert parse(uncommented.encode()) == Config()
    sections = re.split(r"(?m)^\[(\w+)\]\n", uncommented)[1:]
    written = {name: set(re.findall(r"(?m)^(\w+) = ", body)) for name, body in zip(sections[::2], sections[1::2],
                                                                                 strict=True)}
    assert written == {name: set(keys) for name, keys in msgspec.to_builtins(Config()).items()}
