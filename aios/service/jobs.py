"""Requests for the model worker: queued in order, bounded, each with a deadline and an owner it is answered to."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from aios.config import LimitsSection
from aios.errors import AiosError, Busy, Cancelled, DeadlineExceeded, Poisonous
from aios.messages import Request

QUEUE_BYTES_MAX = 64 << 20      # of text waiting; eight frames of the largest kind
BLAME_KEPT_MAX = 256            # suspects remembered; a request is forgotten when as many others killed since
DEATHS_TOLERATED = 1            # a request that ran at more deaths than this is refused


class Owner(Protocol):
    """Who asked: a connection, as a job sees it."""

    @property
    def clogged(self) -> bool:
        """True while it does not read what it was sent; nothing new is started for it then."""

    def respond(self, msgid: int, error: AiosError | None, result: Any = None) -> None:
        """Answer the request."""

    def show(self, msgid: int, state: Any) -> None:
        """Show an intermediate state; may be skipped when a later one comes first."""


class Job:
    """One request on its way; `number` names it between parent and worker."""

    __slots__ = ("answered", "arrived", "digest", "msgid", "number", "owner", "request", "sent", "size", "stream",
                 "timer", "verb")

    def __init__(self, number: int, owner: Owner, msgid: int, verb: str, request: Request, stream: bool) -> None:
        self.number = number
        self.owner = owner
        self.msgid = msgid
        self.verb = verb
        self.request = request
        self.stream = stream
        encoded = msgspec.json.encode(request)
        self.size = len(encoded)
        self.digest = hashlib.blake2b(verb.encode() + b"\0" + encoded, digest_size=16).digest()
        self.arrived = time.monotonic()
        self.sent: float | None = None          # handed to the worker at
        self.answered = False
        self.timer: asyncio.TimerHandle | None = None


class Blame:
    """Which requests were running when the worker died, by content; the same content again is the same suspect."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[bytes, int] = OrderedDict()

    def add(self, job: Job) -> int:
        """One more death under this content; how many there were."""
        count = self._deaths.pop(job.digest, 0) + 1
        self._deaths[job.digest] = count
        while len(self._deaths) > BLAME_KEPT_MAX:
            self._deaths.popitem(last=False)
        return count

    def suspect(self, job: Job) -> bool:
        """True when the worker died under this content before: it shall run alone."""
        return job.digest in self._deaths

    def acquit(self, job: Job) -> None:
        """It was finished: whatever happened was not its fault."""
        self._deaths.pop(job.digest, None)

    def check(self, job: Job) -> None:
        """Raises Poisonous when the worker died too often under this content."""
        if (deaths := self._deaths.get(job.digest, 0)) > DEATHS_TOLERATED:
            raise Poisonous(f"the model worker died {deaths} times while it ran this very request",
                            remedy="change the request; `aios logs` shows how the worker ended", deaths=deaths)


