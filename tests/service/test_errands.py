"""An errand is answered exactly once: by its result, its error, its deadline, its owner's cancellation or the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from aios.config import LimitsSection
from aios.errors import AiosError, BadInput, Cancelled, DeadlineExceeded, Draining, Internal
from aios.messages import Encode
from aios.service.errands import Errands, HandedOn, answered
from aios.service.jobs import Board
from tests.service.conftest import FakeOwner


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    def run(owner: FakeOwner) -> None:
        asyncio.run(test(owner))

    run.__name__ = test.__name__
    return run


def errands() -> Errands:
    return Errands(lambda name, error: Internal(f"{name}: {error}"))


async def gives(value: Any) -> Any:
    await asyncio.sleep(0)
    if isinstance(value, Exception):
        raise value
    return value


async def waits(stopped: list[str]) -> None:
    try:
        await asyncio.sleep(60)
    finally:
        stopped.append("stopped")


async def over(some: Errands) -> None:
    async with asyncio.timeout(5):
        while not some.idle:
            await asyncio.sleep(0)


@in_loop
async def test_an_errand_answers_with_what_it_returns_or_raises(owner: FakeOwner) -> None:
    some = errands()
    for msgid, value in enumerate([(1, 2), BadInput("no"), ValueError("odd"), HandedOn()], start=1):
        some.begin(owner, msgid, "verb", gives(value), 5)
    assert not some.idle
    await over(some)
    assert owner.answers[1] == (1, 2)
    assert isinstance(owner.answers[2], BadInput)
    assert isinstance(owner.answers[3], Internal) and "verb: odd" in owner.answers[3].message
    assert 4 not in owner.answers, "somebody else answers it"


@in_loop
async def test_a_deadline_ends_the_work(owner: FakeOwner) -> None:
    some, stopped = errands(), list[str]()
    some.begin(owner, 1, "verb", waits(stopped), 0.01)
    await over(some)
    assert isinstance(owner.answers[1], DeadlineExceeded) and stopped == ["stopped"]


@in_loop
async def test_an_owner_cancels_its_own_errands_only(owner: FakeOwner) -> None:
    some, stopped, other = errands(), list[str](), FakeOwner()
    some.begin(owner, 1, "verb", waits(stopped), 5)
    some.begin(owner, 2, "verb", waits(stopped), 5)
    some.begin(other, 1, "verb", waits(stopped), 5)
    await asyncio.sleep(0)
    assert some.cancel(owner, 1) and not some.cancel(other, 2)
    some.drop(other)
    await asyncio.sleep(0.01)
    assert isinstance(owner.answers[1], Cancelled) and isinstance(other.answers[1], Cancelled)
    assert 2 not in owner.answers and len(stopped) == 2
    some.abandon_all(Draining("the end"))
    await over(some)
    assert isinstance(owner.answers[2], Draining)


@in_loop
async def test_an_errand_that_is_cancelled_before_it_began_is_answered(owner: FakeOwner) -> None:
    some, stopped = errands(), list[str]()
    some.begin(owner, 1, "verb", waits(stopped), 5)
    assert some.cancel(owner, 1)
    await over(some)
    await asyncio.sleep(0)
    assert isinstance(owner.answers[1], Cancelled) and stopped == []


@in_loop
async def test_a_request_of_our_own_is_withdrawn_with_who_waits_for_it(owner: FakeOwner) -> None:
    board = Board(LimitsSection())
    cancelled: list[int] = []
    board.cancel_running = cancelled.append
    waiting = asyncio.ensure_future(answered(board, "encode", Encode(texts=("a",))))
    await asyncio.sleep(0)
    job = board.take()
    assert job is not None
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert cancelled == [job.number]
    board.answer(job.number, Cancelled("withdrawn"), None)
    second = asyncio.ensure_future(answered(board, "encode", Encode(texts=("a",))))
    await asyncio.sleep(0)
    job = board.take()
    assert job is not None
    board.answer(job.number, BadInput("no"), None)
    [error] = await asyncio.gather(second, return_exceptions=True)
    assert isinstance(error, AiosError) and board.idle
