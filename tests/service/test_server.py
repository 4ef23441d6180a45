"""The server's side of the socket, spoken to in raw frames."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from aios.config import LimitsSection, Places
from aios.errors import AuthError, CrashLoop, from_wire
from aios.ipc.protocol import VERBS
from aios.ipc.stream import Framer, Notification, Request, Response, encode
from aios.log import EventLog
from aios.messages import Diffuse, Passage, Recall
from aios.security.auth import Tokens, read_owner_token
from aios.service.connection import IN_FLIGHT_MAX
from aios.service.handlers import HANDLERS
from aios.service.jobs import Board
from aios.service.server import SURPLUS_MAX, Server


class Host:
    """As much of a daemon as the handlers under test need."""

    def __init__(self, places: Places, board: Board) -> None:
        self.tokens = Tokens(places.state / "tokens.json")
        self.tokens.renew_owner(places.owner_token)
        self.board = board
        self.log = EventLog(places.log_file)
        self.refusal: Exception | None = None
        self.server: Server
        self.memories = self
        self.recalling = 0

    def accepts(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    serves = accepts

    async def recall(self, asked: Recall) -> list[Any]:
        """A question that takes as long as its k says, in tenths of a second."""
        self.recalling += 1
        try:
            await asyncio.sleep(asked.k / 10)
        finally:
            self.recalling -= 1
        return [asked.query]

    async def lend(self, request: Diffuse) -> Diffuse:
        [text] = await self.recall(Recall(query=request.prompt, k=1))
        return replace(request, memory="off", passages=(Passage(text=text),))


@dataclass
class Peer:
    """A client in the raw."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    framer: Framer
    ready: list[Any]

    def send(self, *messages: Any) -> None:
        self.writer.write(b"".join(encode(message) for message in messages))

    async def next(self) -> Any:
        while not self.ready:
            chunk = await asyncio.wait_for(self.reader.read(1 << 16), 10)
            if not chunk:
                raise EOFError
            self.ready += self.framer.feed(chunk)
        return self.ready.pop(0)

    async def ask(self, verb: str, *params: Any, msgid: int = 1) -> Any:
        self.send(Request(msgid=msgid, verb=verb, params=list(params)))
        answer = await self.next()
        assert isinstance(answer, Response) and answer.msgid == msgid
        if answer.error is not None:
            raise from_wire(answer.error)
        return answer.result

    async def ended(self) -> bool:
        try:
            while True:
                await self.next()
        except (EOFError, ConnectionResetError):
            return True


class Scene:
    def __init__(self, places: Places, board: Board, host: Host) -> None:
        self.places, self.board, self.host = places, board, host
        self.peers: list[Peer] = []

    async def connect(self) -> Peer:
        reader, writer = await asyncio.open_unix_connection(str(self.places.socket))
        self.peers.append(Peer(reader, writer, Framer(), []))
        return self.peers[-1]

    async def greeted(self, token: str | None = None) -> Peer:
        peer = await self.connect()
        await peer.ask("hello", {"token": token or read_owner_token(self.places.owner_token)})
        return peer


@asynccontextmanager
async def scene(places: Places, **limits: Any) -> AsyncIterator[Scene]:
    board = Board(LimitsSection(**limits))
    host = Host(places, board)
    host.server = Server(host, board, HANDLERS, host.log)
    listener = await asyncio.get_running_loop().create_unix_server(host.server.connection, str(places.socket))
    one = Scene(places, board, host)
    try:
        yield one
    finally:
        for peer in one.peers:
            peer.writer.transport.abort()
        listener.close()
        for connection in list(host.server.connections):
            connection.abort()
        await asyncio.sleep(0.02)
        host.log.close()


def in_loop(test: Callable[[Places], Coroutine[Any, Any, None]]) -> Callable[[Places], None]:
    def run(places: Places) -> None:
        asyncio.run(test(places))

    run.__name__ = test.__name__
    return run


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0.005)


def test_every_verb_of_the_daemon_has_a_handler() -> None:
    assert set(HANDLERS) == {verb.name for verb in VERBS.values() if verb.place != "worker"}


@in_loop
async def test_before_hello_only_ping_api_and_hello_are_answered(places: Places) -> None:
    async with scene(places) as s:
        peer = await s.connect()
        assert await peer.ask("ping") == "pong"
        assert {verb["name"] for verb in await peer.ask("api")} == set(VERBS)
        for verb in set(VERBS) - {"hello", "ping", "api"}:
            with pytest.raises(AuthError, match="hello"):
                await peer.ask(verb)


@in_loop
async def test_hello_tells_versions_and_scopes_and_refuses_strangers(places: Places) -> None:
    async with scene(places) as s:
        peer = await s.connect()
        with pytest.raises(AuthError):
            await peer.ask("hello", {"token": "guessed"})
        welcome = await peer.ask("hello", {})
        assert welcome["scopes"] == [] and set(welcome["verbs"]) == {"hello", "ping", "api"}
        with pytest.raises(AuthError, match="scope"):
            await peer.ask("tokens.list")
        with pytest.raises(Exception, match="protocol 1"):
            await peer.ask("hello", {"protocol": 99})


