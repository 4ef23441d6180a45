from __future__ import annotations

import os
from pathlib import Path

import pytest

from aios.errors import ConfigError
from aios.security import private_file
from aios.security.grants import PinFile


def test_a_private_file_is_written_as_a_whole_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert private_file.read(path, 100) is None
    private_file.write(path, b"one")
    private_file.write(path, b"two")
    assert private_file.read(path, 100) == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    private_file.write(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        private_file.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_links_pipes_foreign_and_large_files_are_not_read(tmp_path: Path) -> None:
    real, link, pipe = tmp_path / "real", tmp_path / "link", tmp_path / "pipe"
    private_file.write(real, b"12345")
    link.symlink_to(real)
    os.mkfifo(pipe, 0o600)
    for path in (link, pipe, tmp_path):
        with pytest.raises(ConfigError):
            private_file.read(path, 100)
    with pytest.raises(ConfigError, match="larger than 4 bytes"):
        private_file.read(real, 4)
    real.chmod(0o602)
    with pytest.raises(ConfigError, match="only you can write"):
        private_file.read(real, 100)


def test_a_pin_holds_one_content_and_survives_the_process(tmp_path: Path) -> None:
    pins = PinFile(tmp_path / "pins.json")
    pins.put("a", "1" * 64, "first")
    pins.put("b", "2" * 64)
    pins.put("a", "3" * 64, "x" * 5000)
    again = PinFile(tmp_path / "pins.json")
    assert again.holds("a", "3" * 64)
    assert not again.holds("a", "1" * 64)
    assert not again.holds("ghost", "1" * 64)
    pin = again.get("a")
    assert pin is not None
    assert len(pin.note) == 2000
    assert pin.since.endswith("+00:00")
    assert again.drop("a")
    assert not again.drop("a")
    assert PinFile(tmp_path / "pins.json").get("a") is None
    assert PinFile(tmp_path / "pins.json").holds("b", "2" * 64)
