"""`aios eval campaign ipc`: ten thousand attacks on a real daemon, while honest clients must not notice.

An attack counts as survived when every request in it was answered (with an error, where it deserves one) and
the connection was closed where its bytes are no protocol, stall or are never read. What must happen is foreseen
by cutting the bytes with a Framer here; that the Framer itself is right is tested against msgpack.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import psutil

from aios.errors import AiosError, ProtocolError
from aios.ipc.client import AsyncClient, connect_async
from aios.ipc.protocol import Hello
from aios.ipc.stream import CHUNK_BYTES, Framer, Request, Response, encode
from aios.lab.ipc_attacks import Attack, attack
from aios.lab.report import LabOptions, Report, Row
from aios.lab.scratch_home import ScratchDaemon, scratch_daemon
from aios.messages import to_wire

ATTACKS: Final = 12_000
LANES: Final = 48                  # attackers at once; with the honest ones below limits.clients_max
SLOW_CLIENT_SECONDS: Final = 2.0   # the daemon's patience in this campaign; 30 by default
ANSWER_SECONDS_MAX: Final = 120.0  # for an answer or a close; the machine is busy, and a worker may have to start
SETTLE_SECONDS: Final = 1.0        # before memory is read
DRIBBLE_SECONDS: Final = 0.03
HONEST_PAUSE_SECONDS: Final = 0.02
REASONS_MAX: Final = 5             # failures that are described in the report


class Unanswered(Exception):
    """The daemon did not do what the attack deserves."""


@dataclass(slots=True)
class Tally:
    """What has happened so far."""

    attacks: Counter[str] = field(default_factory=Counter)
    unanswered: list[str] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)
    honest: int = 0
    honest_failed: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Target:
    """The daemon under attack, and the token of the attackers, which opens `ask` only."""

    socket: str
    token: str


class Hearing:
    """Everything the daemon says on one connection."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader, self._framer = reader, Framer()
        self.answers: dict[int, object] = {}      # msgid -> error or None
        self.ended = False

    async def until(self, asked: Iterable[int]) -> None:
        """Read until all of these are answered or the connection ends."""
        wanted = set(asked)
        while not self.ended and not wanted <= self.answers.keys():
            try:
                chunk = await self._reader.read(CHUNK_BYTES)
            except ConnectionError:
                chunk = b""
            self.ended = not chunk
            self.answers.update((message.msgid, message.error) for message in self._framer.feed(chunk)
                                if isinstance(message, Response))

    async def end(self) -> None:
        """Read until the daemon closes."""
        while not self.ended:
            await self.until([-1])


def foresee(payload: bytes) -> tuple[list[int], bool, bool]:
    """What the bytes deserve: msgids to be answered; whether the daemon closes at once; whether it waits for more."""
    framer, asked = Framer(), list[int]()
    try:
        for message in framer.feed(payload):
            if isinstance(message, Response):
                return asked, True, False
            if isinstance(message, Request):
                asked.append(message.msgid)
    except ProtocolError:
        return asked, True, False
    return asked, len(set(asked)) < len(asked), framer.partial


async def strike(target: Target, blow: Attack) -> None:
    """Carry one attack out; raises Unanswered."""
    if blow.manner == "deaf":
        await _never_read(target, blow)
        return
    reader, writer = await asyncio.open_unix_connection(target.socket)
    try:
        hearing = Hearing(reader)
        if blow.greeted:
            writer.write(_hello(target))
            await hearing.until([0])
        await _send(writer, blow)
        if blow.manner == "abrupt":
            writer.transport.abort()
        else:
            await _judge(hearing, writer, blow)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _send(writer: asyncio.StreamWriter, blow: Attack) -> None:
    pieces = ([blow.payload[i:i + 1] for i in range(len(blow.payload))] if blow.manner == "dribble"
              else [blow.payload])
    with suppress(ConnectionError):          # closed in the middle of a frame that is refused
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if blow.manner == "dribble":
                await asyncio.sleep(DRIBBLE_SECONDS)


