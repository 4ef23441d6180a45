"""The parent's side of the memory process: started by the first request, kept until the daemon ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aios.errors import AiosError, Busy, MemoryDied
from aios.ipc import stream
from aios.log import EventLog
from aios.service.child_link import ChildLink

REQUESTS_MAX = 256              # on their way at a time
REQUEST_BYTES_MAX = 64 << 20    # of these; eight frames of the largest kind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """A request on its way; its frame is kept until it was sent."""

    frame: bytes
    answer: asyncio.Future[Any]


class MemoryLink(ChildLink):
    """One memory process at a time; every request ends with its answer or an error."""

    name, title, module, died_as = "memory", "the memory process", "aios.service.memory_process", MemoryDied
    stop_seconds = 30.0         # writing the index of a million memories to a slow disk

    def __init__(self, log: EventLog, *, setup: Callable[[], dict[str, Any]],
                 heard: Callable[[str, Mapping[str, Any]], None], stall_seconds: float) -> None:
        super().__init__(log, setup=setup, heard=heard, stall_seconds=stall_seconds)
        self._asked: dict[int, Asked] = {}
        self._unsent: dict[int, Asked] = {}
        self._next = 1
        self._bytes = 0

    @property
    def working(self) -> bool:
        """True while it owes answers."""
        return len(self._asked) > len(self._unsent)

    async def ask(self, verb: str, params: dict[str, Any]) -> Any:
        """Ask, and wait for the answer; raises what it answered, Busy, CrashLoop or MemoryDied.

        Who stops waiting withdraws the request: it is done or not, but never half.
        """
        self.check()
        if len(self._asked) >= REQUESTS_MAX or (self._asked and self._bytes > REQUEST_BYTES_MAX):
            raise Busy(f"{len(self._asked)} requests wait for the memory process", remedy="try again in a moment")
        number, self._next = self._next, self._next + 1
        asked = Asked(frame=stream.encode(stream.Request(msgid=number, verb=verb, params=[params])),
                      answer=asyncio.get_running_loop().create_future())
        self._asked[number] = self._unsent[number] = asked
        self._bytes += len(asked.frame)
        self.pump()
        try:
            return await asked.answer
        finally:
            self._bytes -= len(asked.frame)
            if self._asked.pop(number, None) is not None and self._unsent.pop(number, None) is None:
                self._send(stream.Notification(method="cancel", params=[number]))

    def pump(self) -> None:
        """Send what waits; start the process first."""
        if self._phase == "off" and self._unsent and not self.crash_loop:
            self._start()
        if self._phase == "up" and self._transport is not None:      # without: what waits is for its successor
            for number in list(self._unsent):
                self._transport.write(self._unsent.pop(number).frame)
            if self.working:
                self._watch()

    def _answered(self, number: int, error: AiosError | None, result: Any) -> None:
        if (asked := self._asked.pop(number, None)) is None or asked.answer.done():
            return
        if error is None:
            self._deaths = 0
            asked.answer.set_result(result)
        else:
            asked.answer.set_exception(error)

    def _lost(self, how: str, label: str) -> None:
        self._fail(MemoryDied(f"the memory process ended under this request: {how}",
                              remedy="look whether it was done (aios recall), then ask again; it starts anew"),
                   [number for number in self._asked if number not in self._unsent])

    def _given_up(self, error: AiosError) -> None:
        self._fail(error, list(self._asked))

    def _fail(self, error: AiosError, numbers: list[int]) -> None:
        for number in numbers:
            self._unsent.pop(number, None)
            asked = self._asked.pop(number)
            if not asked.answer.done():
                asked.answer.set_exception(error)
