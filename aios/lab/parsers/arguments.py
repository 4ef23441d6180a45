"""Wrong arguments for native functions: every type, shape, stride, size and lifetime that Python can express."""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from aios.lab.parsers.mutations import edge

GUARD_BYTES = 64
GUARD: Final = bytes(range(0xA0, 0xA0 + GUARD_BYTES))
HUGE_AXIS = 1 << 40            # of an array without elements, or with one that is repeated
ARRAY_ITEMS_MAX = 1 << 20
REPLACED_MAX = 3               # arguments of one call that are wrong at once
TEXT_MAX = 1 << 16


class Overrun(Exception):
    """A native function wrote outside of an array it was given."""


class Guarded:
    """Arrays inside larger buffers whose edges are known, so that a write beside an array is found."""

    def __init__(self) -> None:
        self._buffers: list[bytearray] = []

    def array(self, content: NDArray[Any]) -> NDArray[Any]:
        """A writable copy between two guards."""
        buffer = bytearray(GUARD + content.tobytes() + GUARD)
        self._buffers.append(buffer)
        inside = np.frombuffer(buffer, content.dtype, content.size, GUARD_BYTES)
        return inside.reshape(content.shape)

    def check(self) -> None:
        """Raise Overrun if a guard has changed."""
        if any(buffer[:GUARD_BYTES] != GUARD or buffer[-GUARD_BYTES:] != GUARD for buffer in self._buffers):
            raise Overrun("an array's surroundings were overwritten")


class Liar:
    """An object whose every protocol answers with an error or a lie."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __index__(self) -> int:
        return self._number

    def __float__(self) -> float:
        return float("nan")

    def __len__(self) -> int:
        return 1 << 62

    def __iter__(self) -> Iterator[object]:
        yield self
        raise ValueError("no more")

    def __getitem__(self, key: object) -> NoReturn:
        raise KeyError(key)

    def __bool__(self) -> bool:
        raise ValueError("neither")

    def __fspath__(self) -> str:
        return "a\0b"


def distorted(rng: random.Random, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """A valid call's arguments with some of them, at any depth, replaced by wrong ones."""
    for _ in range(rng.randint(1, REPLACED_MAX)):
        leaves = list(_leaves(arguments))
        if leaves:
            path, value = rng.choice(leaves)
            alias = rng.choice(leaves)[1]          # the same array twice, or an argument in another's place
            arguments = _replaced(arguments, path, alias if rng.random() < 0.1 else wrong(rng, value))
    if rng.random() < 0.03:
        arguments = arguments[:rng.randrange(len(arguments) + 1)] + (None,) * rng.randrange(3)
    return arguments


