from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from aios.config import LimitsSection
from aios.errors import Busy, Cancelled, DeadlineExceeded, Poisonous, WorkerDied
from aios.messages import Diffuse
from aios.service.jobs import BLAME_KEPT_MAX, Board
from tests.service.conftest import FakeOwner

DIED = WorkerDied("it died")


def submit(board: Board, owner: FakeOwner, msgid: int, prompt: str = "x", deadline_ms: int | None = None) -> None:
    board.submit(owner, msgid, "diffuse", Diffuse(prompt=prompt), stream=False, deadline_ms=deadline_ms)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    def run(owner: FakeOwner) -> None:
        asyncio.run(test(owner))

    run.__name__ = test.__name__
    return run


@in_loop
async def test_jobs_are_run_in_order_and_answered_once(owner: FakeOwner) -> None:
    board = Board(LimitsSection())
    for msgid in (1, 2, 3):
        submit(board, owner, msgid)
    jobs = [board.take() for _ in range(3)]
    assert [job.msgid for job in jobs if job] == [1, 2, 3]
    assert (board.queued, board.running) == (0, 3)
    for job in jobs:
        assert job is not None
        board.answer(job.number, None, {"usage": {}})
        board.answer(job.number, None, {"late": True})
    assert sorted(owner.answers) == [1, 2, 3]
    assert owner.answers[1]["usage"]["queue_ms"] >= 0
    assert (board.served, board.failed, board.idle) == (3, 0, True)


@in_loop
async def test_a_full_queue_says_busy_and_starts_nothing(owner: FakeOwner) -> None:
    board = Board(LimitsSection(queue_max=2))
    submit(board, owner, 1)
    submit(board, owner, 2)
    with pytest.raises(Busy):
        submit(board, owner, 3)
    assert board.queued == 2


@in_loop
async def test_no_more_than_active_max_run_at_once(owner: FakeOwner) -> None:
    board = Board(LimitsSection(active_max=1))
    submit(board, owner, 1)
    submit(board, owner, 2)
    first = board.take()
    assert first is not None
    assert board.take() is None
    board.answer(first.number, None, {})
    assert board.take() is not None


@in_loop
async def test_a_deadline_ends_a_job_in_the_queue_and_in_the_worker(owner: FakeOwner) -> None:
    board = Board(LimitsSection())
    cancelled: list[int] = []
    board.cancel_running = cancelled.append
    submit(board, owner, 1, deadline_ms=20)
    running = board.take()
    submit(board, owner, 2, deadline_ms=20)
    await asyncio.sleep(0.1)
    assert isinstance(owner.answers[1], DeadlineExceeded) and isinstance(owner.answers[2], DeadlineExceeded)
    assert running is not None and cancelled == [running.number]
    assert (board.queued, board.running) == (0, 1), "the worker still has it in its hands"
    board.answer(running.number, None, {})
    assert board.idle


@in_loop
async def test_cancelling_answers_at_once_and_tells_the_worker(owner: FakeOwner) -> None:
    board = Board(LimitsSection())
    cancelled: list[int] = []
    board.cancel_running = cancelled.append
    submit(board, owner, 1)
    submit(board, owner, 2)
    running = board.take()
    assert board.cancel(owner, 1) and board.cancel(owner, 2)
    assert not board.cancel(owner, 1), "it is not there any more"
    assert isinstance(owner.answers[1], Cancelled) and isinstance(owner.answers[2], Cancelled)
    assert running is not None and cancelled == [running.number]


@in_loop
async def test_one_owner_cannot_cancel_another_s_job(owner: FakeOwner) -> None:
    board = Board(LimitsSection())
    submit(board, owner, 1)
    assert not board.cancel(FakeOwner(), 1)
    assert board.queued == 1


@in_loop
async def test_nothing_is_started_for_an_owner_that_does_not_read(owner: FakeOwner) -> None:
    board = Board(LimitsSection())
    slow = FakeOwner()
    slow.clogged = True
    submit(board, slow, 1)
    submit(board, owner, 1)
    job = board.take()
    assert job is not None and job.owner is owner
    assert board.take() is None
    slow.clogged = False
    assert board.take() is not None


@in_loop
async def test_a_request_that_killed_the_worker_twice_is_refused_by_its_content(owner: FakeOwner) -> None:
    board = Board(LimitsSection())
    for msgid in (1, 2):
        submit(board, owner, msgid, "poison")
        job = board.take()
        assert job is not None
        assert board.blame.suspect(job) is (msgid == 2), "a suspect shall run alone"
        board.lost([job.number], DIED)
        assert owner.answers[msgid] is DIED
    with pytest.raises(Poisonous):
        submit(board, owner, 3, "poison")
    submit(board, owner, 4, "honest")


@in_loop
async def test_a_death_is_not_the_fault_of_those_that_only_were_there(owner: FakeOwner) -> None:
    board = Board(LimitsSection())
    for msgid in range(2):
        submit(board, owner, 2 * msgid, "guilty")
        submit(board, owner, 2 * msgid + 1, "bystander")
        guilty, _ = board.take(), board.take()
        assert guilty is not None
        board.lost([guilty.number], DIED)
    submit(board, owner, 10, "bystander")


@in_loop
async def test_a_finished_request_is_acquitted_and_old_suspects_are_forgotten(owner: FakeOwner) -> None:
    board = Board(LimitsSection())

    def die(prompt: str, msgid: int) -> None:
        submit(board, owner, msgid, prompt)
        job = board.take()
        assert job is not None
        board.lost([job.number], DIED)

    die("unlucky", 1)
    submit(board, owner, 2, "unlucky")
    job = board.take()
    assert job is not None
    board.answer(job.number, None, {})
    die("unlucky", 3)
    submit(board, owner, 4, "unlucky")
    assert board.cancel(owner, 4)
    die("old", 1000)
    die("old", 1001)
    for number in range(BLAME_KEPT_MAX):
        die(f"other {number}", 2000 + number)
    submit(board, owner, 5, "old")
