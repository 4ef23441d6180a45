"""The one store of a home: opened once it is there or needed, locked without its secret, true to its encoder.

Beside the store lies `encoder.json`: which releases made its vectors, and the vector of one fixed text. A release that
is not among them is accepted where it gives that text nearly the same vector (the same encoder, packed otherwise).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from aios.errors import EncoderChanged, KeyRefused, MemoryCorrupt
from aios.memory.record import Filter, Floats, NewMemory
from aios.memory.sealed_store import MANIFEST_NAME
from aios.memory.vector_memory import CONDITIONS, DIM, ArrowStorage
from aios.messages import MemoryFilter
from aios.security import private_file
from aios.security.sealing import Credential, Encrypts, Keyring, KeySource, Passphrase, SecretFile, noted_source

ENCODER_NAME: Final = "encoder.json"
ENCODER_BYTES_MAX: Final = 1 << 20           # the anchor of the widest store has 8,192 numbers
RELEASES_MAX: Final = 64                     # of one encoder, packed in different ways
SAME_ENCODER_COSINE: Final = 0.9             # the same weights in INT4 keep 0.97, another encoder gives about 0
Kind = Literal["file", "credential", "keyring", "passphrase"]
_SOURCES: Final[dict[str, Callable[[], KeySource]]] = {"file": SecretFile, "credential": Credential, "keyring": Keyring}


class _Encoder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """encoder.json."""

    model: str
    releases: tuple[str, ...]
    anchor: tuple[float, ...]


class Keeper:
    """The store in `folder`, for several threads at once."""

    def __init__(self, folder: Path, *, key: Kind = "file", encrypts: Encrypts = "texts",
                 passphrase: str | None = None) -> None:
        """key, encrypts: of a new store, as `ArrowStorage.open` has them; an existing one says so itself."""
        self._folder, self._key, self._encrypts, self._passphrase = folder, key, encrypts, passphrase
        self._opening = threading.Lock()
        self._store: ArrowStorage | None = None
        self._known: frozenset[str] = frozenset()

    def store(self) -> ArrowStorage | None:
        """The store, None where nothing was ever remembered; raises KeyRefused while it is locked."""
        if self._store is None and not (self._folder / MANIFEST_NAME).exists():
            return None
        return self.open()

    def open(self, dim: int = DIM) -> ArrowStorage:
        """The store, made for vectors of `dim` numbers if there is none; raises KeyRefused while it is locked."""
        if self._store is None:
            with self._opening:
                if self._store is None:
                    there = (self._folder / MANIFEST_NAME).exists()
                    key = self._source(noted_source(self._folder) if there else self._key, new=not there)
                    self._store = ArrowStorage.open(self._folder, None if there else dim, key,
                                                    encrypts=None if there else self._encrypts)
        return self._store

    def unlock(self, passphrase: str) -> None:
        """Open the store with this passphrase, or make it the one of the store to come; raises KeyRefused."""
        there = (self._folder / MANIFEST_NAME).exists()
        kind = noted_source(self._folder) if there else self._key
        if kind != "passphrase":
            raise KeyRefused(f"the memories open with a {kind}, not with a passphrase",
                             remedy='key = "passphrase" under [memory] in daemon.toml, before anything is remembered')
        if not there:
            Passphrase(text=passphrase).secret(self._folder, create=True)
            self._passphrase = passphrase
            return
        before, self._passphrase = self._passphrase, passphrase
        try:
            self.open()
        except KeyRefused:
            self._passphrase = before
            raise

    def close(self) -> None:
        """Save the index and let go of the store."""
        if self._store is not None:
            self._store.close()

    def check_encoder(self, release: str | None) -> None:
        """Raises EncoderChanged, its details asking for `introduce`, when the release never made a vector here."""
        if release is None or release in self._known:       # vectors of the caller's own making are their business
            return
        record = self._record()
        self._known = frozenset(record.releases if record is not None else ())
        if release not in self._known:
            raise EncoderChanged("the encoder is not known to the store of memories", introduce=True,
                                 remedy="name it in daemon.toml: model.encoder")

    def introduce(self, release: str, model: str, anchor: Floats) -> None:
        """Note an encoder by its vector of the fixed text; raises EncoderChanged when it is another one."""
        record = self._record()
        if record is None:
            record = _Encoder(model=model, releases=(), anchor=tuple(anchor.tolist()))
        elif _cosine(np.asarray(record.anchor, np.float32), anchor) < SAME_ENCODER_COSINE:
            raise EncoderChanged(
                f"the memories were encoded by {record.model}; {model} would not find them",
                remedy=f'set model.encoder = "{record.model}" in daemon.toml; or aios memory export FILE, '
                       "move the folder of memories away, and aios memory import FILE --encode")
        record = msgspec.structs.replace(record, releases=(*record.releases, release)[-RELEASES_MAX:])
        private_file.write(self._folder / ENCODER_NAME, msgspec.json.encode(record))
        self._known = frozenset(record.releases)

    def remember_once(self, memories: Sequence[NewMemory]) -> list[int]:
        """Keep those that are not there yet; the ids of all."""
        store = self.open()
        ids: dict[int, int] = {}
        new: dict[tuple[object, ...], list[int]] = {}
        for index, memory in enumerate(memories):
            if (known := store.same(memory)) is not None:
                ids[index] = known
            else:
                new.setdefault((memory.namespace, memory.time, memory.source, memory.text), []).append(index)
        kept = store.remember_many([memories[indexes[0]] for indexes in new.values()])
        for number, indexes in zip(kept, new.values(), strict=True):
            ids |= dict.fromkeys(indexes, number)
        return [ids[index] for index in range(len(memories))]

    def _source(self, kind: str, *, new: bool) -> KeySource | None:
        """Where the secret comes from; None: from where the store says."""
        if kind == "passphrase":
            if self._passphrase is None:
                raise KeyRefused("the memories are locked by a passphrase", remedy="aios memory unlock")
            return Passphrase(text=self._passphrase)
        return _SOURCES[kind]() if new and kind in _SOURCES else None

    def _record(self) -> _Encoder | None:
        data = private_file.read(self._folder / ENCODER_NAME, ENCODER_BYTES_MAX)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=_Encoder)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MemoryCorrupt(f"{self._folder / ENCODER_NAME} is damaged",
                                remedy="remove it if model.encoder in daemon.toml is what it always was") from error


def conditions(asked: MemoryFilter) -> Filter | None:
    """A filter as the store takes it; None where everything passes."""
    given = {name: getattr(asked, name) for name in CONDITIONS}
    return Filter(**given) if any(given.values()) else None


def _cosine(one: Floats, other: Floats) -> float:
    """0 for vectors of different lengths."""
    if one.shape != other.shape:
        return 0.0
    return float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12))
