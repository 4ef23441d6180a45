"""The index follows the store: what is newer is added, what is forgotten leaves, and its copy is never believed."""

from __future__ import annotations

from pathlib import Path

from aios.memory.record import NewMemory
from aios.memory.vector_memory import ArrowStorage


def names(home: Path) -> list[str]:
    return sorted(path.name for path in home.glob("index-*"))


def test_a_saved_index_is_brought_up_to_the_store_when_it_is_opened(store, reopen, home):
    store.remember_many([NewMemory(text=f"old{n}") for n in range(5)])
    store.recall("old1")
    store.close()
    assert names(home) == ["index-5.vectors"]
    with reopen() as again:
        again.remember("new6")                  # nobody searches: the copy stays as it is
        assert names(home) == ["index-5.vectors"]
    with reopen() as again:
        assert again.recall("new6", k=1)[0].text == "new6"
        assert again.recall("old3", k=1)[0].text == "old3"
    assert names(home) == ["index-6.vectors"]


def test_the_saved_copy_goes_as_soon_as_anything_is_forgotten(store, reopen, home):
    store.remember_many([NewMemory(text=f"old{n}") for n in range(5)])
    store.recall("old1")
    store.flush()
    assert names(home) == ["index-5.vectors"]
    store.close()
    with reopen() as again:
        again.forget(2)
        assert names(home) == []
        again.flush()
        assert names(home) == ["index-5.vectors"]
        assert "old1" not in {one.text for one in again.recall("old1", k=5)}


def test_a_copy_that_missed_a_forgetting_does_not_bring_it_back(store, reopen, home):
    store.remember_many([NewMemory(text=f"old{n}") for n in range(5)])
    store.recall("old1")
    store.flush()
    copy = (home / "index-5.vectors").read_bytes()
    store.forget(2)
    store.close()
    for path in home.glob("index-*"):
        path.unlink()
    (home / "index-5.vectors").write_bytes(copy)
    with reopen() as again:
        assert [one.id for one in again.recall("old1", k=5)] == [one.id for one in again.recall("old1", k=4)]
        assert 2 not in {one.id for one in again.recall("old1", k=5)}


def test_a_reader_takes_the_saved_copy_and_writes_nothing(store, reopen, home, monkeypatch):
    store.remember_many([NewMemory(text=f"old{n}") for n in range(5)])
    store.recall("old1")
    store.flush()
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    scanned = []
    original = ArrowStorage._searching
    with reopen(read_only=True) as reader:
        index = original(reader)
        monkeypatch.setattr(reader._store, "scan", lambda above=0: scanned.append(above) or iter(()))
        assert len(index) == 5 and reader.recall("old4", k=1)[0].text == "old4"
        store.remember("new6")
        reader.refresh()
        assert reader.recall("new6", k=1)[0].text == "new6" and scanned == []
        during = {path.name for path in home.iterdir()}
    assert during == set(before)
    assert (home / "index-5.vectors").read_bytes() == before["index-5.vectors"]
