"""An n-gram model of a token stream, as the floor under a trained network; and what n-grams two texts share.

Interpolated Kneser-Ney smoothing with three discounts. Source: Chen and Goodman 1998, "An empirical study of smoothing
techniques for language modeling", section 4.1.6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aios.errors import BadInput
from aios.lab.statistics import Floats

ORDER: Final = 5
KEY_BITS: Final = 62            # an n-gram is one signed 64-bit number
HASH_BASE: Final = 0x9E3779B97F4A7C15   # odd, so that multiplying loses nothing modulo 2^64
HASH_CHUNK: Final = 1 << 22     # tokens at once: 32 MB of hashes

Ints = NDArray[np.int64]
Tokens = NDArray[np.uint16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """All n-grams of one length: sorted keys with their counts, and the same by context (all tokens but the last).

    first: where the n-grams of each context begin. total: their counts together. rest: share of the shorter context.
    """

    keys: Ints
    counts: NDArray[np.uint32]
    contexts: Ints
    first: Ints
    total: Floats
    rest: Floats
    discounts: Floats            # of n-grams counted 0, 1, 2, and 3 times or more

    @classmethod
    def of(cls, keys: Ints, counts: NDArray[np.uint32], vocab_size: int) -> Level:
        """Sorted distinct n-grams and their counts."""
        discounts = _discounts(counts)
        context = keys // vocab_size
        first = np.flatnonzero(np.append(True, context[1:] != context[:-1]))
        total = np.add.reduceat(counts, first, dtype=np.float64)
        taken = np.add.reduceat(discounts[np.minimum(counts, 3)], first)
        return cls(keys=keys, counts=counts, contexts=context[first], first=first, total=total, rest=taken / total,
                   discounts=discounts)

    def kept(self, at: Ints) -> Floats:
        """Counts of the n-grams with these numbers, less their discounts."""
        counts = self.counts[at]
        left: Floats = counts - self.discounts[np.minimum(counts, 3)]
        return left


class KneserNey:
    """Probabilities of the next token behind the last ones; they add up to one over `support`."""

    def __init__(self, levels: Sequence[Level], support: NDArray[np.bool_]) -> None:
        self.levels, self.support = tuple(levels), support
        self.vocab_size, self.order = len(support), len(levels)

    @classmethod
    def train(cls, tokens: Tokens, vocab_size: int, *, never: Sequence[int] = (), order: int = ORDER) -> KneserNey:
        """Count a stream; `never` ids have no probability, and do not occur in it. Takes about 50 bytes a token."""
        if order * int(vocab_size - 1).bit_length() > KEY_BITS:
            raise BadInput(f"{order}-grams of {vocab_size} tokens do not fit 64 bits", remedy="choose a lower order")
        support = np.ones(vocab_size, dtype=np.bool_)
        support[list(never)] = False
        keys = np.zeros(len(tokens) - order + 1, dtype=np.int64)
        for at in range(order):
            keys *= vocab_size
            keys += tokens[at:len(keys) + at]
        levels = []
        for length in range(order, 0, -1):
            keys.sort()
            keys, counts = _distinct(keys)
            levels.append(Level.of(keys, counts, vocab_size))
            keys = keys % vocab_size ** (length - 1)    # each distinct n-gram counts once for its ending
        return cls(levels[::-1], support)

    def nats(self, tokens: Tokens, start: int) -> Floats:
        """-log p of every token of a stream behind the order - 1 tokens before it, behind `start` at the beginning."""
        padded = np.concatenate([np.full(self.order - 1, start, dtype=np.int64), tokens.astype(np.int64)])
        p = self.support[tokens] / self.support.sum()
        key, scale = np.zeros(len(tokens), dtype=np.int64), 1
        for back, level in enumerate(self.levels):
            key += padded[self.order - 1 - back:len(padded) - back] * scale
            scale *= self.vocab_size
            context, known = _found(level.contexts, key // self.vocab_size)
            at, counted = _found(level.keys, key)
            own = np.where(counted, level.kept(at), 0.0) / level.total[context]
            p = np.where(known, own + level.rest[context] * p, p)
        found: Floats = -np.log(p)
        return found

    def distribution(self, contexts: Ints) -> Floats:
        """(b, vocab) probabilities of the token behind each row of (b, order - 1) tokens."""
        p = np.tile(self.support / self.support.sum(), (len(contexts), 1))
        key, scale = np.zeros(len(contexts), dtype=np.int64), 1
        for back, level in enumerate(self.levels):
            if back:
                key += contexts[:, -back] * scale
                scale *= self.vocab_size
            context, known = _found(level.contexts, key)
            rows, context = np.flatnonzero(known), context[known]
            p[rows] *= level.rest[context, None]
            ends = np.append(level.first, len(level.keys))[context + 1]
            sizes = ends - level.first[context]
            at = np.repeat(level.first[context] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
            share = level.kept(at) / np.repeat(level.total[context], sizes)
            p[np.repeat(rows, sizes), level.keys[at] % self.vocab_size] += share
        return p

    def continued(self, given: Ints, length: int, *, temperature: float, never: Sequence[int],
                  rng: np.random.Generator) -> Ints:
        """`length` tokens drawn behind each row of at least order - 1 given ones; `never` ids are not written."""
        rows = given.astype(np.int64)
        for _ in range(length):
            p = self.distribution(rows[:, -(self.order - 1):]) ** (1 / temperature)
            p[:, list(never)] = 0.0
            limits = p.cumsum(axis=1)
            drawn = (rng.random((len(rows), 1)) * limits[:, -1:] >= limits).sum(axis=1)
            rows = np.concatenate([rows, drawn[:, None]], axis=1)
        return rows[:, given.shape[1]:]


def _discounts(counts: NDArray[np.uint32]) -> Floats:
    """Discounts of counts 0 to 3 from how many n-grams occur once, twice, three and four times."""
    once, twice, thrice, four = (np.bincount(np.minimum(counts, 5), minlength=6)[1:5]).astype(float)
    found = np.array([0.0, 0.5, 1.0, 1.5])      # where there is too little to count them from
    if min(once, twice, thrice) > 0:
        share = once / (once + 2 * twice)
        found = np.array([0.0, 1 - 2 * share * twice / once, 2 - 3 * share * thrice / twice,
                          3 - 4 * share * four / thrice])
    return found.clip(0.0, np.array([0.0, 1.0, 2.0, 3.0]))


def _distinct(keys: Ints) -> tuple[Ints, NDArray[np.uint32]]:
    """Distinct values of sorted keys, and how often each occurs."""
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[first], np.diff(np.append(first, len(keys))).astype(np.uint32)


def _found(sorted_keys: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where each wanted key stands, and whether it does (elsewhere any place is given)."""
    at = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    return at, sorted_keys[at] == wanted


