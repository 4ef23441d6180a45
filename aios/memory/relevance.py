"""Which of the memories near a query matter for it: features of each beside the others, and a scorer that is learned.

The nearest sentences are often alike in everything but a name or a number, which a sentence encoder hardly sees; so a
memory is judged beside the other candidates: a word that all of them hold says nothing, a rare one nearly all.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from aios.errors import BadInput
from aios.memory.record import Memory
from aios.text.passages import words

Task = Literal["answer", "write"]      # a question that a memory may answer, or a text that it may furnish
Floats64 = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: What is known of a candidate; those "beside" say how far it lies behind the best one.
FEATURES: Final = ("similarity", "similarity_beside", "overlap", "overlap_beside", "coverage", "coverage_beside",
                   "names", "names_beside", "recency", "tags", "write", "write_similarity")
TEXT_CHARS_MAX: Final = 8192           # of a text that is compared word by word; a passage is far shorter
WEIGHTS: Final = Path(__file__).with_name("relevance.json")
VERSION: Final = 1
FIT_ROUNDS_MAX: Final = 50             # Newton's method on a convex function of a dozen weights takes about eight
FIT_ENOUGH: Final = 1e-8
LOG_ODDS_MAX: Final = 30.0             # beyond it a probability is 0 or 1 in double precision
_WORD: Final = re.compile(r"[^\W_]+")
#: English words that a question is made of; they say nothing about what is asked for.
_ASKING: Final = frozenset(re.findall(r"\S+", """
    a about an and any are as at be by can could did do does for from has have he her him his how i if in is it its
    know like me of on or out please remember she so tell that the their them there they this to was we were what
    when where which who whom whose why will with would you your"""))


def names(text: str) -> frozenset[str]:
    """Words that stand for one thing: with a digit, or capitalised inside of a sentence."""
    text, end, found = text[:TEXT_CHARS_MAX], 0, set()
    for match in _WORD.finditer(text):
        word, between = match[0], text[end:match.start()].strip(" \t\"'(")
        inside, end = end > 0 and between[-1:] not in (*".!?:\n",), match.end()
        if any(letter.isdigit() for letter in word) or (inside and word[0].isupper() and len(word) > 1):
            found.add(word.casefold())
    return frozenset(found)


def features(query: str, candidates: Sequence[Memory], task: Task) -> Floats64:
    """One row of `FEATURES` for each candidate, each of which has its similarity as `score`."""
    count = len(candidates)
    table = np.zeros((count, len(FEATURES)))
    if not count:
        return table
    asked, named = dict.fromkeys(words(query[:TEXT_CHARS_MAX])), names(query)
    held = [frozenset(words(one.text[:TEXT_CHARS_MAX])) for one in candidates]
    similarity = np.array([one.score or 0.0 for one in candidates])
    overlap = _overlap(list(asked), held)
    telling = [word for word in asked if word not in _ASKING]
    coverage = _share(telling, held)
    columns: dict[str, Floats64] = {
        "similarity": similarity, "overlap": overlap, "coverage": coverage, "names": _share(sorted(named), held),
        "recency": _recency([one.time for one in candidates]),
        "tags": np.array([_tagged(one.tags, asked) for one in candidates]),
        "write": np.full(count, float(task == "write")), "write_similarity": similarity * (task == "write")}
    for name in ("similarity", "overlap", "coverage", "names"):
        columns[f"{name}_beside"] = columns[name] - columns[name].max()
    for index, name in enumerate(FEATURES):
        table[:, index] = columns[name]
    return table


def _overlap(asked: Sequence[str], held: Sequence[frozenset[str]]) -> Floats64:
    """The share of the query's words that a candidate holds, weighed by their rarity among the candidates.

    Source: Robertson and Zaragoza 2009, "The probabilistic relevance framework: BM25 and beyond", eq. 3.3.
    """
    count = len(held)
    seen = Counter(word for one in held for word in asked if word in one)
    weight = {word: math.log1p((count - seen[word] + 0.5) / (seen[word] + 0.5)) for word in asked if seen[word]}
    total = sum(weight.values()) or 1.0
    return np.array([sum(value for word, value in weight.items() if word in one) / total for one in held])


def _share(wanted: Sequence[str], held: Sequence[frozenset[str]]) -> Floats64:
    """The share of some words that each candidate holds."""
    return np.array([sum(word in one for word in wanted) / max(1, len(wanted)) for one in held])


def _recency(times: Sequence[datetime]) -> Floats64:
    """The rank of each time among the candidates', 0 oldest to 1 newest: of two that contradict, the newer holds."""
    order = sorted(range(len(times)), key=times.__getitem__)
    ranks = np.zeros(len(times))
    ranks[order] = np.arange(len(times)) / max(1, len(times) - 1)
    return ranks


