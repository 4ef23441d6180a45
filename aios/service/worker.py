"""The model worker: one thread, one loop, quanta of one forward: a denoiser call, a batch of texts to encode, a
token of every text that a language model writes.

Between any two quanta it reads what the parent sent, so that a cancellation never waits for more than one of them,
an encode request hardly longer, and neither kind of request starves the other. Started as
`python -m aios.service.worker --channel FD --pulse FD --parent PID`; it ends when the channel or the parent ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
import traceback
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from aios.config import Config, Places
from aios.errors import AiosError, Cancelled, Internal, ProtocolError
from aios.ipc import protocol, stream
from aios.messages import Encode, Generate, Request, State, from_wire, to_wire
from aios.service import child
from aios.service.pulse import Pulse
from aios.service.turns import Arrival, Diffusion, Encodes, Outcome, Texts, Turn

if TYPE_CHECKING:
    from aios.engine.arrow import ArrowEngine
    from aios.registry.registry import Failure, Registry

OOM_SCORE = 500           # when memory runs out the kernel takes the worker, not the daemon
OWED_SECONDS_MAX = 0.1    # what an encode may wait for generations: a tenth of a second feels immediate


@dataclass(slots=True)
class Worker:
    """The engine, what it works on, and the channel to the parent."""

    channel: socket.socket
    pulse: Pulse
    framer: stream.Framer = field(default_factory=stream.Framer)
    engine: ArrowEngine | None = None
    registry: Registry | None = None
    waiting: list[tuple[int, Encode, bool]] = field(default_factory=list)     # encode requests: number, request, alone
    batches: deque[Turn] = field(default_factory=deque)
    generations: deque[Turn] = field(default_factory=deque)
    streams: set[int] = field(default_factory=set)      # requests whose states are wanted
    models: tuple[Any, ...] = ()
    owed_s: float = 0.0                      # time of generations before the next batch of encodes

    def run(self) -> None:
        """Serve until the parent closes the channel."""
        while self._receive(block=not (self.waiting or self.batches or self.generations)):
            self._advance()

    def _advance(self) -> None:
        """One quantum; when both kinds wait, encodes and generations get equal time, encodes first."""
        began = time.monotonic()
        if (self.waiting or self.batches) and not (self.generations and self.owed_s > 0):
            self._begin_batch()
            self._take_turn(self.batches.popleft(), self.batches)
            self.owed_s = min(self.owed_s + time.monotonic() - began, OWED_SECONDS_MAX)
        elif self.generations:
            self._take_turn(self.generations.popleft(), self.generations)
            # A first quantum may open a model and take seconds; nothing is owed to the other side for it.
            self.owed_s = max(self.owed_s - (time.monotonic() - began), 0.0)

    def _receive(self, *, block: bool) -> bool:
        """Take in everything that has arrived; wait for something if there is nothing to do. False at the end."""
        if block:
            self.pulse.beat("idle")
            select.select([self.channel], [], [])
        while True:
            try:
                data = self.channel.recv(stream.CHUNK_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            if not data:
                return False
            for message in self.framer.feed(data):
                self._take(message)

    def _take(self, message: stream.Message) -> None:
        if isinstance(message, stream.Notification) and message.method == "cancel":
            self._cancel(int(message.params[0]))
        elif isinstance(message, stream.Request):
            try:
                self._request(message.msgid, message.verb, message.params[0])
            except AiosError as error:
                self._answer(message.msgid, error)
            except Exception as error:
                self._answer(message.msgid, self._defect(message.verb, error))

    def _request(self, number: int, verb: str, params: dict[str, Any]) -> None:
        if verb in ("setup", "reload"):
            self._load(params)
            assert self.registry is not None
            self._notify("plugins", {"active": self.registry.loaded})
            self._answer(number, None, {})
            return
        request: Request = from_wire(params["request"], protocol.verb(verb).params)
        assert self.engine is not None
        alone = bool(params.get("alone"))
        if params.get("stream"):
            self.streams.add(number)
        if isinstance(request, Encode):
            self.waiting.append((number, request, alone))
        elif isinstance(request, Generate):
            self.generations.append(Arrival(number=number, join=partial(self._join, number, request, alone)))
        else:
            self.generations.append(Diffusion(number=number, quanta=self.engine.ask(request)))

    def _load(self, params: dict[str, Any]) -> None:
        """Load the plugins the parent names; at the first time open the engine with them."""
        from aios.engine.arrow import ArrowEngine
        from aios.registry.catalog import Loadable
        from aios.registry.registry import Registry

        wanted = [Loadable.from_wire(one) for one in params["plugins"]]
        self.registry = Registry.load(wanted, previous=self.registry, failed=self._plugin_failed,
                                      announce=lambda name: self.pulse.beat(f"plugin:{name}"))
        self.pulse.beat("start")
        if self.engine is None:
            places = Places(**{name: Path(path) for name, path in params["places"].items()})
            self.engine = ArrowEngine.open(msgspec.convert(params["config"], Config), places=places,
                                           registry=self.registry)
        else:
            self.engine.adopt(self.registry)

    def _begin_batch(self) -> None:
        """Everything that waits becomes one batch, in turn with longer ones; a suspect gets a batch of its own."""
        if not self.waiting:
            return
        assert self.engine is not None
        together = [(number, request) for number, request, alone in self.waiting if not alone]
        for group in [together, *([(number, request)] for number, request, alone in self.waiting if alone)]:
            if group:
                self.batches.append(Encodes(open={index: number for index, (number, _) in enumerate(group)},
                                            quanta=self.engine.encode_many([request for _, request in group])))
        self.waiting.clear()

    def _join(self, number: int, request: Generate, alone: bool) -> None:
        """Let a text be written together with the others of its model; a suspect is written alone."""
        assert self.engine is not None
        routed = self.engine.route(request)
        decoding = self.engine.decoding(routed.model)
        texts = Texts(model=decoding.language.name, alone=alone, group=decoding)
        for other in self.generations:
            if isinstance(other, Texts) and other.model == texts.model and not (alone or other.alone):
                other.join(number, routed)
                return
        texts.join(number, routed)
        self.generations.append(texts)

    def _take_turn(self, turn: Turn, queue: deque[Turn]) -> None:
        """One quantum of a turn; then it is the next one's."""
        label = "request:" + ",".join(map(str, turn.numbers))
        self.pulse.beat(label)
        numbers = turn.numbers
        try:
            outcomes = turn.advance()
        except BaseException as error:
            outcomes = dict.fromkeys(numbers, self._defect(type(turn).__name__.lower(), error))
            for number in numbers:
                with contextlib.suppress(Exception):
                    turn.drop(number)
        for number, outcome in outcomes.items():
            self._tell(number, outcome)
        if not turn.started:
            turn.started = True
            self._tell_models()
        elif turn.numbers and not isinstance(turn, Encodes):
            self.pulse.beat(label, steps=1)
        if turn.numbers:
            queue.append(turn)

    def _tell(self, number: int, outcome: Outcome) -> None:
        """A state to whoever wants states, an answer to everyone."""
        if isinstance(outcome, State):
            if number in self.streams:
                self._send(stream.Notification(method="state", params=[number, to_wire(outcome)]))
        elif isinstance(outcome, AiosError):
            self._answer(number, outcome)
        else:
            self._answer(number, None, to_wire(outcome))

    def _cancel(self, number: int) -> None:
        """Let go of a request; nothing is answered when it was answered before."""
        for entry in self.waiting:
            if entry[0] == number:
                self.waiting.remove(entry)
                self._answer(number, Cancelled("the request was cancelled"))
                return
        for queue in (self.generations, self.batches):
            for turn in queue:
                if turn.drop(number):
                    if not turn.numbers:
                        queue.remove(turn)
                    self._answer(number, Cancelled("the request was cancelled"))
                    return

    def _plugin_failed(self, failure: Failure) -> None:
        self._notify("plugin.failed", {"name": failure.plugin, "hash": failure.hash, "reason": failure.reason,
                                       "changed": failure.changed})

    def _tell_models(self) -> None:
        assert self.engine is not None
        models = self.engine.loaded()
        if models != self.models:
            self.models = models
            self._notify("models", {"models": [to_wire(model) for model in models]})

    def _defect(self, what: str, error: BaseException) -> AiosError:
        """A fault nobody foresaw: the details go to the log, the client hears that it was ours."""
        self._notify("log", {"event": "worker.defect", "level": "error", "what": what,
                             "trace": "".join(traceback.format_exception(error))[-1900:]})
        return Internal(f"{what} failed inside the worker: {type(error).__name__}",
                        remedy="`aios logs` has the details; please report them")

    def _answer(self, number: int, error: AiosError | None, result: Any = None) -> None:
        self.streams.discard(number)
        try:
            self._send(stream.Response(msgid=number, error=error.to_wire() if error else None, result=result))
        except AiosError as fault:
            self._send(stream.Response(msgid=number, error=fault.to_wire(), result=None))

    def _notify(self, method: str, params: dict[str, Any]) -> None:
        self._send(stream.Notification(method=method, params=[params]))

    def _send(self, message: stream.Message) -> None:
        self.channel.sendall(stream.encode(message))


def main(arguments: list[str] | None = None) -> int:
    """Become a worker: die with the parent, before the parent, and by its word only."""
    if (given := child.begin("aios.service.worker", arguments, oom_score=OOM_SCORE)) is None:
        return 0
    try:
        Worker(given.channel, given.pulse).run()
    except (BrokenPipeError, ConnectionResetError):
        return 0
    except ProtocolError as error:
        print(f"the parent sent what cannot be read: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)      # nothing to save: torch's orderly end takes longer than all the rest
