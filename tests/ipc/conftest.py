"""A small server that speaks the protocol, so that the client is tested without a daemon."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aios.errors import AiosError, AuthError, ModelMissing
from aios.ipc.protocol import Hello, Welcome
from aios.ipc.stream import FRAME_BYTES_MAX, Framer, Notification, Request, Response, encode
from aios.messages import Part, State, Usage, Verdict, from_wire, to_wire
from aios.messages import Response as Answer

TOKEN = "the-owner-token"


def answer(text: str, **fields: Any) -> Any:
    """A Response as it travels."""
    part = Part(mime="text/plain", text=text) if "part" not in fields else fields["part"]
    return to_wire(Answer(parts=(part,), modality=frozenset({"text"}), usage=Usage(steps=3), seed=7,
                          verdict=Verdict(model="fake", release="none", instruction_set="none", threads=1)))


def tensor(rows: list[list[float]]) -> Part:
    """Vectors as they travel."""
    flat = [number for row in rows for number in row]
    width = len(rows[0]) if rows else 3
    return Part(mime=f"application/vnd.aios.tensor;dtype=float32;shape={len(rows)},{width}",
                data=struct.pack(f"<{len(flat)}f", *flat))


class Peer(asyncio.Protocol):
    """One connection of the fake daemon."""

    def __init__(self, fake: FakeDaemon) -> None:
        self.fake, self.framer = fake, Framer()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.fake.peers.append(self)

    def data_received(self, data: bytes) -> None:
        for message in self.framer.feed(data):
            self.fake.seen.append(message)
            if isinstance(message, Request):
                self.answer(message, message.params[0] if message.params else {})

    def answer(self, request: Request, params: dict[str, Any]) -> None:
        try:
            handler: Callable[..., Any] | None = getattr(self, "on_" + request.verb, None)
            if handler is None:
                raise ModelMissing("no such thing", remedy="make one", name=request.verb)
            result = handler(request.msgid, **params)
        except AiosError as error:
            self.send(Response(msgid=request.msgid, error=error.to_wire(), result=None))
        else:
            if result is not None:
                self.send(Response(msgid=request.msgid, error=None, result=result))

    def send(self, message: Any) -> None:
        self.transport.write(encode(message))

    def on_hello(self, msgid: int, **params: Any) -> Any:
        if from_wire(params, Hello).token != TOKEN:
            raise AuthError("wrong token", remedy="read it again")
        return to_wire(Welcome(protocol=1, version="0", pid=1, scopes=("ask",), frame_bytes_max=FRAME_BYTES_MAX,
                               verbs=()))

    def on_ping(self, msgid: int) -> Any:
        return "pong"

    def on_echo(self, msgid: int, **params: Any) -> Any:
        return params

    def on_encode(self, msgid: int, texts: list[str]) -> Any:
        return answer("", part=tensor([[float(len(text)), 0.0, 1.0] for text in texts]))

    def on_diffuse(self, msgid: int, prompt: str = "", stream: bool = False, **_: Any) -> Any:
        for step in range(3 if stream else 0):
            state = State(step=step + 1, steps=3, pieces=(prompt, None))
            self.send(Notification(method="state", params=[msgid, to_wire(state)]))
        return None if prompt == "never" else answer(prompt + "!")

    def on_generate(self, msgid: int, prompt: str = "", stream: bool = False, **_: Any) -> Any:
        for step, letter in enumerate(prompt if stream else "", start=1):
            state = State(step=step, steps=len(prompt), delta=letter)
            self.send(Notification(method="state", params=[msgid, to_wire(state)]))
        return answer(prompt)

    def on_slow(self, msgid: int, seconds: float) -> None:
        asyncio.get_running_loop().call_later(
            seconds, lambda: self.send(Response(msgid=msgid, error=None, result=seconds)))

    def on_cancel(self, own: int, /, **_: Any) -> Any:
        return True

    def on_garbage(self, msgid: int) -> None:
        self.transport.write(b"\xc1\xc1")

    def on_hangup(self, msgid: int) -> None:
        self.transport.abort()

    def on_refuse(self, msgid: int) -> None:
        self.send(Notification(method="error", params=[AuthError("told why", remedy="mend it").to_wire()]))
        self.transport.close()


class FakeDaemon:
    """Its socket, and every message it has seen."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "aios.sock"
        self.seen: list[Any] = []
        self.peers: list[Peer] = []

    def cancelled(self) -> list[int]:
        """The msgids it was asked to cancel."""
        return [m.params[0]["msgid"] for m in self.seen if isinstance(m, Request) and m.verb == "cancel"]

    def run(self, ready: threading.Event, stop: list[Callable[[], None]]) -> None:
        async def serve() -> None:
            loop = asyncio.get_running_loop()
            done = asyncio.Event()
            stop.append(lambda: loop.call_soon_threadsafe(done.set))
            server = await loop.create_unix_server(lambda: Peer(self), str(self.socket))
            ready.set()
            await done.wait()
            for peer in self.peers:
                peer.transport.abort()
            server.close()
            await server.wait_closed()

        asyncio.run(serve())


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeDaemon]:
    """A fake daemon in a thread, with its token file beside the socket."""
    daemon, ready, stop = FakeDaemon(tmp_path), threading.Event(), []
    token = tmp_path / "owner.token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    thread = threading.Thread(target=daemon.run, args=(ready, stop))
    thread.start()
    assert ready.wait(5)
    yield daemon
    stop[0]()
    thread.join(5)