def _tagged(tags: Sequence[str], asked: Mapping[str, None]) -> float:
    return sum(any(word in asked for word in words(tag)) for tag in tags) / max(1, len(tags))


class Scorer(Protocol):
    """What tells how much a memory matters; learned, and exchangeable."""

    def log_odds(self, table: Floats64, /) -> Floats64:
        """(n, features) -> (n,) log-odds that each matters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logistic:
    """Logistic regression: log-odds = weights . features + bias."""

    weights: tuple[float, ...]
    bias: float

    @classmethod
    def plain(cls) -> Logistic:
        """One that has learned nothing."""
        return cls(weights=(0.0,) * len(FEATURES), bias=0.0)

    def log_odds(self, table: Floats64, /) -> Floats64:
        """(n, features) -> (n,) log-odds that each matters."""
        odds: Floats64 = np.clip(table @ np.array(self.weights) + self.bias, -LOG_ODDS_MAX, LOG_ODDS_MAX)
        return odds

    def fitted(self, table: Floats64, matters: Flags, *, steadiness: float) -> Logistic:
        """The most probable weights given labelled rows, where these ones are the prior's mean.

        steadiness: the prior's precision: how many observations' worth it holds on to what it is. Newton's method on
        the penalised likelihood; source: Bishop 2006, "Pattern recognition and machine learning", section 4.3.3.
        """
        rows = np.concatenate((table, np.ones((len(table), 1))), axis=1)
        prior = np.array([*self.weights, self.bias])
        now = prior.copy()
        for _ in range(FIT_ROUNDS_MAX):
            chance = 1.0 / (1.0 + np.exp(-np.clip(rows @ now, -LOG_ODDS_MAX, LOG_ODDS_MAX)))
            slope = rows.T @ (chance - matters) + steadiness * (now - prior)
            curve = (rows * (chance * (1.0 - chance))[:, None]).T @ rows + steadiness * np.eye(len(now))
            step = np.linalg.solve(curve, slope)
            now -= step
            if float(np.abs(step).max()) < FIT_ENOUGH:
                break
        return Logistic(weights=tuple(float(one) for one in now[:-1]), bias=float(now[-1]))

    def to_json(self, facts: Mapping[str, Any]) -> bytes:
        """As it is kept, with what is known of its making."""
        named = {name: round(weight, 6) for name, weight in zip(FEATURES, self.weights, strict=True)}
        told = {"version": VERSION, "kind": "logistic", "weights": named, "bias": round(self.bias, 6), **facts}
        return msgspec.json.format(msgspec.json.encode(told)) + b"\n"

    @classmethod
    def from_json(cls, raw: bytes) -> Logistic:
        """What `to_json` made; BadInput where it is something else."""
        try:
            told = msgspec.json.decode(raw, type=_Kept)
            if told.version != VERSION or told.kind != "logistic" or told.weights.keys() != set(FEATURES):
                raise ValueError("it scores by other features")
            values = [*told.weights.values(), told.bias]
            if not all(math.isfinite(value) for value in values):
                raise ValueError("a weight is no number")
        except (msgspec.MsgspecError, ValueError, UnicodeDecodeError) as error:
            raise BadInput(f"this is no scorer of memories: {error}", remedy="make one: aios train memory") from error
        return cls(weights=tuple(told.weights[name] for name in FEATURES), bias=told.bias)


class _Kept(msgspec.Struct, frozen=True):
    version: int
    kind: str
    weights: dict[str, float]
    bias: float


@cache
def shipped() -> Logistic:
    """The scorer that AIOS brings."""
    return Logistic.from_json(WEIGHTS.read_bytes())


def best_first(scorer: Scorer, query: str, candidates: Sequence[Memory], task: Task) -> list[tuple[Memory, float]]:
    """Candidates with the probability that they matter, the most probable first."""
    odds = scorer.log_odds(features(query, candidates, task))
    chances = 1.0 / (1.0 + np.exp(-odds))
    order = np.argsort(-odds, kind="stable")
    return [(candidates[index], float(chances[index])) for index in order]
