"""Tensor files that a crash leaves whole, and the signs that hold or stop a run from outside."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from aios.errors import AlreadyRunning

PAUSE, HOLD = "PAUSE", "HOLD"          # written by measurements (process ids, one a line) and by `aios train pause`
FOLDERS_ABOVE: Final = 3               # runs/ac1/run-1 is held by runs/HOLD
PAUSE_POLL_S: Final = 1.0


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file with JSON metadata so that a crash leaves the old file or the new one."""
    temporary = path.with_suffix(".partial")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, temporary, {"json": json.dumps(dict(metadata))})
    publish(temporary, path)


def write_json(value: Any, path: Path) -> None:
    """Write a JSON file so that a crash leaves the old file or the new one."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Make a written file durable under its name."""
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON metadata that `write_tensors` wrote."""
    with safe_open(path, framework="pt") as stored:
        metadata: dict[str, Any] = json.loads(stored.metadata()["json"])
        return {name: stored.get_tensor(name) for name in stored.keys()}, metadata  # noqa: SIM118


def held_by(folder: Path) -> Path | None:
    """Return the file that holds the run in `folder`, if there is one.

    HOLD always holds; PAUSE while a process that it names lives, or if it names none.
    """
    for above in folder.resolve().parents[:FOLDERS_ABOVE]:
        if (above / HOLD).exists():
            return above / HOLD
        try:
            words = (above / PAUSE).read_text(encoding="ascii", errors="replace").split()
        except OSError:
            continue
        pids = [word for word in words if word.isdecimal()]
        if not pids or any(Path(f"/proc/{pid}").exists() for pid in pids):
            return above / PAUSE
    return None


def hold_while_paused(folder: Path) -> float:
    """Wait until nothing holds the run in `folder`; return for how many seconds that was."""
    began = time.monotonic()
    while held_by(folder) is not None:
        time.sleep(PAUSE_POLL_S)
    return time.monotonic() - began


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Keep the run in `folder` to this process; AlreadyRunning if another one trains it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"another process trains {folder}", remedy="aios train status") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def owner(folder: Path) -> int | None:
    """Return the id of the process that trains the run in `folder`, None if nobody does."""
    try:
        with (folder / ".lock").open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read().strip() or 0)
    except OSError:
        return None
    return None
