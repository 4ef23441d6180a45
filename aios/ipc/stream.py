"""MessagePack-RPC on a byte stream: messages to bytes, and bytes in any pieces to messages.

The format is the standard one, objects one after another: request `[0, msgid, verb, params]`, response
`[1, msgid, error, result]`, notification `[2, method, params]`. Every cap is checked by the Rust scanner before
an object is built. Used alike by server, client and worker channel; the only place that knows msgpack.
Source: the MessagePack-RPC specification (messages).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from aios._native import FrameScanner
from aios.errors import BadInput, LimitExceeded, ProtocolError

FRAME_BYTES_MAX = 8 << 20        # 4,096 vectors of 384 f32 fit; larger parts travel in chunks
FRAME_DEPTH_MAX = 32             # the deepest of 4,831 real schemas is 25, the envelope adds 3
FRAME_ELEMENTS_MAX = 1 << 16     # 16 times the longest list (4,096 texts or pieces); even if every element is an
                                 # empty map, a frame's objects stay below 8 MiB
MSGID_MAX = (1 << 32) - 1        # the specification's 32 bits
CHUNK_BYTES = 1 << 16            # a good size to read from a socket

_REQUEST: Final = 0
_RESPONSE: Final = 1
_NOTIFICATION: Final = 2
_REMEDY = "speak MessagePack-RPC, version 5 types, UTF-8 strings; `aios api` prints the verbs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Wants a response with the same msgid."""

    msgid: int
    verb: str
    params: list[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """Answers a request; `error` is None or the array of errors.AiosError.to_wire."""

    msgid: int
    error: Any
    result: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """Wants no response."""

    method: str
    params: list[Any]


Message = Request | Response | Notification


def encode(message: Message) -> bytes:
    """One frame, which every Framer accepts; LimitExceeded where it would not, BadInput for what has no wire form."""
    if isinstance(message, Request):
        fields: list[Any] = [_REQUEST, message.msgid, message.verb, message.params]
    elif isinstance(message, Response):
        fields = [_RESPONSE, message.msgid, message.error, message.result]
    else:
        fields = [_NOTIFICATION, message.method, message.params]
    try:
        frame: bytes = msgpack.packb(fields)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(f"this cannot be sent: {error}", remedy="send text, numbers, bytes, lists and maps") from error
    _, fault = _scanner().feed(frame)
    if fault is not None:
        raise LimitExceeded(f"this cannot be sent: {fault}", remedy="send less at once")
    return frame


class Framer:
    """Cuts one direction of one connection into messages; holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._scanner = _scanner()
        self._head = bytearray()    # of the frame that is still incomplete

    @property
    def partial(self) -> bool:
        """True when the peer still owes the rest of a frame."""
        return self._scanner.partial

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """The messages that `chunk` completes, decoded one by one; iterate to the end.

        Raises ProtocolError at the first byte that is malformed or exceeds a cap, after every message before it;
        the connection is of no use afterwards.
        """
        ends, fault = self._scanner.feed(chunk)
        view, start = memoryview(chunk), 0
        for end in ends:
            piece: memoryview | bytearray = view[start:end]
            start = end
            if self._head:
                piece, self._head = self._head + piece, bytearray()
            yield _decode(piece)
        if fault is not None:
            self._head = bytearray()
            raise ProtocolError(f"received {fault}", remedy=_REMEDY)
        self._head += view[start:]


def _scanner() -> FrameScanner:
    return FrameScanner(FRAME_BYTES_MAX, FRAME_DEPTH_MAX, FRAME_ELEMENTS_MAX)


def _decode(frame: memoryview | bytearray) -> Message:
    try:
        # The scanner has bounded everything; what remains is UTF-8 and the types of keys.
        fields = msgpack.unpackb(frame, strict_map_key=True)
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"received a frame that cannot be read: {error}", remedy=_REMEDY) from error
    match fields:
        case [bool(), *_]:
            pass                                              # True and False are ints to Python
        case [int(kind), int(msgid), str() | bytes() as verb, list(params)] if kind == _REQUEST and _valid(msgid):
            return Request(msgid=msgid, verb=_name(verb), params=params)
        case [int(kind), int(msgid), error, result] if kind == _RESPONSE and _valid(msgid):
            return Response(msgid=msgid, error=error, result=result)
        case [int(kind), str() | bytes() as method, list(params)] if kind == _NOTIFICATION:
            return Notification(method=_name(method), params=params)
    raise ProtocolError("received an object that is no MessagePack-RPC message", remedy=_REMEDY)


def _name(name: str | bytes) -> str:
    """Names travel as strings; some clients (pynvim's greeting) send them as binary."""
    return name if isinstance(name, str) else name.decode("utf-8", "replace")


def _valid(msgid: int) -> bool:
    return not isinstance(msgid, bool) and 0 <= msgid <= MSGID_MAX
