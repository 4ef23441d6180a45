"""A store that is encrypted as a whole says only how much it holds, and does everything that another one does."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from aios.errors import BadInput, KeyRefused, MemoryCorrupt
from aios.memory.record import Filter, NewMemory
from aios.memory.vector_memory import ArrowStorage
from aios.security.sealing import Passphrase, SecretFile, change_secret, open_vault
from tests.memory.conftest import DIM, encode

FACTS = ["Mira's dentist is Doctor Oduya", "The blue bicycle stands in the cellar", "Tomas is allergic to hazelnuts"]
WHEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
WORDS = [b"Oduya", b"bicycle", b"hazelnut", b"hidden-room", b"hidden-tag", b"hidden.md", b"hidden-hand",
         (int(WHEN.timestamp()) * 1_000_000).to_bytes(8, "little"), *(row.tobytes()[:8] for row in encode(FACTS))]


def fact(text: str) -> NewMemory:
    return NewMemory(text=text, metadata={"kind": text}, namespace="hidden-room", tags=["hidden-tag"], time=WHEN,
                     source="hidden.md", provenance="hidden-hand")


def spoken(home: Path) -> list[tuple[str, bytes]]:
    """Words that are in some file of the home."""
    return [(path.name, word) for path in home.rglob("*") if path.is_file() for word in WORDS
            if word in path.read_bytes()]


@pytest.fixture
def secret(reopen):
    """Opens the encrypted store of the test's home."""
    return lambda **options: reopen(**{"encrypts": "all"} | options)


def test_no_word_time_or_vector_is_in_any_file(secret, home):
    with secret() as store:
        store.remember_many([fact(text) for text in FACTS])
        assert spoken(home) == []
        store.flush()
        store.remember_many([fact(text) for text in FACTS])
        store.recall("Mira")
    assert spoken(home) == []
    assert {path.suffix for path in home.glob("segment-*")} | {path.suffix for path in home.glob("index-*")} == {
        ".sealed"}


def test_it_does_everything_that_another_one_does(secret, home):
    with secret() as store:
        first = store.remember_many([fact(text) for text in FACTS])
        store.flush()
        second = store.remember_many([NewMemory(text=f"note {n}", namespace=f"room {n % 2}") for n in range(6)])
        reader = secret(read_only=True)
        assert reader.recall("who is Mira's dentist?", k=1)[0].text == FACTS[0]
        assert store.forget([first[1], second[0]]) == [first[1], second[0]]
        assert reader.read(first[1]) is None, "the key is gone at once"
        assert {one.id for one in store.recall("note", k=20, filter=Filter(namespaces=["room 1"]))} == set(second[1::2])
        assert store.compact() and not store.compact()
        reader.refresh()
        assert reader.select() == store.select() == [first[0], first[2], *second[1:]]
        reader.close()
        found = store.read(first[2])
        assert (found.text, found.namespace, found.tags, found.time) == (FACTS[2], "hidden-room", ("hidden-tag",), WHEN)
    for _ in range(2):                   # the index is made, then opened
        with secret() as store:
            assert store.recall(FACTS[2], k=1)[0].id == first[2] and store.verify() == 7
            assert store.was_forgotten(first[1]) and store.stats().forgotten == 2


def test_of_a_forgotten_memory_nothing_can_be_opened_any_more(secret, home):
    with secret() as store:
        gone = store.remember_many([fact(text) for text in FACTS])[0]
        store.flush()
        store.recall("x")
    with secret() as store:
        (segment,) = home.glob("segment-*")
        before, key = segment.read_bytes(), (home / "keys").read_bytes()[64 * gone:64 * gone + 60]
        store.forget(gone)
        vector = DIM * 4 + 16
        changed = [at for at, (old, new) in enumerate(zip(before, segment.read_bytes(), strict=True)) if old != new]
        assert vector - 8 < len(changed) <= vector and changed[-1] - changed[0] < vector, "the sealed vector is zeroed"
        assert not any(key in path.read_bytes() for path in home.iterdir()) and not list(home.glob("index-*"))
        keys = (home / "keys").read_bytes()
        identity = bytes.fromhex(json.loads((home / "manifest.json").read_text().splitlines()[0])["identity"])
        vault = open_vault(home, identity)
        sealed = store._store._native.read(2)[5]
        assert b"bicycle" in vault.open(2, keys[128:188], sealed)
        for slot in range(1, 4):         # whatever keys there are: the remains of the first open with none of them
            with pytest.raises(KeyRefused):
                vault.open(gone, keys[64 * slot:64 * slot + 60], sealed)
        store.compact()
        assert len(next(home.glob("segment-*")).read_bytes()) < len(before)


