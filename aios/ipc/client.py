"""The client of the daemon: `connect()` for blocking calls, `connect_async()` for asyncio.

    with aios.connect() as client:
        print(client.diffuse("Once upon a time", length=64, seed=7).text)
        for item in client.stream("diffuse", prompt="Once"):      # a State after each step, last the Response
            print(item.rendered() if isinstance(item, State) else item.text)

A call that is interrupted (Ctrl-C, a closed iterator, a cancelled task, the timeout) is cancelled in the daemon
too, and the connection stays usable. Importing this module loads neither asyncio nor numpy.
"""

from __future__ import annotations

import os
import socket as sockets
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from aios.config import Places
from aios.errors import AiosError, AuthError, DaemonDown, DaemonError, DeadlineExceeded
from aios.ipc.calls import Calls, hello
from aios.ipc.conversation import Conversation, Exchange
from aios.ipc.protocol import Welcome
from aios.ipc.stream import CHUNK_BYTES
from aios.messages import State
from aios.security.auth import check_peer, read_owner_token

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

TIMEOUT_SECONDS = 660.0       # a minute beyond the daemon's own default deadline
ROOT = 0                      # systemd, where it made the socket


class Client(Calls):
    """A blocking connection; for one thread at a time. A context manager that closes itself."""

    def __init__(self, connection: sockets.socket, timeout: float) -> None:
        """Use `connect()`."""
        self._socket = connection
        self._socket.settimeout(timeout)
        self._timeout = timeout
        self._conversation = Conversation()
        self.welcome: Welcome

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
        """Ask at the first item; yield a State after each step and the answer last."""
        return self._items(exchange, True)

    def close(self) -> None:
        """End the connection; the daemon cancels what it was still doing for it."""
        self._conversation.fail(_closed())
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _items(self, exchange: Exchange[T], stream: bool) -> Generator[State | T, None, None]:
        inbox, frame = self._conversation.ask(exchange, stream=stream)
        try:
            self._send(frame)
            while inbox.answer is None or inbox.states:
                while inbox.states:
                    yield inbox.states.popleft()
                if inbox.answer is None:
                    self._receive()
            yield inbox.result()
        finally:
            if cancel := self._conversation.leave(inbox):
                with suppress(AiosError):
                    self._send(cancel)

    def _send(self, frame: bytes) -> None:
        try:
            self._socket.sendall(frame)
        except TimeoutError as error:
            self._conversation.fail(_failure(error, self._timeout))
        except OSError:
            # The daemon is gone; what it said before may be waiting to be read.
            while self._conversation.failure is None:
                self._receive()
        except BaseException:
            # Half a frame may be out: nothing that follows would be understood.
            self._conversation.fail(DaemonError("the connection was interrupted in the middle of a request",
                                                remedy="connect again"))
            raise

    def _receive(self) -> None:
        try:
            chunk = self._socket.recv(CHUNK_BYTES)
        except TimeoutError as error:
            raise _failure(error, self._timeout) from error
        except OSError as error:
            self._conversation.fail(_failure(error, self._timeout))
            return
        if not chunk:
            self._conversation.fail(_gone())
            return
        try:
            self._conversation.receive(chunk)
        except AiosError as error:
            self._conversation.fail(error)


