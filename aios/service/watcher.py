"""Watches daemon.toml and the plugin folders: one call when they have been quiet for a second after a change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

QUIET_SECONDS = 1.0             # an editor writes a file in several steps, a copy of a folder in many
CHANGES = frozenset({"created", "modified", "moved", "deleted"})   # reading a file is an event too


class Watcher:
    """Calls `changed` in the loop; what changed is for the reload to find out."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._observer = Observer()

    def start(self, files: Iterable[Path], folders: Iterable[Path]) -> None:
        """Watch single files (which may not exist yet) and whole folders; what is not there is left out."""
        files = list(files)
        names = frozenset(str(file) for file in files)
        for parent in {file.parent for file in files}:
            if parent.is_dir():
                self._observer.schedule(_Listener(lambda path: path in names, self._noticed), str(parent))
        for folder in folders:
            if folder.is_dir():
                self._observer.schedule(_Listener(_matters, self._noticed), str(folder), recursive=True)
        self._observer.start()

    def stop(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join()

    def _noticed(self) -> None:
        """In watchdog's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wait_for_quiet)

    def _wait_for_quiet(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(QUIET_SECONDS, self._changed)


class _Listener(FileSystemEventHandler):
    def __init__(self, matters: Callable[[str], bool], noticed: Callable[[], None]) -> None:
        self._matters = matters
        self._noticed = noticed

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Every event of the folder, also those that change nothing."""
        if event.is_directory and event.event_type == "modified":
            return      # something in it changed, which is an event of its own
        if event.event_type in CHANGES and any(self._matters(str(path)) for path in (event.src_path, event.dest_path)
                                               if path):
            self._noticed()


def _matters(path: str) -> bool:
    """Caches and hidden files are no part of a plugin's content."""
    return not any(part == "__pycache__" or part.startswith(".") for part in Path(path).parts[-3:]) \
        and not path.endswith(".pyc")