class Board:
    """All jobs that are not answered yet; the worker link takes from it and reports to it."""

    def __init__(self, limits: LimitsSection) -> None:
        self.limits = limits
        self.blame = Blame()
        self.served = 0
        self.failed = 0
        self.wake: Callable[[], None] = _nothing         # there may be something to start
        self.cancel_running: Callable[[int], None] = _nothing_to_cancel
        self._queue: deque[Job] = deque()
        self._queue_bytes = 0
        self._running: dict[int, Job] = {}               # in the worker's hands, also when answered already
        self._jobs: dict[tuple[Owner, int], Job] = {}
        self._next = 1

    @property
    def queued(self) -> int:
        """Jobs that wait for the worker."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Jobs in the worker's hands."""
        return len(self._running)

    @property
    def idle(self) -> bool:
        """True when nothing waits and nothing runs."""
        return not self._queue and not self._running

    def submit(self, owner: Owner, msgid: int, verb: str, request: Request, *, stream: bool,
               deadline_ms: int | None) -> None:
        """Take a checked request in; raises Busy or Poisonous, and then nothing was started."""
        if len(self._queue) >= self.limits.queue_max:
            raise Busy(f"{len(self._queue)} requests wait already", remedy="try again in a moment")
        job = Job(self._next, owner, msgid, verb, request, stream)
        self.blame.check(job)
        if self._queue and self._queue_bytes + job.size > QUEUE_BYTES_MAX:
            raise Busy(f"{self._queue_bytes} bytes of requests wait already", remedy="try again in a moment")
        self._next += 1
        seconds = self.limits.deadline_seconds if deadline_ms is None else deadline_ms / 1e3
        job.timer = asyncio.get_running_loop().call_later(seconds, self._expire, job, seconds)
        self._queue.append(job)
        self._queue_bytes += job.size
        self._jobs[owner, msgid] = job
        self.wake()

    def take(self) -> Job | None:
        """The next job to run, or None: the worker has enough, or nothing waits whose owner reads its answers."""
        if len(self._running) >= self.limits.active_max:
            return None
        for index, job in enumerate(self._queue):
            if not job.owner.clogged:
                del self._queue[index]
                self._queue_bytes -= job.size
                self._running[job.number] = job
                job.sent = time.monotonic()
                return job
        return None

    def show(self, number: int, state: Any) -> None:
        """The worker shows a state."""
        if (job := self._running.get(number)) and not job.answered:
            job.owner.show(job.msgid, state)

    def answer(self, number: int, error: AiosError | None, result: Any) -> None:
        """The worker is done with a job."""
        job = self._running.pop(number, None)
        if job is None:
            return
        if error is None:
            self.blame.acquit(job)
            if isinstance(result, dict) and isinstance(usage := result.get("usage"), dict) and job.sent is not None:
                usage["queue_ms"] = round((job.sent - job.arrived) * 1e3, 3)
        self._finish(job, error, result)
        self.wake()

    def cancel(self, owner: Owner, msgid: int) -> bool:
        """Cancel one job of an owner; False when there is none."""
        job = self._jobs.get((owner, msgid))
        if job is None:
            return False
        self._abandon(job, Cancelled("the request was cancelled", remedy="send it again if it is still wanted"))
        return True

    def drop(self, owner: Owner, msgids: Iterable[int]) -> None:
        """The owner is gone: none of its jobs is wanted any more."""
        for msgid in list(msgids):
            self.cancel(owner, msgid)

    def abandon_all(self, error: AiosError, *, queued_only: bool = False) -> None:
        """Answer everything that waits (and runs) with this error."""
        for job in [*self._queue, *([] if queued_only else self._running.values())]:
            self._abandon(job, error)

    def lost(self, blamed: Iterable[int], error: AiosError) -> list[Job]:
        """The worker died: all its jobs fail with `error`, the blamed ones are remembered; returns these."""
        guilty = [self._running[number] for number in blamed if number in self._running]
        for job in guilty:
            self.blame.add(job)
        running, self._running = self._running, {}
        for job in running.values():
            self._finish(job, error, None)
        return guilty

    def _expire(self, job: Job, seconds: float) -> None:
        self._abandon(job, DeadlineExceeded(f"not finished within {seconds:g} s",
                                            remedy="give it more time (deadline_ms) or less to do"))

    def _abandon(self, job: Job, error: AiosError) -> None:
        """Answer now; a running job stays on the board until the worker has let go of it."""
        if job.number in self._running:
            self.cancel_running(job.number)
        elif job in self._queue:
            self._queue.remove(job)
            self._queue_bytes -= job.size
        self._finish(job, error, None)

    def _finish(self, job: Job, error: AiosError | None, result: Any) -> None:
        if job.answered:
            return
        job.answered = True
        if job.timer is not None:
            job.timer.cancel()
        self._jobs.pop((job.owner, job.msgid), None)
        if error is None:
            self.served += 1
        else:
            self.failed += 1
        job.owner.respond(job.msgid, error, result)


def _nothing() -> None:
    """Before a worker link is attached."""


def _nothing_to_cancel(number: int) -> None:
    """Before a worker link is attached."""