@in_loop
async def test_a_scoped_token_opens_its_scopes_until_it_is_revoked(places: Places) -> None:
    async with scene(places) as s:
        owner = await s.greeted()
        made = await owner.ask("tokens.new", {"name": "editor", "scopes": ["ask"]})
        peer = await s.greeted(made["token"])
        assert await peer.ask("cancel", {"msgid": 99}) is False
        with pytest.raises(AuthError, match="admin"):
            await peer.ask("tokens.new", {"name": "more", "scopes": ["admin"]})
        assert [token["name"] for token in await owner.ask("tokens.list")] == ["editor"]
        assert await owner.ask("tokens.revoke", {"name": "editor"}) is True
        with pytest.raises(AuthError):
            await peer.ask("cancel", {"msgid": 99})


@in_loop
async def test_params_are_at_most_one_map_and_unknown_fields_are_ignored(places: Places) -> None:
    async with scene(places) as s:
        peer = await s.greeted()
        assert await peer.ask("ping", {"from": "the future"}) == "pong"
        for params in ([1], [{}, {}], [None]):
            with pytest.raises(Exception, match="at most one map"):
                await peer.ask("ping", *params)
        with pytest.raises(Exception, match="prompt"):
            await peer.ask("diffuse", {"prompt": 7})
        with pytest.raises(Exception, match="no verb"):
            await peer.ask("self.destruct")


@in_loop
async def test_malformed_bytes_end_the_connection_with_a_reason(places: Places) -> None:
    async with scene(places) as s:
        peer = await s.connect()
        peer.writer.write(b"\xc1")
        told = await peer.next()
        assert isinstance(told, Notification) and told.method == "error"
        assert told.params[0][0] == "protocol.invalid"
        assert await peer.ended()


@in_loop
async def test_a_msgid_in_use_ends_the_connection(places: Places) -> None:
    async with scene(places) as s:
        peer = await s.greeted()
        request = Request(msgid=5, verb="diffuse", params=[{"prompt": "x"}])
        peer.send(request, request)
        assert "in use" in (await peer.next()).params[0][1]
        assert await peer.ended()
        await until(lambda: s.board.idle)


@in_loop
async def test_half_a_frame_is_not_waited_for_forever(places: Places) -> None:
    async with scene(places, slow_client_seconds=0.2) as s:
        peer = await s.greeted()
        frame = encode(Request(msgid=1, verb="ping", params=[]))
        peer.writer.write(frame[:-2])
        assert await peer.ended()


@in_loop
async def test_trickling_does_not_prolong_a_frame_s_time(places: Places) -> None:
    async with scene(places, slow_client_seconds=0.3) as s:
        peer = await s.greeted()
        frame = encode(Request(msgid=1, verb="ping", params=[{"x": "y" * 1000}]))

        async def trickle() -> None:
            for byte in frame[:-1]:
                peer.writer.write(bytes([byte]))
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        async with asyncio.timeout(10):      # the whole frame would take 20 s
            assert await peer.ended()
        trickling.cancel()


@in_loop
async def test_a_client_that_says_no_hello_does_not_keep_its_place(places: Places) -> None:
    async with scene(places, slow_client_seconds=0.2) as s:
        silent, polite = await s.connect(), await s.greeted()
        assert await silent.ended()
        await asyncio.sleep(0.3)
        assert await polite.ask("ping") == "pong", "who said hello may be silent"


@in_loop
async def test_one_client_too_many_hears_why(places: Places) -> None:
    async with scene(places, clients_max=2) as s:
        kept = [await s.greeted(), await s.greeted()]
        surplus = await s.connect()
        with pytest.raises(Exception, match="2 clients are connected already"):
            await surplus.ask("hello", {})
        assert await surplus.ended()
        mute = [await s.connect() for _ in range(SURPLUS_MAX + 1)]
        assert await mute[-1].ended(), "far too many hear nothing"
        assert await kept[0].ask("ping") == "pong"
        kept[1].writer.close()
        for peer in mute:
            peer.writer.close()
        await until(lambda: len(s.host.server.connections) == 1)
        assert await (await s.greeted()).ask("ping") == "pong"


@in_loop
async def test_one_connection_has_a_bounded_number_of_requests_in_flight(places: Places) -> None:
    async with scene(places) as s:
        peer = await s.greeted()
        for msgid in range(IN_FLIGHT_MAX + 1):
            peer.send(Request(msgid=msgid, verb="diffuse", params=[{"prompt": "x"}]))
        answer = await peer.next()
        assert (answer.msgid, answer.error[0]) == (IN_FLIGHT_MAX, "daemon.busy")
        assert s.board.queued == IN_FLIGHT_MAX


@in_loop
async def test_a_full_queue_and_a_refusing_host_are_told_at_once(places: Places) -> None:
    async with scene(places, queue_max=1) as s:
        peer = await s.greeted()
        peer.send(Request(msgid=1, verb="diffuse", params=[{"prompt": "x"}]))
        peer.send(Request(msgid=2, verb="encode", params=[{"texts": ["x"]}]))
        assert (await peer.next()).error[0] == "daemon.busy"
        s.host.refusal = CrashLoop("it keeps dying")
        peer.send(Request(msgid=3, verb="diffuse", params=[{"prompt": "x"}]))
        assert (await peer.next()).error[0] == "worker.crash_loop"


