"""The worker link against a worker process that speaks the channel without an engine."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aios.config import LimitsSection
from aios.errors import Cancelled, CrashLoop, DeadlineExceeded, Poisonous, WorkerDied
from aios.log import EventLog
from aios.messages import Diffuse
from aios.service.child_link import DEATHS_IN_A_ROW_MAX
from aios.service.jobs import Board
from aios.service.worker_link import WorkerLink
from tests.service.conftest import FakeOwner

pytestmark = pytest.mark.usefixtures("fake_worker")


class Stage:
    """A board, a link and one owner."""

    def __init__(self, keep_alive: float, stall: float) -> None:
        self.owner = FakeOwner()
        self.heard: list[tuple[str, Mapping[str, Any]]] = []
        self.board = Board(LimitsSection())
        self.plugins: list[str] = []
        self.link = WorkerLink(self.board, EventLog(level="error"), setup=lambda: {"plugins": self.plugins},
                               heard=lambda method, said: self.heard.append((method, said)),
                               keep_alive_seconds=keep_alive, stall_seconds=stall)
        self._next = 0

    def submit(self, prompt: str, deadline_ms: int | None = None) -> int:
        self._next += 1
        self.board.submit(self.owner, self._next, "diffuse", Diffuse(prompt=prompt), stream=True,
                          deadline_ms=deadline_ms)
        return self._next

    async def answer(self, msgid: int) -> Any:
        await until(lambda: msgid in self.owner.answers)
        return self.owner.answers[msgid]

    async def ask(self, prompt: str) -> Any:
        return await self.answer(self.submit(prompt))


@asynccontextmanager
async def stage(keep_alive: float = 60.0, stall: float = 60.0) -> AsyncIterator[Stage]:
    one = Stage(keep_alive, stall)
    try:
        yield one
    finally:
        one.link.stop()
        await one.link.wait_ended()


async def until(done: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it takes too long"
        await asyncio.sleep(0.005)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_the_worker_starts_at_the_first_request_and_stays() -> None:
    async def scene() -> None:
        async with stage() as s:
            assert s.link.state == "off" and s.link.pid is None
            first, second = await s.ask("a"), await s.ask("b")
            assert (first["echo"], second["echo"]) == ("a", "b")
            assert first["pid"] == second["pid"] == s.link.pid
            assert s.link.state == "ready"
            assert ("plugins", {"active": {"p": "h"}}) in s.heard

    asyncio.run(scene())


def test_after_the_keep_alive_the_process_is_gone_and_the_next_request_starts_another() -> None:
    async def scene() -> None:
        async with stage(keep_alive=0.2) as s:
            pid = (await s.ask("a"))["pid"]
            await until(lambda: s.link.state == "off")
            assert gone(pid) and s.link.restarts == 0 and s.link.reason is None
            assert (await s.ask("b"))["pid"] != pid

    asyncio.run(scene())


def test_states_reach_the_owner_and_cancelling_frees_the_worker() -> None:
    async def scene() -> None:
        async with stage() as s:
            msgid = s.submit("slow")
            await until(lambda: len(s.owner.states) >= 3)
            assert s.link.state == "busy"
            assert s.board.cancel(s.owner, msgid)
            assert isinstance(s.owner.answers[msgid], Cancelled)
            await until(lambda: s.board.idle)
            assert len(s.owner.states) < 40

    asyncio.run(scene())


def test_a_death_fails_the_running_request_clearly_and_the_next_one_works() -> None:
    async def scene() -> None:
        async with stage() as s:
            error = await s.ask("die")
            assert isinstance(error, WorkerDied) and "SIGKILL" in error.message and error.remedy
            assert (await s.ask("a"))["echo"] == "a"
            assert s.link.restarts == 1 and s.link.reason is not None

    asyncio.run(scene())


def test_a_request_that_killed_it_twice_is_refused_and_ran_alone_the_second_time() -> None:
    async def scene() -> None:
        async with stage() as s:
            assert (await s.ask("innocent"))["alone"] is False
            for _ in range(2):
                assert isinstance(await s.ask("die"), WorkerDied)
            with pytest.raises(Poisonous):
                s.submit("die")
            assert (await s.ask("a"))["echo"] == "a"

    asyncio.run(scene())


def test_requests_that_waited_survive_a_death() -> None:
    async def scene() -> None:
        async with stage() as s:
            s.board.limits = LimitsSection(active_max=1)
            dying, waiting = s.submit("die"), s.submit("a")
            assert isinstance(await s.answer(dying), WorkerDied)
            assert (await s.answer(waiting))["echo"] == "a"

    asyncio.run(scene())


def test_a_crash_loop_ends_in_a_clear_refusal_until_it_is_forgiven() -> None:
    async def scene() -> None:
        async with stage() as s:
            for number in range(DEATHS_IN_A_ROW_MAX):
                assert isinstance(await s.ask(f"die {number}"), WorkerDied)
            assert s.link.state == "crash-loop"
            with pytest.raises(CrashLoop, match="SIGKILL") as refusal:
                s.link.check()
            assert "aios restart" in refusal.value.remedy
            s.link.forgive()
            s.link.check()
            assert (await s.ask("a"))["echo"] == "a"

    asyncio.run(scene())


def test_one_finished_request_in_between_is_no_crash_loop() -> None:
    async def scene() -> None:
        async with stage() as s:
            for number in range(DEATHS_IN_A_ROW_MAX + 1):
                await s.ask(f"die {number}")
                assert (await s.ask("a"))["echo"] == "a"

    asyncio.run(scene())


def test_a_worker_that_cannot_be_set_up_fails_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        monkeypatch.setenv("AIOS_FAKE_WORKER", "broken")
        async with stage() as s:
            error = await s.ask("a")
            assert isinstance(error, CrashLoop) and "status 3" in error.message
            assert s.link.state == "crash-loop" and s.link.restarts == DEATHS_IN_A_ROW_MAX

    asyncio.run(scene())


def test_a_hung_worker_is_killed_and_its_request_blamed() -> None:
    async def scene() -> None:
        async with stage(stall=0.5) as s:
            began = time.monotonic()
            error = await s.ask("hang")
            assert isinstance(error, WorkerDied) and "no progress for 0.5 s" in error.message
            assert time.monotonic() - began < 10
            assert isinstance(await s.ask("hang"), WorkerDied)
            with pytest.raises(Poisonous):
                s.submit("hang")

    asyncio.run(scene())


def test_a_slow_worker_that_moves_is_not_killed() -> None:
    async def scene() -> None:
        async with stage(stall=1.0) as s:
            assert await s.ask("slow") == {"usage": s.owner.answers[1]["usage"]}
            assert s.link.restarts == 0

    asyncio.run(scene())


def test_having_been_idle_for_long_is_no_stall() -> None:
    async def scene() -> None:
        async with stage(stall=0.8) as s:
            await s.ask("a")
            await asyncio.sleep(1.2)
            assert await s.ask("slow") is not None
            assert s.link.restarts == 0

    asyncio.run(scene())


def test_a_plugin_that_hangs_while_it_is_loaded_is_named() -> None:
    async def scene() -> None:
        async with stage(stall=0.4) as s:
            await s.ask("a")
            s.plugins = ["hangs"]
            with pytest.raises(WorkerDied):
                await s.link.reload()
            told = next(said for method, said in s.heard if method == "plugin.failed")
            assert told["name"] == "hangs" and "no progress" in told["reason"]

    asyncio.run(scene())


def test_what_changed_while_the_worker_started_is_told_before_it_serves() -> None:
    async def scene() -> None:
        async with stage() as s:
            msgid = s.submit("a")
            s.plugins = ["changed"]
            await until(lambda: s.link.state == "starting" and bool(s.link._calls))
            s.plugins = ["changed", "again"]
            await s.answer(msgid)
            assert [method for method, _ in s.heard].count("plugins") == 2

    asyncio.run(scene())


def test_a_deadline_is_answered_even_while_the_worker_hangs() -> None:
    async def scene() -> None:
        async with stage() as s:
            await s.ask("a")
            began = time.monotonic()
            assert isinstance(await s.answer(s.submit("hang", deadline_ms=100)), DeadlineExceeded)
            assert time.monotonic() - began < 2
            assert s.link.pid is not None
            os.kill(s.link.pid, signal.SIGKILL)
            await until(lambda: s.board.idle)

    asyncio.run(scene())


def test_retiring_lets_running_requests_finish_and_later_ones_have_a_new_worker() -> None:
    async def scene() -> None:
        async with stage() as s:
            pid = (await s.ask("a"))["pid"]
            slow = s.submit("slow")
            await until(lambda: s.link.state == "busy")
            s.link.retire()
            later = s.submit("b")
            assert isinstance(await s.answer(slow), dict)
            assert (await s.answer(later))["pid"] != pid

    asyncio.run(scene())
