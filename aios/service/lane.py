"""A thread that works off requests one after another, or several at once, so that others need not wait for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A request: its number, and what is asked."""

    number: int
    verb: str
    params: Any


class Lane:
    """`work` gets the first task that waits, and those behind it that may be done together with it."""

    def __init__(self, name: str, work: Callable[[Sequence[Task]], None], *,
                 together: Callable[[Sequence[Task], Task], bool] = lambda tasks, task: False) -> None:
        self._work, self._together = work, together
        self._waiting: deque[Task] = deque()
        self._news = threading.Condition()
        self._closing = False
        self._running: tuple[int, ...] = ()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The tasks that are being worked on."""
        return self._running

    @property
    def busy(self) -> bool:
        """True while anything is being worked on or waits."""
        return bool(self._running or self._waiting)

    def put(self, task: Task) -> None:
        """Queue a task; the thread starts with the first one."""
        with self._news:
            if not self._thread.ident:
                self._thread.start()
            self._waiting.append(task)
            self._news.notify()

    def drop(self, number: int) -> bool:
        """Take a task out that was not begun; False when there is none of this number."""
        with self._news:
            found = next((task for task in self._waiting if task.number == number), None)
            if found is not None:
                self._waiting.remove(found)
            return found is not None

    def close(self) -> None:
        """Finish what waits; returns when the thread has ended."""
        with self._news:
            self._closing = True
            self._news.notify()
        if self._thread.ident:
            self._thread.join()

    def _run(self) -> None:
        while tasks := self._next():
            self._work(tasks)
            self._running = ()

    def _next(self) -> list[Task]:
        """Wait for work; nothing once the lane is closed and empty."""
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._closing)
            tasks: list[Task] = []
            while self._waiting and (not tasks or self._together(tasks, self._waiting[0])):
                tasks.append(self._waiting.popleft())
            self._running = tuple(task.number for task in tasks)
            return tasks