@in_loop
async def test_disconnecting_and_cancelling_take_requests_off_the_board(places: Places) -> None:
    async with scene(places) as s:
        peer = await s.greeted()
        for msgid in (1, 2, 3):
            peer.send(Request(msgid=msgid, verb="diffuse", params=[{"prompt": "x"}]))
        await until(lambda: s.board.queued == 3)
        peer.send(Request(msgid=9, verb="cancel", params=[{"msgid": 1}]))
        answers = {answer.msgid: answer for answer in (await peer.next(), await peer.next())}
        assert answers[1].error[0] == "request.cancelled" and answers[9].result is True
        peer.send(Notification(method="cancel", params=[{"msgid": 2}]),
                  Notification(method="from.the.future", params=[]))
        assert (await peer.next()).error[0] == "request.cancelled"
        assert s.board.queued == 1
        peer.writer.close()
        await until(lambda: s.board.idle)


@in_loop
async def test_a_deadline_that_makes_no_sense_is_refused(places: Places) -> None:
    async with scene(places) as s:
        peer = await s.greeted()
        for deadline in (0, -1, 1 << 60):
            with pytest.raises(Exception, match="deadline_ms"):
                await peer.ask("diffuse", {"prompt": "x", "deadline_ms": deadline})


@in_loop
async def test_a_client_that_does_not_read_loses_states_but_no_answer(places: Places) -> None:
    async with scene(places, slow_client_seconds=20) as s:
        peer = await s.greeted()
        peer.send(Request(msgid=1, verb="diffuse", params=[{"prompt": "x", "stream": True}]))
        await until(lambda: s.board.queued == 1)
        job = s.board.take()
        assert job is not None
        small_buffers(peer)
        for step in range(3000):
            s.board.show(job.number, {"step": step, "pieces": ["x" * 1000]})
        assert job.owner.clogged
        s.board.answer(job.number, None, {"usage": {}})
        seen = []
        while not isinstance(message := await peer.next(), Response):
            seen.append(message.params[1]["step"])
        assert message.msgid == 1 and message.error is None
        assert len(seen) < 3000 and seen == sorted(seen)
        assert await peer.ask("ping", msgid=2) == "pong", "it is served again"


@in_loop
async def test_a_client_that_never_reads_is_dropped(places: Places) -> None:
    async with scene(places, slow_client_seconds=0.3) as s:
        peer = await s.greeted()
        small_buffers(peer)
        peer.writer.transport.pause_reading()      # type: ignore[attr-defined]
        for msgid in range(20000):
            peer.send(Request(msgid=msgid, verb="api", params=[]))
            if not s.host.server.connections:
                break
            if msgid % 50 == 0:
                await asyncio.sleep(0)
        await until(lambda: not s.host.server.connections)


def small_buffers(peer: Peer) -> None:
    peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


@in_loop
async def test_memory_verbs_run_beside_others_and_can_be_cancelled_or_run_out_of_time(places: Places) -> None:
    async with scene(places) as s:
        peer = await s.greeted()
        peer.send(Request(msgid=5, verb="memory.recall", params=[{"query": "a", "k": 600}]),
                  Request(msgid=6, verb="memory.recall", params=[{"query": "b", "k": 600, "deadline_ms": 20}]))
        assert await peer.ask("ping", msgid=7) == "pong"
        assert from_wire((await peer.next()).error).code == "request.deadline"
        assert await peer.ask("memory.recall", {"query": "c", "k": 1}, msgid=8) == ["c"]
        peer.send(Request(msgid=9, verb="cancel", params=[{"msgid": 5}]))
        answers = {one.msgid: one for one in (await peer.next(), await peer.next())}
        assert answers[9].result is True and from_wire(answers[5].error).code == "request.cancelled"
        peer.send(Request(msgid=10, verb="memory.recall", params=[{"query": "a", "k": 600}]))
        await until(lambda: s.host.recalling == 1)
        peer.writer.transport.abort()
        await until(lambda: s.host.recalling == 0 and s.host.server.errands.idle)


@in_loop
async def test_a_request_that_asks_for_memory_waits_for_it_and_then_for_the_worker(places: Places) -> None:
    async with scene(places) as s:
        peer = await s.greeted()
        peer.send(Request(msgid=5, verb="diffuse", params=[{"prompt": "a", "memory": "auto", "stream": True}]))
        await until(lambda: s.board.queued == 1)
        job = s.board.take()
        assert job is not None and job.stream and s.host.server.errands.idle
        assert job.request == Diffuse(prompt="a", passages=(Passage(text="a"),))
        s.board.answer(job.number, None, {"usage": {}})
        assert (await peer.next()).msgid == 5
        asker = await s.greeted(s.host.tokens.new("asker", ["ask"]))
        with pytest.raises(AuthError, match="memory"):
            await asker.ask("diffuse", {"prompt": "a", "memory": "auto"})
