"""What a disk may hold after the power failed: a trace of calls, cut anywhere, with what was not synced in any order.

Kept is what a sync reported. Of everything else each page may be there or not, sizes may run ahead of contents, a
write may be cut within a page, and names follow the order of their calls up to some point: what journalling file
systems promise, and no more.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aios.lab.crashes.syscalls import Event

PAGE_BYTES: Final = 4096
SECTOR_BYTES: Final = 512


@dataclass(slots=True)
class _File:
    """Durable bytes, and what was done since the last sync: (offset, bytes), or (size, None) for a truncation."""

    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        self.durable = _applied(self.durable, self.pending)
        self.pending.clear()

    def crashed(self, rng: random.Random) -> bytes:
        """The bytes after a crash."""
        how = rng.choice(("none", "all", "cut", "pages", "pages", "sectors"))
        if how == "none" or not self.pending:
            return self.durable
        if how == "all":
            return _applied(self.durable, self.pending)
        if how == "cut":
            return _applied(self.durable, self._cut(rng))
        return self._scattered(rng, PAGE_BYTES if how == "pages" else SECTOR_BYTES)

    def _cut(self, rng: random.Random) -> list[tuple[int, bytes | None]]:
        last = rng.randrange(len(self.pending))
        offset, data = self.pending[last]
        whole = self.pending[:last]
        return whole if data is None else [*whole, (offset, data[:rng.randint(0, len(data))])]

    def _scattered(self, rng: random.Random, unit: int) -> bytes:
        """Every unit is new or old by itself; the size is the old or the new one."""
        old, new = self.durable, _applied(self.durable, self.pending)
        size = rng.choice((len(old), len(new))) if len(new) != len(old) else len(new)
        share, out = rng.random(), bytearray(size)
        for at in range(0, size, unit):
            piece = (new if rng.random() < share else old)[at:min(at + unit, size)]
            out[at:at + len(piece)] = piece
        return bytes(out)


class Disk:
    """A folder of plain files under a trace of calls."""

    def __init__(self, folder: Path) -> None:
        """Everything that is in the folder now is durable."""
        self._folder = str(folder)
        self._files = {str(path): _File(durable=path.read_bytes()) for path in folder.iterdir() if path.is_file()}
        self._names = dict(self._files)                # as they are on the disk for certain
        self._pending: list[Event] = []                # of names, with the file of each at that time
        self._made: dict[int, _File] = {}

    def follow(self, events: Sequence[Event]) -> None:
        """Carry out calls."""
        for event in events:
            match event.kind:
                case "write" | "truncate":
                    self._change(event)
                case "sync" if event.path == self._folder:
                    self._names = self._named(len(self._pending))
                    self._pending.clear()
                    self._made.clear()
                case "sync":
                    if (file := self._files.get(event.path)) is not None:
                        file.sync()
                case "make" | "rename" | "unlink":
                    self._rename(event)

    def _change(self, event: Event) -> None:
        if (file := self._files.get(event.path)) is not None:         # else it was unlinked meanwhile
            file.pending.append((event.offset, event.data if event.kind == "write" else None))

    def _rename(self, event: Event) -> None:
        """Change the names, now in sight and later on the disk."""
        if event.kind == "make" and event.path in self._files:
            self._files[event.path].pending.append((0, None))
            return
        if event.kind == "make":
            self._files[event.path] = self._made[len(self._pending)] = _File()
        elif event.path in self._files:
            moved = self._files.pop(event.path)
            if event.kind == "rename":
                self._files[event.other] = moved
        self._pending.append(event)

    def _named(self, count: int) -> dict[str, _File]:
        """The names after the first `count` pending changes."""
        names = dict(self._names)
        for index, event in enumerate(self._pending[:count]):
            if event.kind == "make":
                names[event.path] = self._made[index]
            elif event.path in names:
                moved = names.pop(event.path)
                if event.kind == "rename":
                    names[event.other] = moved
        return names

    def crash(self, target: Path, rng: random.Random) -> None:
        """Write what is left of the folder into `target`, an empty one."""
        names = self._named(rng.randint(0, len(self._pending)))
        for path, file in names.items():
            place = target / Path(path).name
            place.write_bytes(file.crashed(rng))
            place.chmod(0o600)


def _applied(data: bytes, changes: Sequence[tuple[int, bytes | None]]) -> bytes:
    out = bytearray(data)
    for offset, piece in changes:
        if piece is None:
            out = out[:offset] + bytes(max(0, offset - len(out)))
        elif piece:
            out += bytes(max(0, offset - len(out)))
            out[offset:offset + len(piece)] = piece
    return bytes(out)
