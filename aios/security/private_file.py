"""Small owner-only files: read with a cap and without following links, replaced as a whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from aios.errors import ConfigError


def read(path: Path, bytes_max: int) -> bytes | None:
    """The file's bytes, None when there is no such file; ConfigError when it is not ours alone or too large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", remedy="it must be a plain file of yours") from error
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o022:
        os.close(descriptor)
        raise ConfigError(f"{path} is not a plain file that only you can write",
                          remedy=f"look at it, then: chmod 600 {path}")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise ConfigError(f"{path} is larger than {bytes_max} bytes", remedy=f"move {path} away")
    return data


def write(path: Path, data: bytes) -> None:
    """Replace the file with `data`, mode 0600, so that a crash leaves the old or the new content, never a mixture."""
    with replaced(path) as file:
        file.write(data)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """What is written meanwhile becomes the file, mode 0600, on the disk and as a whole; nothing after an error."""
    staged = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """What was renamed or removed in the folder is so after a power failure too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
