"""How a valid file becomes a hostile one: noise anywhere, and lies where lengths, counts and offsets are written.

Every mutant follows from a random generator and the samples alone, so that a seed and a number name it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

GROWTH_BYTES_MAX = 4096         # what an extension or a repetition adds
NOISE_BYTES_MAX = 2048
RUN_BYTES_MAX = 64              # of one cut, repetition or overwrite
FLIPS_MAX = 8
LIES_MAX = 3

_EDGES: Final = tuple(sorted({
    (1 << bits) + off for bits in (0, 4, 7, 8, 14, 15, 16, 21, 28, 30, 31, 32, 35, 48, 53, 62, 63, 64)
    for off in (-1, 0, 1)}))
_NUMBER: Final = re.compile(rb"(?<![\w.])-?\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a number is written that others rely on: `length` bytes at `offset`.

    Encodings: "le" little-endian of fixed width; "zigzag" and "varint" as Thrift's compact protocol has them.
    """

    offset: int
    length: int
    encoding: str = "le"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A valid input, and where lies would hurt; `repair` makes checksums agree again after a lie."""

    name: str
    data: bytes
    sites: tuple[Site, ...] = ()
    repair: Callable[[bytes], bytes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A hostile input: the sample it came from, what was done to it, and its bytes."""

    sample: Sample
    kind: str
    data: bytes


def mutant(rng: random.Random, samples: Sequence[Sample]) -> Mutant:
    """One of the samples, damaged in one of the ways below."""
    sample = rng.choice(samples)
    kind = rng.choices(_NAMES, _WEIGHTS)[0]
    return Mutant(sample=sample, kind=kind, data=_KINDS[kind][0](rng, sample, samples))


def flip(data: bytes, bit: int) -> bytes:
    """The same bytes with bit number `bit` inverted."""
    damaged = bytearray(data)
    damaged[bit >> 3] ^= 1 << (bit & 7)
    return bytes(damaged)


def _flips(rng: random.Random, sample: Sample, samples: Sequence[Sample]) -> bytes:
    damaged = bytearray(sample.data)
    for _ in range(rng.randint(1, FLIPS_MAX) if damaged else 0):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _substitute(rng: random.Random, sample: Sample, samples: Sequence[Sample]) -> bytes:
    at, length = _run(rng, sample.data)
    fill = rng.choice([bytes(length), b"\xff" * length, b"\x80" * length, b"\x7f" * length, rng.randbytes(length)])
    return sample.data[:at] + fill + sample.data[at + length:]


def _truncate(rng: random.Random, sample: Sample, samples: Sequence[Sample]) -> bytes:
    return sample.data[:rng.randrange(len(sample.data) + 1)]


def _extend(rng: random.Random, sample: Sample, samples: Sequence[Sample]) -> bytes:
    more = rng.randint(1, GROWTH_BYTES_MAX)
    return sample.data + rng.choice([bytes(more), rng.randbytes(more), sample.data[:more]])


def _cut(rng: random.Random, sample: Sample, samples: Sequence[Sample]) -> bytes:
    at, length = _run(rng, sample.data)
    return sample.data[:at] + sample.data[at + length:]


def _repeat(rng: random.Random, sample: Sample, samples: Sequence[Sample]) -> bytes:
    at, length = _run(rng, sample.data)
    times = rng.choice([1, 2, GROWTH_BYTES_MAX // max(1, length)])
    return sample.data[:at] + sample.data[at:at + length] * times + sample.data[at:]


def _splice(rng: random.Random, sample: Sample, samples: Sequence[Sample]) -> bytes:
    other = rng.choice(samples).data
    ours, theirs = rng.randrange(len(sample.data) + 1), rng.randrange(len(other) + 1)
    if rng.random() < 0.5:                                     # a window of the other, in place
        theirs_end = min(len(other), theirs + rng.randint(1, RUN_BYTES_MAX))
        return sample.data[:ours] + other[theirs:theirs_end] + sample.data[ours + theirs_end - theirs:]
    return sample.data[:ours] + other[theirs:]


def _noise(rng: random.Random, sample: Sample, samples: Sequence[Sample]) -> bytes:
    keep = rng.choice([0, 0, 4, 8, 16])                        # behind the right magic it reaches further
    return sample.data[:keep] + rng.randbytes(rng.randrange(NOISE_BYTES_MAX))


def _lie(rng: random.Random, sample: Sample, samples: Sequence[Sample]) -> bytes:
    """Other numbers at sites that the sample names, else wherever digits stand."""
    if not sample.sites:
        return _lie_in_text(rng, sample.data)
    data, moved = sample.data, 0
    chosen = rng.sample(sample.sites, min(rng.randint(1, LIES_MAX), len(sample.sites)))
    for site in sorted(chosen, key=lambda one: one.offset):
        at = site.offset + moved
        told = encoded(edge(rng, len(data)), site)
        data = data[:at] + told + data[at + site.length:]
        moved += len(told) - site.length
    return data


def _lie_in_text(rng: random.Random, data: bytes) -> bytes:
    numbers = list(_NUMBER.finditer(data))
    if not numbers:
        return data + b"\0"
    for found in sorted(rng.sample(numbers, min(rng.randint(1, LIES_MAX), len(numbers))), key=lambda one: -one.start()):
        told = rng.choice([str(edge(rng, len(data))), f"-{edge(rng, len(data))}", "1e999", "0.5", "null", '"7"', "[]",
                           "true", "9" * 400]).encode()
        data = data[:found.start()] + told + data[found.end():]
    return data


def _repaired(rng: random.Random, sample: Sample, samples: Sequence[Sample]) -> bytes:
    """A lie or some noise behind checksums that agree."""
    make = rng.choices([_lie, _substitute, _flips, _cut, _repeat, _splice], [6, 1, 1, 1, 1, 1])[0]
    damaged = make(rng, sample, samples)
    return sample.repair(damaged) if sample.repair else damaged


def edge(rng: random.Random, size: int) -> int:
    """A number at which arithmetic or memory would give way, or one near the size of the input."""
    return rng.choice(_EDGES) if rng.random() < 0.7 else max(0, size + rng.randint(-70, 70) * rng.choice([1, 1, 64]))


def encoded(number: int, site: Site) -> bytes:
    """The number as the site writes it; what does not fit is cut to its low bits."""
    if site.encoding == "le":
        return (number & (1 << 8 * site.length) - 1).to_bytes(site.length, "little")
    number &= (1 << 64) - 1
    signed = number - (1 << 64) if number >> 63 else number
    return varint((signed << 1 ^ signed >> 63) & (1 << 64) - 1 if site.encoding == "zigzag" else number)


def varint(number: int) -> bytes:
    """Seven bits a byte, lowest first, the top bit of all but the last byte set."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _run(rng: random.Random, data: bytes) -> tuple[int, int]:
    at = rng.randrange(len(data) + 1)
    return at, min(rng.choice([1, 2, 4, 8, rng.randint(1, RUN_BYTES_MAX)]), len(data) - at)


Make = Callable[[random.Random, Sample, Sequence[Sample]], bytes]
_KINDS: Final[dict[str, tuple[Make, float]]] = {
    "flips": (_flips, 20), "substitute": (_substitute, 12), "truncate": (_truncate, 10), "extend": (_extend, 4),
    "cut": (_cut, 6), "repeat": (_repeat, 5), "splice": (_splice, 8), "noise": (_noise, 5), "lie": (_lie, 15),
    "repaired": (_repaired, 15),
}
_NAMES: Final = tuple(_KINDS)
_WEIGHTS: Final = tuple(weight for _, weight in _KINDS.values())