async def _judge(hearing: Hearing, writer: asyncio.StreamWriter, blow: Attack) -> None:
    asked, closes, partial = foresee(blow.payload)
    if not closes:
        await hearing.until(asked)
        if missing := set(asked) - hearing.answers.keys():
            raise Unanswered(f"{len(missing)} requests have no answer")
        if blow.refused and any(hearing.answers[msgid] is None for msgid in asked):
            raise Unanswered("it was accepted")
    if blow.manner == "half-close" and not closes:
        with suppress(OSError):
            writer.write_eof()
    if closes or partial or blow.manner == "half-close":
        await hearing.end()
    for error in hearing.answers.values():
        if isinstance(error, list) and error[:1] == ["internal"]:
            raise Unanswered(f"a defect: {error[1]}")


async def _never_read(target: Target, blow: Attack) -> None:
    """Send, read nothing, and find the connection closed from the other side."""
    reader, writer = await asyncio.open_unix_connection(target.socket)
    try:
        writer.write(_hello(target))
        await Hearing(reader).until([0])
        writer.transport.pause_reading()     # type: ignore[attr-defined]
        with suppress(ConnectionError):
            while True:                      # the daemon takes no more, then it hangs up
                writer.write(blow.payload)
                await writer.drain()
    finally:
        writer.transport.abort()


def _hello(target: Target) -> bytes:
    return encode(Request(msgid=0, verb="hello", params=[to_wire(Hello(token=target.token, client="attacker"))]))


async def attack_lane(target: Target, seed: int, numbers: Iterator[int], tally: Tally,
                      moved: Callable[[], None]) -> None:
    """Carry out attacks one after another, as long as there are numbers left."""
    for number in numbers:
        blow = attack(seed, number)
        tally.attacks[blow.kind] += 1
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await strike(target, blow)
        except (Unanswered, OSError, ProtocolError) as error:      # TimeoutError is an OSError
            tally.unanswered.append(f"{number} {blow.kind}: {type(error).__name__} {error}")
        moved()


async def honest_lane(work: Callable[[], Awaitable[bool]], tally: Tally, stop: asyncio.Event) -> None:
    """Repeat an honest client's work until told to stop, and count what failed."""
    while not stop.is_set():
        tally.honest += 1
        try:
            if not await work():
                tally.honest_failed.append(f"{work.__name__}: a wrong answer")
        except AiosError as error:
            tally.honest_failed.append(f"{work.__name__}: {error.code} {error.message}")
        await asyncio.sleep(HONEST_PAUSE_SECONDS)


async def honest_work(socket: str, client: AsyncClient) -> list[Callable[[], Awaitable[bool]]]:
    """What honest clients do: small questions, new connections, and texts that must come out the same."""
    expected = (await client.diffuse("Once", length=8, steps=4, seed=1)).text

    async def asks() -> bool:
        status = await client.status()
        return await client.ping() == "pong" and status.state == "ready" and len(await client.api()) > 0

    async def comes_and_goes() -> bool:
        async with await connect_async(socket) as guest:
            return await guest.ping() == "pong"

    async def diffuses() -> bool:
        return (await client.diffuse("Once", length=8, steps=4, seed=1)).text == expected

    async def streams() -> bool:
        items = [item async for item in client.stream("diffuse", prompt="Once", length=8, steps=4, seed=1)]
        return len(items) > 1 and getattr(items[-1], "text", None) == expected

    return [asks, comes_and_goes, diffuses, streams]


@contextmanager
def _honest(works: list[Callable[[], Awaitable[bool]]], tally: Tally) -> Iterator[list[asyncio.Task[None]]]:
    stop = asyncio.Event()
    tasks = [asyncio.create_task(honest_lane(work, tally, stop)) for work in works]
    try:
        yield tasks
    finally:
        stop.set()


