"""Documents that were seen before: equal ones by hash, near ones by MinHash and the overlap of their five-grams.

Source: Broder 1997, "On the resemblance and containment of documents"; banding as in Leskovec et al., "Mining of
Massive Datasets", section 3.4.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from typing import Final

import numpy as np

from aios.training.sources import Document

NGRAM_WORDS: Final = 5
BANDS, ROWS_PER_BAND = 8, 4          # documents that share 60 % of their five-grams meet in half of all cases,
RESEMBLANCE_MAX: Final = 0.7         # those that share this much in 90 %; more is a duplicate
SKETCH_MAX: Final = 4096             # five-grams kept of a document, those with the lowest hashes: a fair sample
WORDS_MIN: Final = 20                # shorter documents are compared exactly only: "Yes, please." is no plagiarism
CANDIDATES_MAX: Final = 16           # of each band; a crowd that shares a band is one template

_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Return well-spread 64-bit hashes of 64-bit numbers (the finaliser of splitmix64)."""
    x = values.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


class Seen:
    """What was kept so far; asks of every new document whether it repeats that."""

    def __init__(self) -> None:
        rng = np.random.default_rng(20)
        self._salts = rng.integers(1, 2**63, size=BANDS * ROWS_PER_BAND, dtype=np.uint64)
        self._words: dict[str, int] = {}
        self._exact: set[bytes] = set()
        self._bands: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        self._sketches: list[np.ndarray] = []

    def repeats(self, document: Document) -> str | None:
        """Return "exact" or "near" if the document repeats one before; else remember it and return None."""
        text = "\n".join(document.lines)
        words = _WORD.findall(text.lower())
        # Text without words (a table of punctuation) is told apart by itself.
        digest = hashlib.blake2b((" ".join(words) or text).encode(), digest_size=16).digest()
        if digest in self._exact:
            return "exact"
        if len(words) >= WORDS_MIN and self._is_near(self._sketch(words)):
            return "near"
        self._exact.add(digest)
        return None

    def _sketch(self, words: list[str]) -> np.ndarray:
        """Return the sorted hashes of the document's five-grams, the lowest `SKETCH_MAX` of them."""
        known = self._words
        ids = _mixed(np.array([known.setdefault(word, len(known) + 1) for word in words], dtype=np.uint64))
        grams = np.zeros(len(ids) - NGRAM_WORDS + 1, dtype=np.uint64)
        for offset in range(NGRAM_WORDS):
            grams = grams * _MULTIPLIER + ids[offset:offset + len(grams)]
        return np.unique(_mixed(grams))[:SKETCH_MAX]

    def _is_near(self, sketch: np.ndarray) -> bool:
        minima = np.array([_mixed(sketch ^ salt).min() for salt in self._salts])
        keys = [(band, minima[band * ROWS_PER_BAND:(band + 1) * ROWS_PER_BAND].tobytes()) for band in range(BANDS)]
        candidates = {other for key in keys for other in self._bands.get(key, ())}
        if any(resemblance(sketch, self._sketches[other]) >= RESEMBLANCE_MAX for other in candidates):
            return True
        for key in keys:
            if len(self._bands[key]) < CANDIDATES_MAX:
                self._bands[key].append(len(self._sketches))
        self._sketches.append(sketch)
        return False


def resemblance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of common five-grams among all of two sketches (Jaccard)."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)
