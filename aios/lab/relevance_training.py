"""How the scorer of memories learns: made-up stores of facts, a question about one of each, and which fact it is.

The facts are those of `aios.training.fact_sources`; `aios eval memory` asks with other templates and other values.
Some facts were told again later with another value, and some questions nobody can answer: the scorer learns to
prefer what is new, and to be sure of nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aios.memory.conditioner import CANDIDATES
from aios.memory.record import Memory
from aios.memory.relevance import FEATURES, Flags, Floats64, Logistic, Task, features
from aios.training.fact_sources import KINDS, Fact

Encode = Callable[[Sequence[str]], NDArray[np.float32]]

STORES, STORES_QUICK = 24, 6
FACTS: Final = 100               # of one store
ALIKE_SHARE: Final = 0.7         # of a store's facts that are of one kind
QUESTIONS: Final = 16            # about one store
AGAIN_SHARE: Final = 0.3         # of the facts asked for that were told before with another value
UNKNOWN_SHARE: Final = 0.15      # of the questions that nothing answers
TAGGED_SHARE: Final = 0.3
WRITE_SHARE: Final = 0.2         # of the queries that ask for a text instead of an answer
HELD_OUT_EVERY: Final = 6        # stores: one of so many is not learned from
STEADINESS: Final = 1.0          # one observation's worth: enough that weights of useless features stay small
_NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
_WRITE: Final = ("Write a few lines about {}.", "A short note on {}:", "Mention {} in a letter to a friend.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The scorer, and how often it ranks the right fact first in stores that it did not learn from."""

    scorer: Logistic
    first_percent: float
    nearest_percent: float       # the same by similarity alone
    questions: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A judged query: one row of features for each candidate, and which of them matter."""

    table: Floats64
    matters: Flags


def train(encode: Encode, seed: int, *, stores: int = STORES,
          progress: Callable[[float], None] = lambda share: None) -> Trained:
    """Learn from `stores` made-up stores; the same seed and encoder give the same scorer."""
    learned: list[Question] = []
    held_out: list[Question] = []
    for number in range(stores):
        progress(number / stores)
        (held_out if number % HELD_OUT_EVERY == 0 else learned).extend(
            questions(encode, random.Random(f"store {seed} {number}")))
    table = np.concatenate([one.table for one in learned])
    matters = np.concatenate([one.matters for one in learned])
    scorer = Logistic.plain().fitted(table, matters, steadiness=STEADINESS)
    answered = [one for one in held_out if one.matters.any()]
    similarity = FEATURES.index("similarity")
    first = [bool(one.matters[np.argmax(scorer.log_odds(one.table))]) for one in answered]
    nearest = [bool(one.matters[np.argmax(one.table[:, similarity])]) for one in answered]
    return Trained(scorer=scorer, first_percent=100 * float(np.mean(first)), questions=len(answered),
                   nearest_percent=100 * float(np.mean(nearest)), rows=len(table))


def questions(encode: Encode, rng: random.Random) -> list[Question]:
    """Questions about one store of facts."""
    facts = _facts(rng)
    asked = rng.sample(facts, QUESTIONS)
    again = {fact.key: _retold(fact, rng) for fact in asked if rng.random() < AGAIN_SHARE}
    told = [*facts, *(fact for fact in again.values() if fact is not None)]
    tasks: list[Task] = ["write" if rng.random() < WRITE_SHARE else "answer" for _ in asked]
    queries = [rng.choice(_WRITE).format(fact.key) if task == "write" else fact.asked
               for fact, task in zip(asked, tasks, strict=True)]
    vectors = encode([fact.told for fact in told])
    memories = [_memory(number, fact, rng) for number, fact in enumerate(told, start=1)]
    for number, fact in enumerate(told[len(facts):], start=len(facts)):     # told before the fact that holds
        holds = next(index for index, one in enumerate(facts) if one.key == fact.key)
        earlier, later = sorted((memories[number].time, memories[holds].time))
        memories[number] = replace(memories[number], time=earlier)
        memories[holds] = replace(memories[holds], time=later + timedelta(seconds=1))
    found = []
    for fact, query, task, vector in zip(asked, queries, tasks, encode(queries), strict=True):
        unknown = rng.random() < UNKNOWN_SHARE
        near = [index for index in np.argsort(-(vectors @ vector), kind="stable").tolist()
                if not (unknown and told[index].key == fact.key)][:CANDIDATES]
        candidates = [replace(memories[index], score=float(vectors[index] @ vector)) for index in near]
        found.append(Question(table=features(query, candidates, task),
                              matters=np.array([facts[index] is fact if index < len(facts) else False
                                                for index in near])))
    return found


def _facts(rng: random.Random) -> list[Fact]:
    kind, found = rng.choice(KINDS), dict[str, Fact]()
    while len(found) < FACTS:
        fact = (kind if rng.random() < ALIKE_SHARE else rng.choice(KINDS))(rng)
        found.setdefault(fact.key, fact)
    return list(found.values())


def _retold(fact: Fact, rng: random.Random) -> Fact | None:
    """Another fact with the same key, None where none comes up soon."""
    for _ in range(2000):
        other = rng.choice(KINDS)(rng)
        if other.key == fact.key and other.told != fact.told:
            return other
    return None


def _memory(number: int, fact: Fact, rng: random.Random) -> Memory:
    tags = (rng.choice(fact.key.split()[1:]),) if rng.random() < TAGGED_SHARE else ()
    return Memory(id=number, text=fact.told, metadata={}, namespace="default", tags=tags, source="", provenance="",
                  time=_NOW - timedelta(seconds=rng.randrange(2 * 365 * 86_400)))
