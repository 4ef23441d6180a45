"""The parent's side of the model worker: started when needed, watched, blamed when it dies, ended when idle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aios.errors import AiosError, WorkerDied
from aios.ipc import stream
from aios.log import EventLog
from aios.messages import to_wire
from aios.service.child_link import ChildLink
from aios.service.jobs import Board, Job


class WorkerLink(ChildLink):
    """One worker process at a time, which works off the board."""

    name, title, module, died_as = "worker", "the model worker", "aios.service.worker", WorkerDied

    def __init__(self, board: Board, log: EventLog, *, setup: Callable[[], dict[str, Any]],
                 heard: Callable[[str, Mapping[str, Any]], None], keep_alive_seconds: float,
                 stall_seconds: float) -> None:
        super().__init__(log, setup=setup, heard=heard, stall_seconds=stall_seconds)
        self.keep_alive_seconds = keep_alive_seconds
        self.models: list[dict[str, Any]] = []
        self._board = board
        self._retiring = False
        board.wake = self.pump
        board.cancel_running = self._cancel

    @property
    def working(self) -> bool:
        """True while it runs jobs."""
        return self._board.running > 0

    def pump(self) -> None:
        """Give the worker what it may run; start it first if there is something, let it go if there is nothing."""
        self._stop_timer("keep-alive")
        if self._phase == "off" and self._board.queued and not self.crash_loop:
            self._retiring = False
            self._start()
        if self._phase != "up":
            return
        while not self._retiring and (job := self._board.take()) is not None:
            self._send_job(job)
        if self._board.running:
            self._watch()
        elif self._retiring:
            self.stop()
        elif not self._board.queued:
            self._timers["keep-alive"] = self._later(self.keep_alive_seconds, self.stop)

    def retire(self) -> None:
        """End this worker after its running jobs; the next request gets a new one with new settings."""
        if self._phase in ("starting", "up"):
            self._retiring = True
            self.pump()

    async def reload(self) -> None:
        """Let a running worker replace its plugins; returns when it has. Raises what it answered."""
        if self._phase == "up":
            await self._call("reload", self._setup())

    def _send_job(self, job: Job) -> None:
        params = {"request": to_wire(job.request), "stream": job.stream, "alone": self._board.blame.suspect(job)}
        self._send(stream.Request(msgid=job.number, verb=job.verb, params=[params]))

    def _cancel(self, number: int) -> None:
        self._send(stream.Notification(method="cancel", params=[number]))

    def _answered(self, number: int, error: AiosError | None, result: Any) -> None:
        if error is None:
            self._deaths = 0
        self._board.answer(number, error, result)

    def _notified(self, message: stream.Notification) -> None:
        if message.method == "state":
            if len(message.params) == 2:
                self._board.show(*message.params)
            return
        if message.method == "models" and message.params and isinstance(message.params[0], dict):
            self.models = list(message.params[0].get("models", []))
        super()._notified(message)

    def _gone(self) -> None:
        self.models = []

    def _lost(self, how: str, label: str) -> None:
        kind, _, subject = label.partition(":")
        if kind == "plugin":
            self._heard("plugin.failed", {"name": subject, "reason": f"plugin ended the worker: {how}"})
        numbers = [int(number) for number in subject.split(",") if number.isdigit()] if kind == "request" else []
        self._board.lost(numbers, WorkerDied(f"the model worker ended under this request: {how}",
                                             remedy="send it again; the worker starts anew"))

    def _given_up(self, error: AiosError) -> None:
        self._board.abandon_all(error)
