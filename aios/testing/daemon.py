"""A daemon in memory: the real engine, registry, verbs and wire format, without processes and sockets."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from aios.config import Config, Places
from aios.engine.arrow import ArrowEngine
from aios.errors import AiosError, BadInput, PluginError
from aios.ipc import protocol
from aios.ipc.calls import Calls
from aios.ipc.conversation import Conversation, Exchange
from aios.ipc.stream import Framer, Notification, Request, Response, encode
from aios.messages import State, from_wire, to_wire
from aios.registry.registry import Registry
from aios.testing.plugin import LoadedPlugin

T = TypeVar("T")


class MemoryDaemon(Calls):
    """Has every call of `aios.connect()`; each goes through the wire format and its limits, there and back.

    Answers in the caller's thread, one request at a time. Of the daemon's own verbs there are ping and
    plugins.list, which tells what was quarantined and why.
    """

    def __init__(self, engine: ArrowEngine, registry: Registry) -> None:
        """Use `memory_daemon()`."""
        self._engine = engine
        self._registry = registry
        self._conversation = Conversation()
        self._framer = Framer()
        self._own: dict[str, Callable[[], Any]] = {"ping": lambda: "pong", "plugins.list": self._plugins}

    def perform(self, exchange: Exchange[T], /) -> T:
        """Ask, and return the answer; `on_state` of the exchange is called on the way."""
        items = self._items(exchange, exchange.on_state is not None)
        with closing(items):
            for item in items:
                if not isinstance(item, State):
                    return item
                assert exchange.on_state is not None
                exchange.on_state(item)
        raise AssertionError("an exchange ends with its answer")

    def follow(self, exchange: Exchange[T], /) -> Generator[State | T, None, None]:
        """Ask at the first item; yield a State after each step and the answer last. Closing it cancels."""
        return self._items(exchange, True)

    def _items(self, exchange: Exchange[T], stream: bool) -> Generator[State | T, None, None]:
        inbox, frame = self._conversation.ask(exchange, stream=stream)
        with closing(self._serve(frame)) as answers:
            try:
                while inbox.answer is None or inbox.states:
                    while inbox.states:
                        yield inbox.states.popleft()
                    if inbox.answer is None:
                        self._conversation.receive(next(answers))
                yield inbox.result()
            finally:
                self._conversation.leave(inbox)

    def _serve(self, frame: bytes) -> Generator[bytes, None, None]:
        """The daemon's side: one request's frame in, frames of states and of the response out."""
        for message in self._framer.feed(frame):
            assert isinstance(message, Request)
            error = result = None
            try:
                result = yield from self._answer(message)
            except AiosError as fault:
                error = fault.to_wire()
            yield encode(Response(msgid=message.msgid, error=error, result=result))

    def _answer(self, message: Request) -> Generator[bytes, None, Any]:
        verb = protocol.verb(message.verb)
        fields: Any = message.params[0] if message.params else {}
        given: Any = from_wire(fields, verb.params)
        if verb.place != "worker":
            if verb.name not in self._own:
                raise BadInput(f"the daemon in memory does not know {verb.name}", remedy="test it with a real daemon")
            return self._own[verb.name]()
        call = from_wire(fields, protocol.Call)
        quanta = self._engine.ask(given)
        with closing(quanta):
            while True:
                try:
                    state = next(quanta)
                except StopIteration as done:
                    return to_wire(done.value)
                if call.stream and verb.streams:
                    yield encode(Notification(method="state", params=[message.msgid, to_wire(state)]))

    def _plugins(self) -> list[dict[str, str]]:
        return [
            *({"name": name, "state": "active", "reason": ""} for name in self._registry.loaded),
            *({"name": failure.plugin, "state": "quarantined", "reason": failure.reason}
              for failure in self._registry.failures),
        ]


@contextmanager
def memory_daemon(plugins: Sequence[LoadedPlugin | object] = (), config: Config | None = None,
                  places: Places | None = None) -> Iterator[MemoryDaemon]:
    """A daemon in memory with just these plugins: loaded folders (`load`) or objects with hooks (`FakePlugin`).

    Its home is a scratch folder, with the models that ship with AIOS and no others, unless `places` names one.
    Raises PluginError for a plugin that a real daemon would quarantine at once.
    """
    registry = Registry.load([plugin.loadable for plugin in plugins if isinstance(plugin, LoadedPlugin)])
    for failure in registry.failures:
        raise PluginError(failure.reason, plugin=failure.plugin)
    for number, plugin in enumerate(plugins):
        if not isinstance(plugin, LoadedPlugin):
            registry.add(f"object-{number}", plugin)
    with tempfile.TemporaryDirectory(prefix="aios-") as scratch:
        home = places or _scratch_places(Path(scratch))
        yield MemoryDaemon(ArrowEngine.open(config or Config(), places=home, registry=registry), registry)


def _scratch_places(root: Path) -> Places:
    places = Places(config=root / "config", data=root / "data", state=root / "state", cache=root / "cache",
                    runtime=root / "run")
    places.create()
    return places
