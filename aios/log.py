"""Structured events, one JSON object a line: ids, sizes and outcomes, never prompts, texts or keys."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Final, Literal, TextIO

Level = Literal["debug", "info", "warning", "error"]
LEVELS: Final[dict[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
LOG_BYTES_MAX = 16 << 20       # rotated beyond this; one older file is kept
VALUE_CHARS_MAX = 2000         # a traceback fits, a document does not

Scalar = str | int | float | bool | None


class EventLog:
    """Writes events to a file (or stderr); one per process."""

    def __init__(self, path: Path | None = None, level: str = "info") -> None:
        self._path = path
        self._threshold = LEVELS[level]
        self._file: TextIO = self._open()

    def set_level(self, level: str) -> None:
        """Events below `level` are no longer written."""
        self._threshold = LEVELS[level]

    def __call__(self, event: str, level: Level = "info", **fields: Scalar) -> None:
        """Write one event; a full disk never stops the daemon."""
        if LEVELS[level] < self._threshold:
            return
        short = {k: v[:VALUE_CHARS_MAX] if isinstance(v, str) else v for k, v in fields.items()}
        line = json.dumps({"time": round(time.time(), 3), "level": level, "event": event, "pid": os.getpid(), **short},
                          ensure_ascii=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError:
            return

    def rotate(self) -> None:
        """Start a new file when the present one has grown beyond its cap; the previous one is kept as `.1`."""
        if self._path is not None and self._path.exists() and self._path.stat().st_size > LOG_BYTES_MAX:
            self._file.close()
            self._path.replace(self._path.with_suffix(self._path.suffix + ".1"))
            self._file = self._open()

    def close(self) -> None:
        """Close the file; stderr stays open."""
        if self._file is not sys.stderr:
            self._file.close()

    def _open(self) -> TextIO:
        if self._path is None:
            return sys.stderr
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="replace")
