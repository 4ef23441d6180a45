"""Memories page by page: every one once, whatever happens meanwhile, and no page larger than a frame."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from aios.ipc import stream
from aios.memory import vector_memory
from aios.memory.record import METADATA_BYTES_MAX, NewMemory
from aios.messages import MEMORIES_PER_PAGE_MAX, ListMemories, MemoryFilter, to_wire
from tests.memory.conftest import DIM, encode


def every(store, **asked):
    after, found = 0, []
    while after is not None:
        page = store.page(ListMemories(after=after, **asked))
        found += [(one, vector) for one, vector in zip(page.memories, page.vectors or [None] * 999, strict=False)]
        after = page.next
    return found


@pytest.mark.parametrize("limit", [1, 2, 5, 7, 256])
def test_pages_hold_every_memory_once_in_order(store, limit):
    ids = [store.remember(f"note {number}", tags=["even"] if number % 2 == 0 else []) for number in range(7)]
    store.forget(ids[2])
    kept = [number for number in ids if number != ids[2]]
    found = every(store, limit=limit, vectors=True)
    assert [one.id for one, _ in found] == kept
    assert np.allclose(np.frombuffer(found[0][1], "<f4"), encode(["note 0"])[0])
    even = MemoryFilter(tags=("even",))
    assert [one.text for one, _ in every(store, limit=limit, filter=even)] == ["note 0", "note 4", "note 6"]
    assert store.page(ListMemories(filter=even, limit=1)).total == 3


def test_an_empty_store_has_one_empty_page(store):
    page = store.page(ListMemories(vectors=True))
    assert (page.memories, page.total, page.next, page.dim) == ((), 0, None, DIM)


def test_large_texts_end_a_page_early(store, monkeypatch):
    monkeypatch.setattr(vector_memory, "PAGE_CHARS_MAX", 100)
    for size in (60, 30, 20, 500, 10):
        store.remember("x" * size)
    assert [len(store.page(ListMemories(after=after)).memories) for after in (0, 2, 3, 4)] == [2, 1, 1, 1]
    assert len(every(store)) == 5


def test_the_fullest_page_fits_a_frame(store):
    numbers = list(range((METADATA_BYTES_MAX - 2000) // 6))
    store.remember_many([NewMemory(text="ÿ" * 200, vector=encode(["x"])[0], metadata={"n": numbers},
                                   tags=[f"tag {one}" for one in range(64)]) for _ in range(6)])
    store.remember_many([NewMemory(text="€" * 3000, vector=encode(["x"])[0], tags=[f"tag {one}" for one in range(64)])
                         for _ in range(300)])
    after, pages = 0, 0
    while after is not None:
        page = store.page(ListMemories(after=after, limit=MEMORIES_PER_PAGE_MAX, vectors=True))
        stream.encode(stream.Response(msgid=1, error=None, result=to_wire(page)))
        after, pages = page.next, pages + 1
    assert pages > 2


def test_the_same_memory_is_found_by_what_it_says_and_when(store):
    when = datetime(2026, 1, 1, tzinfo=UTC)
    number = store.remember("a", time=when, source="s")
    assert store.same(NewMemory(text="a", time=when, source="s")) == number
    assert store.same(NewMemory(text="a", time=when)) is None
    assert store.same(NewMemory(text="b", time=when, source="s")) is None
    assert store.same(NewMemory(text="a", source="s")) is None
