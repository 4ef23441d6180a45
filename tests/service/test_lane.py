"""A lane works off its tasks in order, together where they may be, and ends when it is empty."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from aios.service.lane import Lane, Task


def task(number: int, verb: str = "a") -> Task:
    return Task(number=number, verb=verb, params=None)


class Held:
    """A lane whose first turn waits until it is let go."""

    def __init__(self) -> None:
        self.turns: list[list[int]] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self.lane = Lane("test", self.work, together=lambda tasks, task: task.verb == "a" and len(tasks) < 3)
        self.lane.put(task(0))
        assert self.begun.wait(5)

    def work(self, tasks: Sequence[Task]) -> None:
        self.turns.append([one.number for one in tasks])
        self.begun.set()
        assert self.go.wait(5)

    def finish(self) -> list[list[int]]:
        self.go.set()
        self.lane.close()
        return self.turns


def test_what_waits_is_done_together_as_far_as_it_may_be() -> None:
    held = Held()
    for number, verb in enumerate("aaaabaa", start=1):
        held.lane.put(task(number, verb))
    assert held.lane.numbers == (0,) and held.lane.busy
    assert held.finish() == [[0], [1, 2, 3], [4], [5, 6, 7]]
    assert not held.lane.busy


def test_a_task_that_was_not_begun_can_be_taken_out() -> None:
    held = Held()
    held.lane.put(task(1))
    held.lane.put(task(2))
    assert held.lane.drop(1) and not held.lane.drop(1)
    assert not held.lane.drop(0), "it is being worked on"
    assert held.finish() == [[0], [2]]


def test_a_lane_that_was_never_used_has_no_thread_to_wait_for() -> None:
    before = threading.active_count()
    Lane("idle", lambda tasks: None).close()
    assert threading.active_count() == before
