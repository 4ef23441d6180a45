"""The Rust scanner against msgpack's own unpacker."""

from __future__ import annotations

import mmap
import random

import msgpack
import pytest

from aios._native import FrameScanner

ROUNDS = 2000


def wide() -> FrameScanner:
    return FrameScanner(1 << 20, 32, 1 << 16)


def thing(noise: random.Random, depth: int = 4):
    """A random value of every type that travels."""
    kind = noise.randrange(9 if depth else 7)
    size = noise.choice((0, 1, 5, 16, 40, 300) if depth == 4 else (0, 1, 3))
    simple = (None, True, noise.randint(-(2**63), 2**64 - 1), noise.randint(-40, 300), noise.random(),
              "ä" * size, bytes(size))
    if kind < 7:
        return simple[kind]
    inner = [thing(noise, depth - 1) for _ in range(noise.choice((0, 1, 2, 4, 17)))]
    return inner if kind == 7 else {str(i): value for i, value in enumerate(inner)}


def oracle(data: bytes) -> list[int]:
    """Where msgpack says that the objects in `data` end."""
    unpacker, ends = msgpack.Unpacker(strict_map_key=False), []
    unpacker.feed(data)
    while True:
        try:
            unpacker.skip()
        except msgpack.OutOfData:
            return ends
        ends.append(unpacker.tell())


def test_frames_end_where_msgpack_says():
    noise = random.Random(1)
    for _ in range(ROUNDS):
        data = b"".join(msgpack.packb(thing(noise)) for _ in range(3))
        cut = data[:noise.randrange(len(data) + 1)]
        assert wide().feed(data) == (oracle(data), None)
        assert wide().feed(cut) == (oracle(cut), None)


def test_random_bytes_end_where_msgpack_says_until_they_are_refused():
    noise = random.Random(2)
    for _ in range(ROUNDS):
        data = bytes(noise.choices(range(256), k=noise.randrange(40)))
        ends, fault = wide().feed(data)
        if fault is None:
            assert ends == oracle(data)
        elif not any(byte in data for byte in (0xc1, *range(0xc7, 0xca), *range(0xd4, 0xd9))):
            assert ends == oracle(data)[:len(ends)]
            assert "more than" in fault


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(data).cast("c")])
def test_any_contiguous_bytes_like_object_is_read(kind):
    assert wide().feed(kind(b"\x91\x01\x02")) == ([2, 3], None)


def test_a_map_of_memory_is_read_and_a_strided_view_is_refused():
    with mmap.mmap(-1, 4096) as memory:
        memory[:2] = b"\x91\x05"
        assert wide().feed(memory)[0][0] == 2
    with pytest.raises(BufferError):
        wide().feed(memoryview(b"abcdef")[::2])
    with pytest.raises(TypeError):
        wide().feed("text")


def test_nothing_fed_changes_nothing():
    scanner = wide()
    assert scanner.feed(b"") == ([], None)
    assert not scanner.partial


def test_a_depth_beyond_the_stack_is_no_setting():
    with pytest.raises(ValueError, match="depth_max"):
        FrameScanner(1, 65, 1)