def test_neither_kind_is_taken_for_the_other(reopen, secret, home):
    secret().close()
    with reopen() as store, pytest.raises(BadInput, match="encrypts all, not texts"):
        store.close()
        reopen(encrypts="texts")
    manifest = home / "manifest.json"
    body = manifest.read_text().splitlines()[0].replace("aios-memory-sealed-1", "aios-memory-1")
    manifest.write_text(f"{body}\n{_native_crc(body.encode()):08x}\n")
    with pytest.raises(KeyRefused, match="disagree"):
        reopen()
    envelope = json.loads((home / "master.json").read_text())
    assert envelope["encrypts"] == "all"
    (home / "master.json").write_text(json.dumps(envelope | {"encrypts": "texts"}))
    with pytest.raises(KeyRefused, match="not the one"):
        reopen()


def _native_crc(data: bytes) -> int:
    from aios import _native

    return _native.crc32c(data)


def test_another_key_opens_nothing(secret, home):
    with secret() as store:
        store.remember_many([fact(text) for text in FACTS])
        store.flush()
    good = (home / "master.secret").read_bytes()
    (home / "master.secret").write_bytes(os.urandom(32))
    for read_only in (False, True):
        with pytest.raises(KeyRefused):
            secret(read_only=read_only)
    (home / "master.secret").write_bytes(good)
    identity = bytes.fromhex(json.loads((home / "manifest.json").read_text().splitlines()[0])["identity"])
    change_secret(home, identity, SecretFile(), Passphrase(text="correct horse battery"))
    with pytest.raises(KeyRefused, match="passphrase"):
        secret()
    with secret(key=Passphrase(text="correct horse battery")) as store:
        assert store.verify() == 3 and store.recall(FACTS[1], k=1)[0].text == FACTS[1]


def test_a_saved_index_that_is_damaged_renamed_or_anothers_is_made_anew(secret, home):
    with secret() as store:
        store.remember_many([fact(text) for text in FACTS])
        store.recall("x")
    (index,) = home.glob("index-*")
    whole = index.read_bytes()
    for damaged, name in ((whole[:-1], index.name), (whole[:60] + bytes([whole[60] ^ 1]) + whole[61:], index.name),
                          (b"", index.name), (whole, "index-9.sealed"), (whole, "index-3.vectors")):
        index.unlink(missing_ok=True)
        (home / name).write_bytes(damaged)
        with secret() as store:
            assert [store.recall(text, k=1)[0].text for text in FACTS] == FACTS


def test_damage_is_told(secret, home):
    with secret() as store:
        store.remember_many([fact(text) for text in FACTS])
        store.flush()
        store.remember(FACTS[0])
    for path in (*home.glob("segment-*"), *home.glob("log-*")):
        whole = path.read_bytes()
        for at in np.linspace(0, len(whole) - 1, 25).astype(int).tolist():
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
            if path.name.startswith("log-") and 60 <= at < 128:      # the mark is there twice; the rest is padding
                with secret(read_only=True) as store:
                    assert store.verify() == 4
                continue
            with pytest.raises(MemoryCorrupt), secret(read_only=True) as store:
                store.verify()
        path.write_bytes(whole)


def test_a_clear_store_becomes_an_encrypted_one_by_export_and_import(store, tmp_path):
    store.remember_many([fact(text) for text in FACTS])
    store.export(tmp_path / "all.jsonl")
    with ArrowStorage.open(tmp_path / "other", DIM, encode=encode, encrypts="all") as other:
        assert other.import_(tmp_path / "all.jsonl") == 3
        assert [other.read(number).text for number in other.select()] == FACTS
    assert spoken(store._folder) and spoken(tmp_path / "other") == []


def test_vectors_in_half_precision_are_encrypted_too(tmp_path):
    with ArrowStorage.open(tmp_path / "half", DIM, vector="f16", encode=encode, encrypts="all") as store:
        store.remember_many([fact(text) for text in FACTS])
        store.flush()
        assert store.recall(FACTS[1], k=1)[0].text == FACTS[1] and store.verify() == 3