async def campaign(daemon: ScratchDaemon, options: LabOptions, count: int, tally: Tally) -> float:
    """All attacks in two halves with honest clients beside them; the parent's growth over the second, in MB."""
    socket = str(daemon.places.socket)
    async with await connect_async(socket) as client:
        made = await client.call("tokens.new", name="attacker", scopes=["ask"])
        target = Target(socket, made["token"])
        with _honest(await honest_work(socket, client), tally) as honest:
            memory = [await _half(daemon, options, target, range(start, end), count, tally)
                      for start, end in ((0, count // 2), (count // 2, count))]
        await asyncio.gather(*honest)
        tally.unanswered += await _left_open(client)
        tally.defects += [] if (await client.status()).worker.restarts == 0 else ["the worker died"]
    return memory[1] - memory[0]


async def _half(daemon: ScratchDaemon, options: LabOptions, target: Target, numbers: range, count: int,
                tally: Tally) -> float:
    """Run these attacks; the parent's resident memory afterwards, in MB."""
    def moved() -> None:
        options.progress("attacking", sum(tally.attacks.values()) / count)

    left = iter(numbers)
    await asyncio.gather(*(attack_lane(target, options.seed, left, tally, moved) for _ in range(LANES)))
    await asyncio.sleep(SETTLE_SECONDS)
    return float(psutil.Process(daemon.pid).memory_info().rss) / 1e6


async def _left_open(client: AsyncClient) -> list[str]:
    """Connections that the daemon still holds although their clients are gone."""
    until = time.monotonic() + ANSWER_SECONDS_MAX
    while (clients := (await client.status()).clients) > 1 and time.monotonic() < until:
        await asyncio.sleep(0.1)
    return [f"{clients - 1} connections of clients that are gone are still open"] if clients > 1 else []


def run(options: LabOptions) -> Report:
    """The campaign; a quick run is the full one, it takes about a minute."""
    tally, started = Tally(), time.monotonic()
    with scratch_daemon(settings={"limits": {"slow_client_seconds": SLOW_CLIENT_SECONDS}}) as daemon:
        growth: float | None = None
        try:
            growth = asyncio.run(campaign(daemon, options, ATTACKS, tally))
        except (AiosError, psutil.NoSuchProcess) as error:
            tally.defects.append(f"the campaign ended early: {error}")
        process = daemon.launched.process if daemon.launched else None
        if process is not None and process.poll() is not None:
            tally.defects.append(f"the daemon ended with status {process.returncode}")
        log = daemon.places.log_file.read_text(encoding="utf-8", errors="replace")
        tally.defects += [line[:500] for line in log.splitlines() if '.defect"' in line]
    return Report.of("ipc", _rows(tally, growth, time.monotonic() - started), options)


def _rows(tally: Tally, growth: float | None, seconds: float) -> list[Row]:
    def told(reasons: list[str]) -> str | None:
        return "; ".join(reasons[:REASONS_MAX]) or None

    done = sum(tally.attacks.values())
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.attacks.items()))
    return [
        Row(metric="attacks", value=done, unit="attacks", better="higher", must=10_000, n=done, reason=kinds),
        Row(metric="unanswered", value=len(tally.unanswered), unit="attacks", better="lower", must=0, n=done,
            reason=told(tally.unanswered)),
        Row(metric="crashes", value=len(tally.defects), unit="crashes", better="lower", must=0, n=done,
            reason=told(tally.defects)),
        Row(metric="growth_mb", value=None if growth is None else round(growth, 2), unit="MB", better="lower", must=5,
            n=done, reason="the campaign ended early" if growth is None else None),
        Row(metric="honest_failed", value=len(tally.honest_failed), unit="requests", better="lower", must=0,
            n=tally.honest, reason=told(tally.honest_failed)),
        Row(metric="attacks_per_s", value=round(done / seconds, 1), unit="1/s", better="higher", n=done),
    ]
