"""Which content of which plugin the owner allowed, and which content has failed: two files of pins.

Only the parent daemon writes them. A pin binds a name to one content hash, so that it stops counting as soon as
a single byte of the plugin changes. Code of the same user outside a sandbox can write these files too: they
protect against what changes unnoticed, not against the owner.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from aios.errors import ConfigError
from aios.security import private_file

PIN_FILE_BYTES_MAX = 1 << 20   # a pin is below 3 kB, plugins are counted in tens
PIN_NOTE_CHARS_MAX = 2000      # one clear line; a traceback belongs in the log
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A content hash, since when (UTC, ISO 8601) and why."""

    hash: str
    since: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    version: int
    plugins: dict[str, Pin]


class PinFile:
    """Name -> Pin in an owner-only JSON file; every change is on disk when the call returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.damage: str | None = None   # why the file could not be used; then it counts as empty
        self._pins = self._load()

    def get(self, name: str) -> Pin | None:
        """The pin of `name`, whatever its hash."""
        return self._pins.get(name)

    def holds(self, name: str, content_hash: str) -> bool:
        """Whether exactly this content of `name` is pinned."""
        pin = self._pins.get(name)
        return pin is not None and pin.hash == content_hash

    def put(self, name: str, content_hash: str, note: str = "") -> Pin:
        """Pin this content, replacing an earlier pin of the name; ConfigError while the file is damaged."""
        pin = Pin(hash=content_hash, since=datetime.now(UTC).isoformat(timespec="seconds"),
                  note=note[:PIN_NOTE_CHARS_MAX])
        self._save({**self._pins, name: pin})
        return pin

    def drop(self, name: str) -> bool:
        """Forget the pin of `name`; false when there was none."""
        if name not in self._pins:
            return False
        self._save({other: pin for other, pin in self._pins.items() if other != name})
        return True

    def _load(self) -> dict[str, Pin]:
        try:
            raw = private_file.read(self._path, PIN_FILE_BYTES_MAX)
            if raw is None:
                return {}
            document = msgspec.json.decode(raw, type=_Document)
        except (ConfigError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            self.damage = f"{self._path} cannot be used: {error}"
            return {}
        if document.version != FORMAT_VERSION:
            self.damage = f"{self._path} has format version {document.version}, not {FORMAT_VERSION}"
            return {}
        return document.plugins

    def _save(self, pins: dict[str, Pin]) -> None:
        if self.damage is not None:
            raise ConfigError(self.damage, remedy=f"move {self._path} away, then `aios plugins reload`")
        document = _Document(version=FORMAT_VERSION, plugins=dict(sorted(pins.items())))
        private_file.write(self._path, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
        self._pins = pins