def _leaves(value: Any, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Every argument that is no tuple, with its place; tuples themselves too, now and then worth replacing."""
    if isinstance(value, tuple):
        if path:
            yield path, value
        for index, one in enumerate(value):
            yield from _leaves(one, (*path, index))
    else:
        yield path, value


def _replaced(value: Any, path: tuple[int, ...], new: Any) -> Any:
    if not path:
        return new
    return (*value[:path[0]], _replaced(value[path[0]], path[1:], new), *value[path[0] + 1:])


def wrong(rng: random.Random, value: Any) -> Any:
    """Something else in the place of `value`: mostly of its own type, which gets further than another one."""
    if rng.random() < 0.3:
        return anything(rng)
    if isinstance(value, np.ndarray):
        return wrong_array(rng, value)
    if isinstance(value, bool) or value is None:
        return anything(rng)
    if isinstance(value, int):
        return rng.choice([edge(rng, value), -edge(rng, value), value + rng.choice([-1, 1, 31, 32]), 0])
    if isinstance(value, str):
        return wrong_text(rng, value)
    if isinstance(value, bytes | bytearray | memoryview):
        return wrong_bytes(rng, bytes(value))
    return anything(rng)


def anything(rng: random.Random) -> Any:
    """A value of any type."""
    return _ANYTHING[rng.randrange(len(_ANYTHING))](rng)


_ANYTHING: Final[tuple[Callable[[random.Random], Any], ...]] = (
    lambda rng: None, lambda rng: True, lambda rng: edge(rng, 0), lambda rng: -edge(rng, 0), lambda rng: 1e308,
    lambda rng: float("nan"), lambda rng: "", lambda rng: "x\0y", lambda rng: "\ud800", lambda rng: "ä" * TEXT_MAX,
    lambda rng: b"", lambda rng: rng.randbytes(rng.randrange(300)), lambda rng: bytearray(3), lambda rng: [],
    lambda rng: [1, 2, 3], lambda rng: [None] * 1000, lambda rng: {}, lambda rng: {"a": [1]}, lambda rng: (),
    lambda rng: (1, 2), lambda rng: (1,) * 9, lambda rng: object(), lambda rng: Liar(edge(rng, 0)), lambda rng: Liar,
    lambda rng: 1j, lambda rng: range(1 << 60), lambda rng: np.float32(1), lambda rng: np.int64(-1),
    lambda rng: np.zeros(0, np.uint8), lambda rng: np.zeros((0, HUGE_AXIS), np.float32),
    lambda rng: np.broadcast_to(np.zeros(1, np.uint8), (HUGE_AXIS,)), lambda rng: np.zeros((2, 3, 4, 5)),
    lambda rng: np.array([object(), None]), lambda rng: np.zeros(3, "S5"), lambda rng: np.zeros(2, "M8[s]"),
    lambda rng: np.zeros(2, [("a", "u1"), ("b", "f4")]), lambda rng: memoryview(b"abcdef")[::2],
    lambda rng: mmap.mmap(-1, 4096), lambda rng: _released(),
    lambda rng: memoryview(bytes(12)).cast("B", (2, 6)), lambda rng: memoryview(bytes(16)).cast("d"),
)


def _released() -> memoryview:
    view = memoryview(bytearray(8))
    view.release()
    return view


def wrong_array(rng: random.Random, array: NDArray[Any]) -> Any:
    """The array with another shape, stride, type, byte order, alignment, length, content or protection."""
    if array.size > ARRAY_ITEMS_MAX or not array.ndim:      # one that was made huge before
        return anything(rng)
    try:
        return _ARRAYS[rng.randrange(len(_ARRAYS))](rng, array)
    except (TypeError, ValueError):      # an array of objects, dates or records knows not all of this
        return anything(rng)


def _misaligned(array: NDArray[Any]) -> NDArray[Any]:
    buffer = bytearray(array.nbytes + 1)
    return np.frombuffer(buffer, array.dtype, array.size, 1).reshape(array.shape)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def _other_values(rng: random.Random, array: NDArray[Any]) -> NDArray[Any]:
    return np.frombuffer(bytearray(rng.randbytes(array.nbytes)), array.dtype).reshape(array.shape)


def _spaced(array: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array


def _longer(array: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([array.ravel(), array.ravel()[:1]]) if array.size else np.zeros(1, array.dtype)


_ARRAYS: Final[tuple[Callable[[random.Random, NDArray[Any]], Any], ...]] = (
    lambda rng, a: a.ravel()[:-1], lambda rng, a: _longer(a), lambda rng, a: a.ravel()[:rng.randrange(a.size + 1)],
    lambda rng, a: a[..., None], lambda rng, a: a[None], lambda rng, a: a.ravel(), lambda rng, a: a.T.copy(),
    lambda rng, a: np.asfortranarray(np.atleast_2d(a)), lambda rng, a: a.ravel()[::-1], lambda rng, a: _spaced(a),
    lambda rng, a: a[:0], lambda rng, a: a.reshape(()) if a.size == 1 else a.ravel()[:1].sum(),
    lambda rng, a: np.zeros((0, HUGE_AXIS), a.dtype), lambda rng, a: np.broadcast_to(a.ravel()[:1], a.shape),
    lambda rng, a: a.astype(rng.choice(["u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8", "c8", "?"])),
    lambda rng, a: a.astype(a.dtype.newbyteorder(">")), lambda rng, a: a.astype(object), lambda rng, a: _misaligned(a),
    lambda rng, a: _read_only(a), lambda rng, a: _other_values(rng, a), lambda rng, a: _other_values(rng, a),
    lambda rng, a: a.data, lambda rng, a: a.tobytes(), lambda rng, a: bytearray(a.tobytes()),
    lambda rng, a: a.tolist(), lambda rng, a: [a, a], lambda rng, a: np.concatenate([a.ravel()] * 3),
    lambda rng, a: np.full_like(a, np.inf if a.dtype.kind == "f" else 255 if a.dtype.itemsize == 1 else 31744),
    lambda rng, a: np.full_like(a, np.nan if a.dtype.kind == "f" else 0),
)


def wrong_text(rng: random.Random, text: str) -> Any:
    """The text cut, continued, with odd characters, or as bytes."""
    text = text[:TEXT_MAX // 300]                  # it may have been made long before
    at = rng.randrange(len(text) + 1)
    return rng.choice([text[:at], text + "\0", text[:at] + rng.choice("\udc80ä/.\n") + text[at:], text * 300,
                       text.upper(), text.encode(errors="replace"), [text], "./" + text])


def wrong_bytes(rng: random.Random, data: bytes) -> Any:
    """The bytes cut, doubled, damaged, or behind another kind of buffer."""
    at = rng.randrange(len(data) + 1)
    return rng.choice([data[:at], data + data, data[at:], rng.randbytes(len(data)), bytearray(data[:at]),
                       memoryview(data)[::2], np.frombuffer(data, np.uint8), np.frombuffer(data, np.uint8)[::-1],
                       data.decode("latin-1"), list(data[:8])])


def wrong_keywords(rng: random.Random, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords with one value replaced, left out, or an unknown one beside them."""
    chosen = {name: value for name, value in keywords.items() if rng.random() < 0.8}
    if chosen and rng.random() < 0.5:
        name = rng.choice(sorted(chosen))
        chosen[name] = wrong(rng, chosen[name])
    if rng.random() < 0.02:
        chosen["no_such_keyword"] = 1
    return chosen
