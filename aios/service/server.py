"""The socket's side of the daemon: who may connect, which verb goes where, what is refused."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from aios import messages
from aios.errors import AiosError, AuthError, BadInput, Internal
from aios.ipc import protocol
from aios.log import EventLog
from aios.messages import Diffuse, Forget, Generate, ListMemories, Recall, Remember, from_wire, to_wire
from aios.service.connection import Connection
from aios.service.errands import Errands, HandedOn
from aios.service.jobs import Board

SURPLUS_MAX = 32      # clients beyond clients_max that still hear why they are refused
Handler = Callable[[Any, Connection, Any], Any]


class Host(Protocol):
    """What the handlers of the server's verbs work on: the daemon."""

    def accepts(self) -> None:
        """Raises when no request for the worker is taken now."""

    def serves(self) -> None:
        """Raises when no request at all is taken now."""

    async def lend(self, request: Diffuse | Generate) -> Diffuse | Generate:
        """The request with the memories it wishes for."""


class Server:
    """Connections, scopes and dispatch. Verbs of the daemon run here at once; the worker's go to the board."""

    def __init__(self, host: Host, board: Board, handlers: Mapping[str, Handler], log: EventLog) -> None:
        self.host = host
        self.board = board
        self.log = log
        self.uid = os.getuid()
        self.connections: set[Connection] = set()
        self.errands = Errands(self._defect)
        self._handlers = handlers
        self._tasks: set[asyncio.Task[None]] = set()

    def connection(self) -> Connection:
        """For asyncio: the protocol of the next client."""
        return Connection(self)

    def admit(self, connection: Connection) -> bool:
        """Take a connection in; one too many only hears why not, far too many hear nothing."""
        maximum = self.board.limits.clients_max
        if len(self.connections) >= maximum + SURPLUS_MAX:
            return False
        connection.surplus = len(self.connections) >= maximum
        self.connections.add(connection)
        return True

    def forget(self, connection: Connection) -> None:
        """A connection is gone: cancel what it wanted."""
        self.connections.discard(connection)
        self.errands.drop(connection)
        self.board.drop(connection, connection.in_flight)

    def cancel(self, connection: Connection, msgid: int) -> bool:
        """Cancel a request of this connection, wherever it is; False when there is none."""
        return self.errands.cancel(connection, msgid) or self.board.cancel(connection, msgid)

    def notified(self, connection: Connection, method: str, params: list[Any]) -> None:
        """`cancel` is understood as a notification too; others are for later versions and ignored."""
        if method == "cancel":
            try:
                wanted = from_wire(arguments(params), protocol.Cancel)
                connection.identity.require("ask")
            except AiosError:
                return
            self.cancel(connection, wanted.msgid)

    def dispatch(self, connection: Connection, msgid: int, name: str, params: list[Any]) -> None:
        """Run one request, or put it on the board; every way out answers it exactly once."""
        try:
            verb = protocol.verb(name)
            if verb.scope != "none" and not connection.greeted:
                raise AuthError(f"say hello before {verb.name}", remedy="first request: hello with a token")
            connection.identity.require(verb.scope)
            fields = arguments(params)
            given: Any = from_wire(fields, verb.params)
            if verb.place != "daemon":
                begin = self._enqueue if verb.place == "worker" else self._begin
                begin(connection, msgid, verb, given, from_wire(fields, protocol.Call))
                return
            result = self._handlers[verb.name](self.host, connection, given)
        except AiosError as error:
            connection.respond(msgid, error)
        except Exception as error:
            connection.respond(msgid, self._defect(name, error))
        else:
            if isinstance(result, Awaitable):
                self._spawn(self._finish(connection, msgid, name, result))
            else:
                connection.respond(msgid, None, to_wire(result))

    def _enqueue(self, connection: Connection, msgid: int, verb: protocol.Verb, request: Any,
                 call: protocol.Call) -> None:
        messages.check(request)
        seconds = self._seconds(call)
        self.host.accepts()
        if isinstance(request, Diffuse | Generate) and request.memory != "off":
            connection.identity.require("memory")      # an answer shows what was recalled
            self.errands.begin(connection, msgid, verb.name,
                               self._with_memories(connection, msgid, verb, request, call), seconds)
            return
        self.board.submit(connection, msgid, verb.name, request, stream=call.stream and verb.streams,
                          deadline_ms=call.deadline_ms)

    async def _with_memories(self, connection: Connection, msgid: int, verb: protocol.Verb,
                             request: Diffuse | Generate, call: protocol.Call) -> HandedOn:
        """Recall first; then the request is one for the worker, with what is left of its time."""
        began = time.monotonic()
        lent = await self.host.lend(request)
        left_ms = max(1, round((self._seconds(call) - (time.monotonic() - began)) * 1e3))
        self.board.submit(connection, msgid, verb.name, lent, stream=call.stream and verb.streams, deadline_ms=left_ms)
        return HandedOn()

    def _begin(self, connection: Connection, msgid: int, verb: protocol.Verb, request: Any,
               call: protocol.Call) -> None:
        if isinstance(request, Remember | Recall | Forget | ListMemories):
            messages.check_memory(request)
        seconds = self._seconds(call)
        self.host.serves()
        self.errands.begin(connection, msgid, verb.name, self._handlers[verb.name](self.host, connection, request),
                           seconds)

    def _seconds(self, call: protocol.Call) -> float:
        if call.deadline_ms is None:
            return self.board.limits.deadline_seconds
        if not 0 < call.deadline_ms <= 1e12:
            raise BadInput(f"deadline_ms is {call.deadline_ms}; it must be positive", remedy="give milliseconds")
        return call.deadline_ms / 1e3

    async def _finish(self, connection: Connection, msgid: int, name: str, result: Awaitable[Any]) -> None:
        try:
            value = await result
        except AiosError as error:
            connection.respond(msgid, error)
        except Exception as error:
            connection.respond(msgid, self._defect(name, error))
        else:
            connection.respond(msgid, None, to_wire(value))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _defect(self, name: str, error: Exception) -> Internal:
        import traceback

        self.log("request.defect", "error", verb=name, trace="".join(traceback.format_exception(error))[-1900:])
        return Internal(f"{name} failed inside the daemon: {type(error).__name__}",
                        remedy="`aios logs` has the details; please report them")


def arguments(params: list[Any]) -> dict[str, Any]:
    """The one optional map of a request's params; raises BadInput for anything else."""
    if not params:
        return {}
    if len(params) == 1 and isinstance(params[0], dict):
        return params[0]
    raise BadInput("params must be [] or [{…}]: at most one map of named parameters",
                   remedy="`aios api` prints every verb with its types")
