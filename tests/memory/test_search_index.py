"""The index follows the store: what is newer is added, what is forgotten leaves, and its copy is never believed."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from aios.memory import search_index
from aios.memory.record import Filter, NewMemory
from aios.memory.search_index import SearchIndex
from aios.memory.vector_memory import ArrowStorage
from tests.memory.conftest import encode


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


def told(index: SearchIndex, text: str, k: int) -> list[tuple[int, float]]:
    return index.search(encode([text])[0], k, None)


def test_what_the_graph_has_not_taken_in_is_found_with_the_same_score(store, monkeypatch):
    index = store._searching()
    old = store.remember_many([NewMemory(text=f"old{n}") for n in range(40)])
    index.settle()
    new = store.remember_many([NewMemory(text=f"old{n} new") for n in range(40)])
    before = told(index, "old7", 12)
    assert len(index._index) == 40, "nobody has taken them in yet"
    assert {one for one, _ in before} >= {old[7], new[7]}
    assert store.recall("old7 new", filter=Filter(namespaces=["other"])) == []
    index.settle()
    assert told(index, "old7", 12) == before and len(index._index) == 80 == len(index)
    store.remember_many([NewMemory(text="old7 newer")])
    store.forget(new[7])
    assert new[7] not in {one for one, _ in told(index, "old7", 80)}


def test_a_question_waits_for_one_slice_and_goes_before_the_next(store, monkeypatch):
    index = store._searching()
    monkeypatch.setattr(index, "_slice_rows", 16)
    begun, going = threading.Event(), threading.Semaphore(0)
    add = index._index.add

    def slow(ids, vectors):
        begun.set()
        assert going.acquire(timeout=20)
        add(ids, vectors)

    monkeypatch.setattr(index._index, "add", slow)
    store.remember_many([NewMemory(text=f"note{n}") for n in range(48)])
    answers = []
    taking = threading.Thread(target=index.settle)
    asking = threading.Thread(target=lambda: answers.append((told(index, "note40", 1), len(index._index))))
    taking.start()
    assert begun.wait(20)
    asking.start()
    while not index._asking:
        time.sleep(0.001)
    going.release()
    asking.join(20)
    assert [(found[0][0], taken) for found, taken in answers] == [(41, 16)]
    for _ in range(2):
        going.release()
    taking.join(20)
    assert len(index._index) == 48 and told(index, "note40", 1)[0][0] == 41


def test_what_could_not_be_taken_in_waits_on(store, monkeypatch):
    index = store._searching()
    with monkeypatch.context() as broken:
        broken.setattr(index._index, "add", lambda ids, vectors: 1 / 0)
        store.remember_many([NewMemory(text=f"note{n}") for n in range(3)])
        with pytest.raises(ZeroDivisionError):
            index.settle()
        assert told(index, "note1", 1)[0][0] == 2
    assert len(index) == 3 and told(index, "note1", 1)[0][0] == 2


def test_no_more_waits_than_is_quickly_scanned(store, monkeypatch):
    monkeypatch.setattr(search_index, "WAITING_MAX", 8)
    index = store._searching()
    for n in range(20):
        store.remember(f"note{n}")
        assert len(index._fresh) < 8
    assert len(index) == 20
