"""Memories through the parent: a real memory process, and a worker that encodes without a model."""

from __future__ import annotations

import asyncio
import os
import signal
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from aios.config import LimitsSection, Places
from aios.errors import BadInput, Busy, Cancelled, CrashLoop, EncoderChanged, KeyRefused, MemoryDied
from aios.log import EventLog
from aios.messages import (
    Diffuse,
    Forget,
    Generate,
    ListMemories,
    MemoryDraft,
    MemoryFilter,
    MemoryStats,
    Passage,
    Recall,
    Remember,
)
from aios.service import memory_link
from aios.service.child_link import DEATHS_IN_A_ROW_MAX
from aios.service.jobs import Board
from aios.service.memories import Memories
from aios.service.memory_link import MemoryLink
from aios.service.worker_link import WorkerLink

pytestmark = pytest.mark.usefixtures("fake_worker")


class Scene:
    """The two processes of a home and what the daemon has between them."""

    def __init__(self, places: Places, key: str = "file") -> None:
        self.board = Board(LimitsSection())
        log = EventLog(level="error")
        self.worker = WorkerLink(self.board, log, setup=lambda: {"plugins": []}, heard=lambda method, said: None,
                                 keep_alive_seconds=60, stall_seconds=60)
        self.link = MemoryLink(log, setup=lambda: {"folder": str(places.memory), "key": key, "encrypts": "texts",
                                                   "passphrase": self.memories.passphrase},
                               heard=lambda method, said: None, stall_seconds=60)
        self.memories = Memories(self.link, self.board, places.memory, lambda: None)

    async def remember(self, *texts: str, **fields: Any) -> list[int]:
        drafts = tuple(MemoryDraft(text=text, **fields) for text in texts)
        return await self.memories.remember(Remember(memories=drafts))

    async def recall(self, query: str, k: int = 1, **conditions: Any) -> list[str]:
        found = await self.memories.recall(Recall(query=query, k=k, filter=MemoryFilter(**conditions)))
        return [one["text"] for one in found]

    def kill(self) -> None:
        assert self.link.pid is not None
        os.kill(self.link.pid, signal.SIGKILL)


