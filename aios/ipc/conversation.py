"""One client's side of a connection without any I/O: which bytes to send, and whom received bytes concern."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from aios.errors import AiosError, ProtocolError, from_wire
from aios.ipc.stream import MSGID_MAX, Framer, Notification, Request, Response, encode
from aios.messages import State
from aios.messages import from_wire as checked

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange(Generic[T]):
    """One call: what to ask, and what the answer becomes."""

    verb: str
    params: Mapping[str, Any]                        # those that are None are not sent
    result: Callable[[Any], T]
    on_state: Callable[[State], object] | None = None


@dataclass(slots=True, eq=False)
class Inbox(Generic[T]):
    """What has arrived for one call; `wake` is called whenever something does."""

    msgid: int
    exchange: Exchange[T]
    wake: Callable[[], object]
    states: deque[State] = field(default_factory=deque)
    answer: Response | AiosError | None = None

    def result(self) -> T:
        """The answer as the call wants it; raises the daemon's error."""
        if isinstance(self.answer, Response):
            if self.answer.error is not None:
                raise from_wire(self.answer.error)
            return self.exchange.result(self.answer.result)
        assert self.answer is not None
        raise self.answer


class Conversation:
    """All calls of one connection, by msgid; `failure` is why no more answers will come."""

    def __init__(self) -> None:
        self._framer = Framer()
        self._inboxes: dict[int, Inbox[Any]] = {}
        self._next = 0
        self.failure: AiosError | None = None

    def ask(self, exchange: Exchange[T], *, stream: bool,
            wake: Callable[[], object] = lambda: None) -> tuple[Inbox[T], bytes]:
        """Begin a call: where its answer will be, and the bytes to send."""
        if self.failure is not None:
            raise self.failure
        params = {name: value for name, value in exchange.params.items() if value is not None}
        if stream:
            params["stream"] = True
        frame = self._request(exchange.verb, params)
        inbox = Inbox(msgid=self._next, exchange=exchange, wake=wake)
        self._inboxes[inbox.msgid] = inbox
        return inbox, frame

    def leave(self, inbox: Inbox[Any]) -> bytes:
        """End a call: nothing when it was answered, else the bytes that tell the daemon to stop working on it."""
        unanswered = self._inboxes.pop(inbox.msgid, None) is not None
        return self._request("cancel", {"msgid": inbox.msgid}) if unanswered and self.failure is None else b""

    def receive(self, chunk: bytes) -> None:
        """Hand what arrived to the calls it belongs to; raises ProtocolError where it is no answer."""
        for message in self._framer.feed(chunk):
            match message:
                case Response(msgid=msgid):
                    # Answers to calls that were left are nobody's.
                    if inbox := self._inboxes.pop(msgid, None):
                        inbox.answer = message
                        inbox.wake()
                case Notification(method="state", params=[int(msgid), state]):
                    if inbox := self._inboxes.get(msgid):
                        inbox.states.append(checked(state, State))
                        inbox.wake()
                case Notification(method="error", params=[error]):
                    self.fail(from_wire(error))
                case Notification():
                    pass        # a newer daemon may say more than we know
                case Request():
                    raise ProtocolError("the daemon sent a request", remedy="connect to the socket of aios itself")

    def fail(self, failure: AiosError) -> None:
        """No more answers will come: every open and later call raises the first failure."""
        self.failure = self.failure or failure
        for inbox in self._inboxes.values():
            inbox.answer = self.failure
            inbox.wake()
        self._inboxes.clear()

    def _request(self, verb: str, params: dict[str, Any]) -> bytes:
        self._next = self._next % MSGID_MAX + 1
        return encode(Request(msgid=self._next, verb=verb, params=[params] if params else []))
