"""A plugin's content: its files, read safely, and the one hash that stands for all of them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aios.errors import ManifestError
from aios.registry.manifest import MANIFEST_NAME

FILES_MAX = 1000            # a plugin is code and small data; weights are models and live in the model store
CONTENT_BYTES_MAX = 16 << 20
DEPTH_MAX = 12              # folders within folders


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The hash of a plugin folder and what it covers; `files` holds the bytes only when they were asked for."""

    hash: str
    count: int
    size: int
    manifest: bytes | None
    files: dict[str, bytes]


def read(folder: Path, *, keep: bool = False, trusted: bool = False) -> Content:
    """Hash every file of a plugin folder, each opened once; with `keep`, the very bytes that were hashed are kept.

    The hash is SHA-256 over, for each file in the order of its path: path, NUL, size as 8 bytes, bytes. Caches
    (`__pycache__`, `*.pyc`, names with a leading dot) are neither hashed nor kept, so that they cannot be loaded.
    ManifestError: links, special files, more than the caps, or - unless `trusted` - anything that someone
    else than its owner (us or root) could have written.
    """
    digest = hashlib.sha256()
    files: dict[str, bytes] = {}
    manifest: bytes | None = None
    count = size = 0
    try:
        for name, data in _walk(folder, trusted):
            count, size = count + 1, size + len(data)
            if size > CONTENT_BYTES_MAX:
                raise ManifestError(f"more than {CONTENT_BYTES_MAX >> 20} MiB",
                                    remedy="keep code and small data in the plugin, weights in the model store")
            digest.update(name.encode("utf-8") + b"\0" + len(data).to_bytes(8, "big") + data)
            if name == MANIFEST_NAME:
                manifest = data
            if keep:
                files[name] = data
    except OSError as error:
        raise ManifestError(f"cannot read {error.filename or folder}: {error.strerror}",
                            remedy="a link, or something that is being changed? look at the folder") from error
    return Content(hash=digest.hexdigest(), count=count, size=size, manifest=manifest, files=files)


def _walk(folder: Path, trusted: bool) -> Iterator[tuple[str, bytes]]:
    """(path relative to the folder, bytes) of every file that counts, in the order of the paths."""
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _refuse_foreign(os.fstat(root), folder.name, trusted)
        names: list[str] = []
        _list(root, "", trusted, names, 0)
        for name in sorted(names):
            yield name, _read_file(root, name, trusted)
    finally:
        os.close(root)


def _list(parent: int, prefix: str, trusted: bool, names: list[str], depth: int) -> None:
    """Collect the relative paths of all plain files below an open folder."""
    if depth > DEPTH_MAX:
        raise ManifestError(f"folders are nested deeper than {DEPTH_MAX}", remedy="flatten the plugin")
    with os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__pycache__" or entry.name.endswith(".pyc"):
                continue
            path = prefix + entry.name
            if not path.isprintable():   # also lone surrogates: names that are no UTF-8
                raise ManifestError(f"a file name with unprintable characters: {path!r}", remedy="rename it")
            if entry.is_symlink():
                raise ManifestError(f"{path} is a symbolic link", remedy="replace it by the file it points to")
            if not entry.is_dir(follow_symlinks=False):
                names.append(path)
                if len(names) > FILES_MAX:
                    raise ManifestError(f"more than {FILES_MAX} files", remedy="keep data elsewhere")
                continue
            child = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                _refuse_foreign(os.fstat(child), path, trusted)
                _list(child, path + "/", trusted, names, depth + 1)
            finally:
                os.close(child)


def _read_file(root: int, name: str, trusted: bool) -> bytes:
    """The bytes of one plain file below `root`."""
    # A folder on the way that was exchanged for a link meanwhile can only lead to bytes that are hashed all the same.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise ManifestError(f"{name} is not a plain file", remedy="remove it")
        _refuse_foreign(info, name, trusted)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(CONTENT_BYTES_MAX + 1)
    finally:
        os.close(descriptor)


def _refuse_foreign(info: os.stat_result, name: str, trusted: bool) -> None:
    if trusted:
        return
    if info.st_uid not in (0, os.getuid()):
        raise ManifestError(f"{name} belongs to another user", remedy="copy the plugin, so that it is yours")
    if info.st_mode & 0o022:
        raise ManifestError(f"{name} can be written by other users", remedy="chmod -R go-w on the plugin's folder")