@asynccontextmanager
async def scene(places: Places, **options: Any) -> AsyncIterator[Scene]:
    one = Scene(places, **options)
    try:
        yield one
    finally:
        one.link.stop()
        one.worker.stop()
        await one.link.wait_ended()
        await one.worker.wait_ended()


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    def run(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
        asyncio.run(test(places, monkeypatch))

    run.__name__ = test.__name__
    return run


def packed(*numbers: float) -> bytes:
    return array("f", numbers).tobytes()


@in_loop
async def test_a_home_without_memories_answers_without_a_process_or_a_folder(places: Places, _: Any) -> None:
    async with scene(places) as s:
        assert await s.recall("anything") == []
        assert await s.memories.stats() == MemoryStats()
        assert (await s.memories.page(ListMemories())).memories == ()
        assert await s.memories.forget(Forget(ids=(1,))) == [] and not await s.memories.compact()
        asked = Diffuse(prompt="who?", memory="auto")
        assert await s.memories.lend(asked, 5) == Diffuse(prompt="who?")
        assert (s.link.state, s.worker.state, places.memory.exists()) == ("off", "off", False)


@in_loop
async def test_texts_are_encoded_kept_found_lent_and_forgotten(places: Places, _: Any) -> None:
    async with scene(places) as s:
        first, second = await s.remember("Mira's dentist is Doctor Oduya", "the bicycle stands in the cellar",
                                         tags=("fact",), source="diary", metadata={"page": 3})
        assert await s.recall("where is the bicycle?") == ["the bicycle stands in the cellar"]
        assert await s.recall("where is the bicycle?", k=5, tags=["other"]) == []
        own = await s.memories.remember(Remember(memories=(MemoryDraft(text="own", vector=packed(*[1.0] * 16)),)))
        assert [one["id"] for one in await s.memories.recall(Recall(vector=packed(*[2.0] * 16), k=1))] == own
        lent = await s.memories.lend(Generate(prompt="who is Mira's dentist?", memory="auto"), 2)
        assert lent.memory == "off" and lent.prompt == "who is Mira's dentist?"
        assert lent.passages[0].id == first and lent.passages[0].text == "Mira's dentist is Doctor Oduya"
        assert isinstance(lent.passages[0], Passage) and lent.passages[0].source == "diary"
        page = await s.memories.page(ListMemories(limit=1, vectors=True))
        assert (page["memories"][0]["metadata"], page["total"], page["next"]) == ({"page": 3}, 3, first)
        assert await s.memories.forget(Forget(filter=MemoryFilter(tags=["fact"]))) == [first, second]
        assert await s.recall("where is the bicycle?", k=5) == ["own"]
        assert await s.memories.compact() and (await s.memories.stats())["forgotten"] == 2
        assert not [path for path in places.memory.rglob("*") if path.is_file() and b"Oduya" in path.read_bytes()]


@in_loop
async def test_what_is_wrong_is_told_and_harms_nobody_else(places: Places, _: Any) -> None:
    async with scene(places) as s:
        await s.remember("one")
        wrong = [s.memories.remember(Remember(memories=(MemoryDraft(text="x", vector=packed(1.0)),))),
                 s.memories.recall(Recall(vector=packed(1.0, 2.0))),
                 s.memories.remember(Remember(memories=(MemoryDraft(text="x", tags=("t" * 300,)),)))]
        right = [s.remember(f"note {number}") for number in range(20)]
        results = await asyncio.gather(*wrong, *right, return_exceptions=True)
        assert all(isinstance(one, BadInput) for one in results[:3])
        assert sorted(ids for [ids] in results[3:]) == sorted({ids for [ids] in results[3:]}), "each its own id"
        assert (await s.memories.stats())["memories"] == 21


@in_loop
async def test_what_was_acknowledged_survives_kill_9_and_questions_are_asked_again(places: Places, _: Any) -> None:
    async with scene(places) as s:
        kept: list[str] = []

        async def keep(lane: int) -> None:
            for number in range(1000):
                if s.link.restarts:
                    return
                text = f"lane{lane} number{number}"
                try:
                    await s.remember(text)
                except MemoryDied:
                    return
                kept.append(text)

        lanes = [asyncio.ensure_future(keep(lane)) for lane in range(4)]
        async with asyncio.timeout(60):
            while len(kept) < 40:
                await asyncio.sleep(0.002)
        s.kill()
        await asyncio.gather(*lanes)
        found = [one["text"] for one in await s.memories.recall(Recall(query="lane1", k=1000))]
        assert set(kept) <= set(found) and len(found) == len(set(found)) <= len(kept) + 4
        asked = asyncio.ensure_future(s.recall("lane1"))
        await asyncio.sleep(0)
        s.kill()
        assert await asked and s.link.restarts == 2 and s.link.state in ("ready", "busy")


@in_loop
async def test_a_process_that_keeps_dying_is_not_started_again(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryLink, "module", "aios.no_such_module")
    async with scene(places) as s:
        asked = Remember(memories=(MemoryDraft(text="x", vector=packed(1.0)),))
        async with asyncio.timeout(60):
            with pytest.raises(CrashLoop, match="the memory process died"):
                await s.memories.remember(asked)
        assert s.link.state == "crash-loop" and s.link.restarts == DEATHS_IN_A_ROW_MAX
        with pytest.raises(CrashLoop):
            await s.memories.remember(asked)
        monkeypatch.undo()
        s.link.forgive()
        assert await s.memories.remember(asked) == [1]


@in_loop
async def test_requests_are_bounded_and_may_be_withdrawn(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_link, "REQUESTS_MAX", 3)
    async with scene(places) as s:
        waiting = [asyncio.ensure_future(s.link.ask("stats", {})) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await s.link.ask("stats", {})
        waiting[0].cancel()
        assert await asyncio.gather(*waiting[1:]) == [None, None]
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        assert not s.link.working
        for _ in range(5):
            late = asyncio.ensure_future(s.remember("late"))
            await asyncio.sleep(0.01)
            late.cancel()
            await asyncio.gather(late, return_exceptions=True)
        assert await s.remember("again")
        found = await s.memories.recall(Recall(query="late", k=10))
        assert len(found) == len({one["id"] for one in found})


@in_loop
async def test_an_encoder_is_known_by_its_vectors(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(places) as s:
        await s.remember("the bicycle stands in the cellar")
    monkeypatch.setenv("AIOS_FAKE_ENCODER", "second")
    async with scene(places) as s:
        with pytest.raises(EncoderChanged, match="fake-first"):
            await s.recall("bicycle")
        with pytest.raises(EncoderChanged):
            await s.remember("more")
        assert len(await s.memories.recall(Recall(vector=packed(*[1.0] * 16)))) == 1, "vectors of one's own still do"


@in_loop
async def test_a_locked_store_opens_by_its_passphrase_also_after_a_death(places: Places, _: Any) -> None:
    async with scene(places, key="passphrase") as s:
        with pytest.raises(KeyRefused) as caught:
            await s.remember("secret")
        assert caught.value.remedy == "aios memory unlock"
        assert await s.memories.unlock("correct horse battery")
        await s.remember("secret")
        s.kill()
        assert await s.recall("secret") == ["secret"]
    async with scene(places, key="file") as s:
        with pytest.raises(KeyRefused):
            await s.recall("secret")
        with pytest.raises(KeyRefused):
            await s.memories.unlock("wrong horse battery")
        assert await s.memories.unlock("correct horse battery") and await s.recall("secret") == ["secret"]


@in_loop
async def test_kept_once_means_once_however_often_it_is_sent(places: Places, _: Any) -> None:
    async with scene(places) as s:
        draft = MemoryDraft(text="only", time=datetime(2026, 1, 1, tzinfo=UTC))
        asked = Remember(memories=(draft, draft), once=True)
        ids = await asyncio.gather(*(s.memories.remember(asked) for _ in range(5)))
        assert {tuple(one) for one in ids} == {(1, 1)}


@in_loop
async def test_a_client_cancels_while_its_text_is_encoded(places: Places, _: Any) -> None:
    async with scene(places) as s:
        waiting = asyncio.ensure_future(s.remember("never"))
        await asyncio.sleep(0)
        waiting.cancel()
        [error] = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(error, asyncio.CancelledError | Cancelled)
        assert s.board.idle and not s.memories.there
