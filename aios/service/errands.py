"""Requests that take several steps in other processes: each a coroutine with a deadline, which its owner may cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from aios.errors import AiosError, Cancelled, DeadlineExceeded
from aios.messages import to_wire
from aios.service.jobs import Board, Owner


class HandedOn:
    """What an errand returns whose request somebody else answers from now on."""


class Errands:
    """All errands that are not answered yet."""

    def __init__(self, defect: Callable[[str, Exception], AiosError]) -> None:
        """defect: turns a fault nobody foresaw into what the client hears."""
        self._defect = defect
        self._tasks: dict[tuple[Owner, int], asyncio.Task[None]] = {}
        self._ended_by: dict[asyncio.Task[None], AiosError] = {}

    @property
    def idle(self) -> bool:
        """True when none is on its way."""
        return not self._tasks

    def begin(self, owner: Owner, msgid: int, name: str, work: Coroutine[Any, Any, Any], seconds: float) -> None:
        """Run `work` and answer with what it returns."""
        task = asyncio.get_running_loop().create_task(self._run(owner, msgid, name, work, seconds))
        self._tasks[owner, msgid] = task
        task.add_done_callback(lambda task: self._over(owner, msgid, task))
        task.add_done_callback(lambda task: work.close())       # where it was cancelled before it began

    def cancel(self, owner: Owner, msgid: int, error: AiosError | None = None) -> bool:
        """End one errand, answering with `error`; False when there is none."""
        if (task := self._tasks.get((owner, msgid))) is None:
            return False
        self._ended_by.setdefault(task, error or Cancelled("the request was cancelled",
                                                           remedy="send it again if it is still wanted"))
        task.cancel()
        return True

    def drop(self, owner: Owner) -> None:
        """The owner is gone: none of its errands is wanted any more."""
        for one, msgid in [key for key in self._tasks if key[0] is owner]:
            self.cancel(one, msgid)

    def abandon_all(self, error: AiosError) -> None:
        """Answer everything with this error."""
        for owner, msgid in list(self._tasks):
            self.cancel(owner, msgid, error)

    async def _run(self, owner: Owner, msgid: int, name: str, work: Coroutine[Any, Any, Any], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                result = await work
        except TimeoutError:
            owner.respond(msgid, DeadlineExceeded(f"not finished within {seconds:g} s",
                                                  remedy="give it more time (deadline_ms) or less to do"))
        except AiosError as error:
            owner.respond(msgid, error)
        except Exception as error:     # the boundary: the request fails, the daemon lives on
            owner.respond(msgid, self._defect(name, error))
        else:
            if not isinstance(result, HandedOn):
                owner.respond(msgid, None, to_wire(result))

    def _over(self, owner: Owner, msgid: int, task: asyncio.Task[None]) -> None:
        """After its end: a cancelled one is answered here, also where it had not begun."""
        self._tasks.pop((owner, msgid), None)
        error = self._ended_by.pop(task, None)
        if task.cancelled():
            owner.respond(msgid, error or Cancelled("the request was cancelled", remedy="send it again"))


class _Waiting:
    """The owner of a job whose answer a coroutine waits for."""

    clogged = False

    def __init__(self) -> None:
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def respond(self, msgid: int, error: AiosError | None, result: Any = None) -> None:
        """Wake the coroutine."""
        if not self.answer.done():
            self.answer.set_result(result) if error is None else self.answer.set_exception(error)

    def show(self, msgid: int, state: Any) -> None:
        """Nobody looks."""


async def answered(board: Board, verb: str, request: Any) -> Any:
    """The worker's answer to a request of our own, as plain data; withdrawn when nobody waits any more."""
    owner = _Waiting()
    board.submit(owner, 0, verb, request, stream=False, deadline_ms=None)
    try:
        return await owner.answer
    finally:
        board.cancel(owner, 0)