class AsyncClient(Calls):
    """An asyncio connection; any number of calls at once. An asynchronous context manager that closes itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout: float) -> None:
        """Use `connect_async()`."""
        import asyncio

        self._reader, self._writer, self._timeout = reader, writer, timeout
        self._conversation = Conversation()
        self._task = asyncio.create_task(self._receive(), name="aios client")
        self.welcome: Welcome

    async def perform(self, exchange: Exchange[T], /) -> T:
        """Ask, and return the answer; `on_state` of the exchange is called on the way."""
        items = self._items(exchange, exchange.on_state is not None)
        async with aclosing(items):
            async for item in items:
                if not isinstance(item, State):
                    return item
                assert exchange.on_state is not None
                exchange.on_state(item)
        raise AssertionError("an exchange ends with its answer")

    def follow(self, exchange: Exchange[T], /) -> AsyncGenerator[State | T, None]:
        """Ask at the first item; yield a State after each step and the answer last."""
        return self._items(exchange, True)

    async def close(self) -> None:
        """End the connection; the daemon cancels what it was still doing for it."""
        self._conversation.fail(_closed())
        self._task.cancel()
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _items(self, exchange: Exchange[T], stream: bool) -> AsyncGenerator[State | T, None]:
        import asyncio

        news = asyncio.Event()
        inbox, frame = self._conversation.ask(exchange, stream=stream, wake=news.set)
        try:
            self._writer.write(frame)
            while inbox.answer is None or inbox.states:
                while inbox.states:
                    yield inbox.states.popleft()
                if inbox.answer is None:
                    news.clear()
                    await self._hear(news)
            yield inbox.result()
        finally:
            if cancel := self._conversation.leave(inbox):
                self._writer.write(cancel)

    async def _hear(self, news: asyncio.Event) -> None:
        import asyncio

        try:
            async with asyncio.timeout(self._timeout):
                await self._writer.drain()
                await news.wait()
        except OSError as error:        # TimeoutError is one
            raise _failure(error, self._timeout) from error

    async def _receive(self) -> None:
        try:
            while chunk := await self._reader.read(CHUNK_BYTES):
                self._conversation.receive(chunk)
            self._conversation.fail(_gone())
        except OSError as error:
            self._conversation.fail(_failure(error, self._timeout))
        except AiosError as error:
            self._conversation.fail(error)


def connect(socket: str | Path | None = None, token: str | None = None, timeout: float = TIMEOUT_SECONDS) -> Client:
    """A connection to the daemon of this home, or the one at `socket`.

    Without `token` the owner token beside the socket is used; an empty one says hello without any, which opens
    `ping` and `api` only. `timeout`: seconds without a word from the daemon until a call gives up. Raises DaemonDown
    when nobody listens, AuthError when the token or the user at the other end is not right.
    """
    path = Path(socket) if socket is not None else Places.find().socket
    connection = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        try:
            connection.connect(os.fspath(path))
        except OSError as error:
            raise _unreachable(error, path) from error
        check_peer(connection, os.getuid(), ROOT)
        client = Client(connection, timeout)
        client.welcome = client.perform(hello(_token(path, token), "aios-python"))
    except BaseException:
        connection.close()
        raise
    return client


async def connect_async(socket: str | Path | None = None, token: str | None = None,
                        timeout: float = TIMEOUT_SECONDS) -> AsyncClient:
    """The same as `connect`, for asyncio."""
    import asyncio

    path = Path(socket) if socket is not None else Places.find().socket
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(os.fspath(path))
    except OSError as error:
        raise _unreachable(error, path) from error
    client = AsyncClient(reader, writer, timeout)
    try:
        check_peer(writer.get_extra_info("socket"), os.getuid(), ROOT)
        client.welcome = await client.perform(hello(_token(path, token), "aios-python"))
    except BaseException:
        await client.close()
        raise
    return client


def _token(path: Path, token: str | None) -> str | None:
    if token is None:
        return read_owner_token(path.with_name(Places.find().owner_token.name))
    return token or None


def _unreachable(error: OSError, path: Path) -> AiosError:
    if isinstance(error, PermissionError):
        return AuthError(f"{path} belongs to somebody else", remedy="start a daemon of your own: aios start")
    return DaemonDown(f"no daemon answers at {path}", remedy="aios start")


def _failure(error: OSError, timeout: float) -> AiosError:
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f"the daemon said nothing for {timeout:g} s",
                                remedy="`aios status` shows what it does; connect(timeout=...) waits longer")
    return _gone()


def _gone() -> DaemonDown:
    return DaemonDown("the daemon closed the connection", remedy="aios status; then connect again")


def _closed() -> DaemonDown:
    return DaemonDown("this client is closed", remedy="connect again")
