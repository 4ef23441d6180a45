"""What a hostile client may send: one function a kind, each attack made from its own seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from aios.ipc.protocol import VERBS
from aios.ipc.stream import (
    FRAME_BYTES_MAX,
    FRAME_DEPTH_MAX,
    FRAME_ELEMENTS_MAX,
    Notification,
    Request,
    Response,
    encode,
)

Manner = Literal["wait", "half-close", "abrupt", "dribble", "deaf"]

RANDOM_BYTES_MAX = 4096
DEEP_MAX = 100_000               # levels; a recursive reader would have overflowed its stack long before
DEAF_REQUESTS = 4000             # of `api`, whose answers are far larger: more than any socket buffer
DRIBBLE_BYTES_MAX = 40           # sent one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """Bytes, and how the client behaves while and after it sends them.

    wait: keeps the connection open. half-close: sends no more. abrupt: is gone. dribble: byte by byte.
    deaf: never reads. `greeted`: says hello first, with a token for the scope ask.
    """

    kind: str
    payload: bytes
    manner: Manner = "wait"
    greeted: bool = False
    refused: bool = True         # every request in it must be answered with an error


_NO_TEXT: Final[list[Any]] = [5, True, b"bytes", [1], {"a": 1}, 1.5]
_NO_COUNT: Final[list[Any]] = ["x", 1.5, float("nan"), b"", [1], {}, -1, 1 << 63, True]
_SAMPLING: Final = ("modality", "model", "length", "steps", "sampler", "temperature", "seed", "deadline_ms")

HONEST: Final[dict[str, dict[str, Any]]] = {
    "generate": {"prompt": "x"}, "diffuse": {"prompt": "x"}, "infill": {"prefix": "x", "suffix": "y"},
    "encode": {"texts": ["x"]},
    "cancel": {"msgid": 1}, "hello": {}}
HONEST_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "generate": ("prompt", "messages", "system", "model", "max_tokens", "temperature", "top_k", "top_p", "min_p",
                 "repetition_penalty", "stop", "seed", "raw", "deadline_ms"),
    "diffuse": ("prompt", "messages", "system", "size", "voice_id", *_SAMPLING),
    "infill": ("prefix", "suffix", *_SAMPLING),
    "encode": ("texts", "model", "deadline_ms"), "cancel": ("msgid",), "hello": ("protocol", "token", "client")}
WRONG: Final[dict[str, list[Any]]] = {
    "prompt": [*_NO_TEXT, None, "x" * ((1 << 20) + 1)], "prefix": [*_NO_TEXT, None], "suffix": [*_NO_TEXT, None],
    "voice_id": _NO_TEXT, "modality": [*_NO_TEXT, "", "smell", "text\0"], "sampler": [*_NO_TEXT, "", "nope"],
    "model": [*_NO_TEXT, "../../../etc/passwd", "/dev/zero", "x" * 5000, "\0"],
    "length": [*_NO_COUNT, 0, 1 << 20], "steps": [*_NO_COUNT, 0, 1 << 20], "seed": _NO_COUNT,
    "deadline_ms": [*_NO_COUNT, 0], "temperature": ["x", float("nan"), float("inf"), -1.0, [], True],
    "system": _NO_TEXT, "messages": ["x", 5, None, [1], [{}], [{"role": "god", "content": "x"}], [{"role": "user"}],
                                     [{"role": "user", "content": 5}], [{"role": "user", "content": "x"}] * 2000],
    "max_tokens": [*_NO_COUNT, 0, 1 << 30], "top_k": [*_NO_COUNT, 1 << 30], "raw": ["x", 5, [1], 1.5, {}],
    "stop": ["x", 5, [1], [""], ["x" * 300], ["x"] * 50, [b"bytes"]],
    "top_p": ["x", float("nan"), 0.0, 1.5, -1.0, [], True], "min_p": ["x", float("nan"), 1.5, -1.0, [], True],
    "repetition_penalty": ["x", float("nan"), 0.0, 1e9, [], True],
    "size": [[1], [1, 2, 3], ["a", "b"], 5, "big"],
    "texts": ["x", 5, None, [1], [None], {"a": 1}, ["a"] * 5000, [b"bytes"], [["a"]]],
    "msgid": [None, "x", [1], 1.5], "protocol": ["one", 2, None, [1]], "token": [5, [1], b"bytes"], "client": [5, None]}

Make = Callable[[random.Random], Attack]


def attack(seed: int, number: int) -> Attack:
    """The attack of this number in the campaign of this seed."""
    noise = random.Random(f"{seed}:{number}")
    make = noise.choices(list(KINDS), weights=list(KINDS.values()))[0]
    return make(noise)


def honest(noise: random.Random) -> bytes:
    """A frame to damage."""
    verb = noise.choice(["ping", "api", "status", *HONEST])
    return request(noise, verb, HONEST.get(verb, {}))


def request(noise: random.Random, verb: str, *params: Any) -> bytes:
    """One request with a msgid of its own."""
    return encode(Request(msgid=noise.randrange(1 << 32), verb=verb, params=[p for p in params if p != {}]))


def malformed(noise: random.Random) -> Attack:
    """An honest frame with bytes changed, removed, doubled or put in."""
    data = bytearray(honest(noise))
    for _ in range(noise.randint(1, 4)):
        at = noise.randrange(len(data))
        match noise.randrange(4):
            case 0:
                data[at] ^= 1 << noise.randrange(8)
            case 1:
                data[at:at + 1] = b""
            case 2:
                data[at:at] = data[at:at + noise.randint(1, 8)]
            case _:
                data[at:at] = noise.randbytes(noise.randint(1, 8))
        data = data or bytearray(b"\xc1")
    return Attack(kind="malformed", payload=bytes(data), manner="half-close", refused=False)


def random_bytes(noise: random.Random) -> Attack:
    """Noise."""
    data = noise.randbytes(noise.randint(1, RANDOM_BYTES_MAX))
    return Attack(kind="random", payload=data, manner="half-close", refused=False)


def oversized(noise: random.Random) -> Attack:
    """A frame that really is too large, made of honest parts."""
    part = noise.choice([b"\xc6" + (1 << 20).to_bytes(4) + bytes(1 << 20), b"\xd9\xff" + b"a" * 255])
    count = FRAME_BYTES_MAX // len(part) + 1
    body = (b"\xdc" + min(count, 0xFFFF).to_bytes(2)) + part * count
    return Attack(kind="oversized", payload=b"\x94\x00\x01\xa4ping" + body, greeted=noise.random() < 0.5)


def declared(noise: random.Random) -> Attack:
    """A header that promises more than any frame may hold, and little or nothing behind it."""
    header, least, most = noise.choice([
        (0xC6, FRAME_BYTES_MAX, 1 << 32), (0xDB, FRAME_BYTES_MAX, 1 << 32),
        (0xDD, FRAME_ELEMENTS_MAX, 1 << 32), (0xDF, FRAME_ELEMENTS_MAX // 2, 1 << 32)])
    lie = bytes([header]) + noise.randrange(least, most).to_bytes(4)
    before = noise.choice([b"", b"\x94\x00\x01\xa4ping", b"\x94\x00", b"\x94\x00\x01\xa4ping\x91"])
    return Attack(kind="declared", payload=before + lie + noise.randbytes(noise.randrange(64)))


def crowded(noise: random.Random) -> Attack:
    """More objects than a frame may hold, each of one byte: small to send, large to build."""
    inner = noise.choice([b"\x80", b"\x90", b"\xc0"])
    many = b"\xdc\xff\xff" + inner * 0xFFFF
    return Attack(kind="crowded", payload=b"\x94\x00\x01\xa4ping\x92" + many * 2)


def deep(noise: random.Random) -> Attack:
    """Lists and maps inside one another, from one level too many to very many."""
    levels = noise.choice([FRAME_DEPTH_MAX, FRAME_DEPTH_MAX + 1, 1000, noise.randint(FRAME_DEPTH_MAX, DEEP_MAX)])
    shell = noise.choice([b"\x91", b"\x81\xa1a", b"\xdc\x00\x01", b"\xdf\x00\x00\x00\x01\x01"])
    return Attack(kind="deep", payload=b"\x94\x00\x01\xa4ping" + shell * levels + b"\xc0",
                  greeted=noise.random() < 0.3)


def truncated(noise: random.Random) -> Attack:
    """An honest frame that ends in the middle; some wait for an answer to it."""
    frame = honest(noise)
    manners: list[Manner] = ["half-close", "abrupt", "wait"]
    manner = noise.choices(manners, weights=[70, 28, 2])[0]
    return Attack(kind="truncated", payload=frame[:noise.randrange(1, len(frame))], manner=manner,
                  greeted=noise.random() < 0.2)


def disconnected(noise: random.Random) -> Attack:
    """Gone in the middle of a large frame, or while requests run."""
    if noise.random() < 0.5:
        payload = b"\x94\x00\x01\xa6encode\x91\xc6" + (1 << 20).to_bytes(4) + bytes(noise.randrange(1 << 18))
        return Attack(kind="disconnected", payload=payload, manner="abrupt")
    payload = b"".join(request(noise, "diffuse", {"prompt": "x", "length": 8, "stream": True})
                       for _ in range(noise.randint(1, 5)))
    return Attack(kind="disconnected", payload=payload, manner="abrupt", greeted=True)


def slow(noise: random.Random) -> Attack:
    """A frame byte by byte; half of them never finish it."""
    frame = request(noise, "status")
    if noise.random() < 0.5:
        return Attack(kind="slow", payload=frame, manner="dribble")
    return Attack(kind="slow", payload=frame[:noise.randrange(1, len(frame))], manner="dribble")


def deaf(noise: random.Random) -> Attack:
    """Asks for much and never reads it."""
    payload = b"".join(encode(Request(msgid=number, verb="api", params=[])) for number in range(DEAF_REQUESTS))
    return Attack(kind="deaf", payload=payload, manner="deaf", greeted=True)


def unknown_verb(noise: random.Random) -> Attack:
    """A verb that does not exist, with a name of any kind and length."""
    name = noise.choice(["", "PING", "ping\0", "__class__", "plugins", "../ping", "ä" * noise.randint(1, 5000),
                         noise.randbytes(8).hex()])
    return Attack(kind="verb", payload=request(noise, name, {}), greeted=noise.random() < 0.5)


def wrong_types(noise: random.Random) -> Attack:
    """An existing verb with params of the wrong shape, or one field of the wrong type, size or meaning."""
    verb = noise.choice(list(HONEST))
    if noise.random() < 0.2:
        params: list[Any] = noise.choice([[1], [None], [{}, {}], [[]], ["x"], [{"prompt": "x"}, 1], [b""], [[{}]]])
    else:
        name = noise.choice([name for name in WRONG if name in HONEST_FIELDS[verb]])
        params = [{**HONEST[verb], name: noise.choice(WRONG[name])}]
    payload = encode(Request(msgid=noise.randrange(1 << 32), verb=verb, params=params))
    return Attack(kind="types", payload=payload, greeted=True)


def bad_token(noise: random.Random) -> Attack:
    """Hello with what is no token, or another verb without hello."""
    if noise.random() < 0.4:
        closed = [verb.name for verb in VERBS.values() if verb.scope != "none"]
        return Attack(kind="token", payload=request(noise, noise.choice(closed), {}))
    token = noise.choice(["", "owner", noise.randbytes(32).hex(), "x" * 100_000, "\0", "ä"])
    fields = noise.choice([{"token": token}, {"token": 5}, {"token": None, "protocol": 99}, {"token": b"bytes"}])
    return Attack(kind="token", payload=request(noise, "hello", fields))


def forbidden(noise: random.Random) -> Attack:
    """A verb beyond the scope of the token."""
    verb = noise.choice([verb.name for verb in VERBS.values() if verb.scope in ("plugins", "admin")])
    return Attack(kind="scope", payload=request(noise, verb, {"name": "x"}), greeted=True)


def backwards(noise: random.Random) -> Attack:
    """What only a daemon sends, msgids twice, or objects that are no message."""
    payload = noise.choice([
        encode(Response(msgid=1, error=None, result="pong")),
        encode(Request(msgid=5, verb="diffuse", params=[{"prompt": "x"}])) * 2,
        encode(Notification(method="state", params=[1, {}])) + b"\xc1",
        b"\x93\x00\x01\xa4ping", b"\x80", b"\xc0", b"\x94\x03\x01\xa4ping\x90", b"\x94\x00\xff\xa4ping\x90",
        b"\x94\x00\x01\xa2\xff\xfe\x90", b"\x94\x00\x01\xa4ping\x91\x81\x01\x01", b"\xd6\xff\x00\x00\x00\x00",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b'{"jsonrpc": "2.0", "method": "ping", "id": 1}'])
    return Attack(kind="backwards", payload=payload, greeted=True, refused=False)


KINDS: Final[dict[Make, float]] = {
    malformed: 20, random_bytes: 15, declared: 12, deep: 8, truncated: 12, wrong_types: 12, unknown_verb: 6,
    bad_token: 6, forbidden: 3, backwards: 6, disconnected: 4, slow: 1, crowded: 1, oversized: 0.3, deaf: 0.2,
}