def overlaps(texts: Sequence[Ints], stream: Sequence[Tokens], n: int) -> list[float]:
    """For each text (rows of tokens) the share of its n-grams that occur in the stream, by 64-bit hashes."""
    wanted = [np.concatenate([_hashes(row, n) for row in rows]) for rows in texts]
    distinct = np.unique(np.concatenate(wanted))
    seen = np.zeros(len(distinct), dtype=np.bool_)
    for piece in (piece for tokens in stream for piece in _pieces(tokens, n)):
        hashes = _hashes(piece, n)
        at = np.minimum(np.searchsorted(distinct, hashes), len(distinct) - 1)
        seen[at[distinct[at] == hashes]] = True
    return [float(seen[np.searchsorted(distinct, hashes)].mean()) for hashes in wanted]


def distinct_share(rows: Ints, n: int) -> float:
    """Distinct n-grams of all rows for each n-gram of them."""
    grams = np.lib.stride_tricks.sliding_window_view(rows, n, axis=1).reshape(-1, n)
    return len(np.unique(grams, axis=0)) / len(grams)


def _pieces(tokens: Tokens, n: int) -> Iterator[Tokens]:
    for begin in range(0, len(tokens), HASH_CHUNK):
        yield tokens[begin:begin + HASH_CHUNK + n - 1]


def _hashes(tokens: NDArray[np.integer], n: int) -> NDArray[np.uint64]:
    """A polynomial hash of every n tokens in a row, modulo 2^64."""
    count = max(len(tokens) - n + 1, 0)
    found = np.zeros(count, dtype=np.uint64)
    for at in range(n):
        found = found * np.uint64(HASH_BASE) + tokens[at:at + count].astype(np.uint64) + np.uint64(1)
    return found
