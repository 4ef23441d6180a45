from __future__ import annotations

import os
from pathlib import Path

import pytest

from aios.errors import ManifestError
from aios.registry import content


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files in two folders, writable by us alone."""
    root = tmp_path / "plugin"
    (root / "data").mkdir(parents=True, mode=0o755)
    (root / "a.py").write_bytes(b"A = 1\n")
    (root / "data" / "words.txt").write_bytes(b"one two")
    for path in (root, root / "data"):
        path.chmod(0o755)
    for path in (root / "a.py", root / "data" / "words.txt"):
        path.chmod(0o644)
    return root


def test_the_hash_stands_for_every_path_and_every_byte(folder: Path, tmp_path: Path) -> None:
    hashes = {content.read(folder).hash}
    (folder / "a.py").write_bytes(b"A = 2\n")
    hashes.add(content.read(folder).hash)
    (folder / "a.py").rename(folder / "b.py")
    hashes.add(content.read(folder).hash)
    (folder / "data" / "words.txt").write_bytes(b"")
    hashes.add(content.read(folder).hash)
    (folder / "c.txt").touch(mode=0o644)
    hashes.add(content.read(folder).hash)
    assert len(hashes) == 5


def test_bytes_cannot_move_from_one_file_to_the_next_unnoticed(tmp_path: Path) -> None:
    hashes = set()
    for number, (first, second) in enumerate(((b"xy", b"z"), (b"x", b"yz"))):
        root = tmp_path / str(number)
        root.mkdir(mode=0o755)
        (root / "a").write_bytes(first)
        (root / "b").write_bytes(second)
        hashes.add(content.read(root, trusted=True).hash)
    assert len(hashes) == 2


def test_caches_are_neither_hashed_nor_kept(folder: Path) -> None:
    before = content.read(folder)
    for name in ("__pycache__/a.pyc", ".git/config", "a.pyc", ".hidden"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"anything")
    after = content.read(folder, keep=True)
    assert after.hash == before.hash
    assert set(after.files) == {"a.py", "data/words.txt"}


@pytest.mark.parametrize("name", ["a.py", "data", "data/words.txt", "."])
def test_what_others_can_write_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    path.chmod(path.stat().st_mode | 0o020)
    with pytest.raises(ManifestError, match="can be written by other users"):
        content.read(folder)
    assert content.read(folder, trusted=True).count == 2


def test_what_belongs_to_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() == 0:
        os.chown(folder / "a.py", 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ManifestError, match="belongs to another user"):
        content.read(folder)


@pytest.mark.parametrize("target", ["a.py", "data", "/etc/passwd", "nowhere"])
def test_links_are_refused(folder: Path, target: str) -> None:
    (folder / "link").symlink_to(target)
    with pytest.raises(ManifestError, match="link is a symbolic link"):
        content.read(folder, trusted=True)


def test_a_link_to_a_plugin_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(ManifestError, match="cannot read"):
        content.read(tmp_path / "link")


def test_pipes_are_refused_without_waiting_for_a_writer(folder: Path) -> None:
    os.mkfifo(folder / "pipe", 0o644)
    with pytest.raises(ManifestError, match="pipe is not a plain file"):
        content.read(folder)


def test_too_many_too_large_and_too_deep_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "FILES_MAX", 1)
    with pytest.raises(ManifestError, match="more than 1 files"):
        content.read(folder)
    monkeypatch.setattr(content, "FILES_MAX", 10)
    monkeypatch.setattr(content, "CONTENT_BYTES_MAX", 8)
    with pytest.raises(ManifestError, match="MiB"):
        content.read(folder)
    monkeypatch.setattr(content, "CONTENT_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(content, "DEPTH_MAX", 0)
    with pytest.raises(ManifestError, match="nested deeper"):
        content.read(folder)


def test_unprintable_names_are_refused(folder: Path) -> None:
    (folder / "a\x1b[31m.py").touch(mode=0o644)
    with pytest.raises(ManifestError, match="unprintable"):
        content.read(folder)
