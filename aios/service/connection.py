"""One client: its bytes, its identity, its requests in flight, and what happens when it is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from aios.errors import AiosError, AuthError, Busy, ProtocolError
from aios.ipc import stream
from aios.security import auth

if TYPE_CHECKING:
    from aios.service.server import Server

IN_FLIGHT_MAX = 64                # of one client; as many as the worker interleaves
OUTPUT_HIGH_BYTES = 1 << 20       # unread output from which a client counts as slow and its states are skipped
MESSAGES_PER_TURN = 32            # the costliest takes half a millisecond: others wait 16 ms at most
CLOSE_SECONDS = 5.0               # for the last words of a connection that is being closed


class Connection(asyncio.Protocol):
    """Frames in, dispatch, frames out.

    A slow reader loses states, never text or answers, and in the end the connection.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._framer = stream.Framer()
        self._incoming: Iterator[stream.Message] = iter(())       # received, not dispatched yet
        self._transport: asyncio.Transport | None = None
        self._states: dict[int, Any] = {}                        # latest state of each request, not sent yet
        self._patience: dict[str, asyncio.TimerHandle] = {}      # why this client may be dropped, and when
        self.in_flight: set[int] = set()
        self.identity = auth.NOBODY
        self.greeted = False
        self.surplus = False                                     # beyond clients_max: its first request is refused
        self.clogged = False                                     # it does not read what it was sent

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse other users before reading a byte; everyone else may say hello."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=OUTPUT_HIGH_BYTES)
        try:
            auth.check_peer(transport.get_extra_info("socket"), self._server.uid)
        except AuthError as error:
            self._server.log("client.refused", "warning", reason=error.message)
            transport.abort()
            return
        if not self._server.admit(self):
            transport.abort()
            return
        self._wait_for("hello")

    def data_received(self, data: bytes) -> None:
        """Dispatch every message that is complete; a malformed one ends the connection."""
        self._incoming = self._framer.feed(data)
        self._work()

    def _work(self) -> None:
        """Dispatch what was received, some of it a turn, so that one client's flood holds nobody else up.

        Nothing more is read meanwhile; while the client reads no answers, `resume_writing` goes on with it.
        """
        try:
            for _ in range(MESSAGES_PER_TURN):
                if self._transport is None or self._transport.is_closing() or self.clogged:
                    return
                message = next(self._incoming, None)
                if message is None:
                    self._wait_for("frame") if self._framer.partial else self._settle("frame")
                    self._transport.resume_reading()
                    return
                self._receive(message)
        except ProtocolError as error:
            self.refuse(error)
            return
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._work)

    def eof_received(self) -> None:
        """A client that closed its side is gone; asyncio closes ours."""

    def pause_writing(self) -> None:
        """It does not read: read nothing more from it, skip states, and drop it when this lasts."""
        self.clogged = True
        self._wait_for("read")
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It reads again: the latest states, then new requests."""
        self.clogged = False
        self._settle("read")
        states, self._states = self._states, {}
        for msgid, state in states.items():
            self.show(msgid, state)
        self._work()
        self._server.board.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Its requests are cancelled."""
        self._transport = None
        for reason in list(self._patience):
            self._settle(reason)
        self._states.clear()
        self._server.forget(self)

    def respond(self, msgid: int, error: AiosError | None, result: Any = None) -> None:
        """Answer a request; nobody hears it after the connection is lost."""
        self.in_flight.discard(msgid)
        state = self._states.pop(msgid, None)
        if isinstance(state, dict) and state.get("delta"):
            self._write(stream.encode(stream.Notification(method="state", params=[msgid, state])))
        try:
            frame = stream.encode(stream.Response(msgid=msgid, error=error.to_wire() if error else None,
                                                  result=result))
        except AiosError as fault:
            frame = stream.encode(stream.Response(msgid=msgid, error=fault.to_wire(), result=None))
        self._write(frame)

    def show(self, msgid: int, state: Any) -> None:
        """Send an intermediate state, or keep only the latest while the client is slow."""
        if msgid not in self.in_flight:
            return
        if self.clogged:
            self._states[msgid] = _joined(self._states.get(msgid), state)
        else:
            self._write(stream.encode(stream.Notification(method="state", params=[msgid, state])))

    def greet(self, identity: auth.Identity) -> None:
        """Hello was said with this identity."""
        self.identity, self.greeted = identity, True
        self._settle("hello")

    def refuse(self, error: AiosError) -> None:
        """Say why as a notification (no request can be named), then close."""
        self._write(stream.encode(stream.Notification(method="error", params=[error.to_wire()])))
        self.close()

    def close(self) -> None:
        """Close after what is written was read, or after a few seconds without."""
        if self._transport is not None:
            self._transport.close()
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.abort)

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def _receive(self, message: stream.Message) -> None:
        if isinstance(message, stream.Response):
            raise ProtocolError("received a response; clients send requests", remedy="`aios api` prints every verb")
        if isinstance(message, stream.Notification):
            self._server.notified(self, message.method, message.params)
            return
        if self.surplus:
            self.respond(message.msgid, Busy(f"{self._server.board.limits.clients_max} clients are connected already",
                                             remedy="close one, or raise limits.clients_max in daemon.toml"))
            self.close()
            return
        if message.msgid in self.in_flight:
            # An answer to either would be taken for the other's.
            raise ProtocolError(f"msgid {message.msgid} is in use on this connection",
                                remedy="count msgids upwards")
        if len(self.in_flight) >= IN_FLIGHT_MAX:
            self._write(stream.encode(stream.Response(msgid=message.msgid, result=None, error=Busy(
                f"{IN_FLIGHT_MAX} requests of this connection are in flight",
                remedy="wait for an answer first").to_wire())))
            return
        self.in_flight.add(message.msgid)
        self._server.dispatch(self, message.msgid, message.verb, message.params)

    def _write(self, frame: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def _wait_for(self, what: str) -> None:
        if what not in self._patience:
            seconds = self._server.board.limits.slow_client_seconds
            self._patience[what] = asyncio.get_running_loop().call_later(seconds, self._lose_patience, what)

    def _settle(self, what: str) -> None:
        if timer := self._patience.pop(what, None):
            timer.cancel()

    def _lose_patience(self, what: str) -> None:
        self._patience.pop(what, None)
        self._server.log("client.dropped", "warning", reason=f"waited too long for its {what}",
                         client=self.identity.name)
        self.abort()


def _joined(earlier: Any, later: Any) -> Any:
    """One state in place of two: the later one, with the text of both."""
    delta = earlier.get("delta") if isinstance(earlier, dict) else None
    return later if not delta else {**later, "delta": delta + (later.get("delta") or "")}
