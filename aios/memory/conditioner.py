"""MemoryConditioner: from a query to the memories that matter for it, and to what a denoiser attends to.

    conditioner = MemoryConditioner(store)
    relevant = conditioner.retrieve_relevant("Where is Anna's spare key?", "answer", vector=query)
    found = conditioner.condition(query, relevant)

Many memories are looked up, a learned scorer tells which of them matter, and a modern Hopfield network, whose stored
patterns are their vectors, completes the query to the memory that it means. No torch: this runs in the memory process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aios.errors import BadInput
from aios.memory import relevance
from aios.memory.record import Filter, Memory
from aios.memory.relevance import Scorer, Task
from aios.messages import Passage

Floats = NDArray[np.float32]

CANDIDATES: Final = 64           # looked up for each query: alike sentences hide the right one behind dozens of others
FEW: Final = 16                  # of these that are read at first; unsealing is most of what a query costs
SURE: Final = 0.9                # of the best of these: no others are read
RELEVANT_MAX: Final = 5          # handed on: more than a small model tells apart
PROBABILITY_MIN: Final = 0.02    # of the best one: below it memory has nothing to say, and passages only confuse
BETA: Final = 24.0               # inverse temperature: at 0.1 more cosine a pattern counts eleven times as much
UPDATES: Final = 1               # a modern Hopfield network retrieves in one; source below, theorem 4


class Store(Protocol):
    """What the conditioner asks of a store of memories."""

    def nearest(self, query: str | ArrayLike, k: int = 10, filter: Filter | None = None) -> list[tuple[int, float]]:
        """(id, score) of the k nearest memories, best first."""
        ...

    def read(self, number: int, score: float | None = None) -> Memory | None:
        """A memory with a score; None once it was forgotten."""
        ...

    def vectors(self, numbers: Sequence[int]) -> Floats:
        """The vectors (n, dim) of memories."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Relevant:
    """A memory that may matter; `probability` that it does is the scorer's."""

    memory: Memory
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieved:
    """What a Hopfield retrieval found: k patterns, how much each is meant, and the pattern they were completed to.

    patterns: (k, dim) unit vectors. association: (k,), adds up to 1. state: (dim,).
    """

    patterns: Floats
    association: Floats
    state: Floats


class MemoryConditioner:
    """Memories for a query: looked up, judged, and put into the form that heads attend to."""

    def __init__(self, store: Store, scorer: Scorer | None = None, *,
                 encode: Callable[[list[str]], ArrayLike] | None = None, candidates: int = CANDIDATES) -> None:
        """scorer: the one that AIOS brings when absent. encode: makes vectors of queries that come without one."""
        self._store, self._encode, self._candidates = store, encode, candidates
        self._scorer = scorer or relevance.shipped()

    def retrieve_relevant(self, query: str, task: Task = "answer", *, vector: ArrayLike | None = None,
                          k: int = RELEVANT_MAX, filter: Filter | None = None) -> list[Relevant]:
        """The k memories that most probably matter for a query, best first; BadInput without a vector or encoder."""
        if vector is None:
            if self._encode is None:
                raise BadInput("a query needs a vector to find memories", remedy="give one, or an encoder")
            vector = np.asarray(self._encode([query]), np.float32)[0]
        near = self._store.nearest(vector, max(k, self._candidates), filter)
        few = max(k, FEW)
        found = self._read(near[:few])
        ordered = relevance.best_first(self._scorer, query, found, task)
        if len(near) > few and not (ordered and ordered[0][1] >= SURE):
            ordered = relevance.best_first(self._scorer, query, found + self._read(near[few:]), task)
        return [Relevant(memory=memory, probability=chance) for memory, chance in ordered[:k]]

    def _read(self, near: Sequence[tuple[int, float]]) -> list[Memory]:
        """What of it was not forgotten meanwhile."""
        found = (self._store.read(number, score) for number, score in near)
        return [memory for memory in found if memory is not None]

    def condition(self, vector: ArrayLike, relevant: Sequence[Relevant]) -> Retrieved:
        """The Hopfield retrieval of a query's vector among memories, of which there is one at least."""
        vectors = self._store.vectors([one.memory.id for one in relevant])
        chances = np.array([one.probability for one in relevant], np.float32)
        return retrieve(np.asarray(vector, np.float32), vectors, chances)

    def passages(self, query: str, task: Task = "answer", *, vector: ArrayLike, k: int = RELEVANT_MAX,
                 filter: Filter | None = None) -> tuple[Passage, ...]:
        """What a request takes along from memory: the text and pattern of each memory, scored by its association.

        Empty where no memory matters at all.
        """
        relevant = self._probable(query, task, vector, k, filter)
        if not relevant:
            return ()
        try:
            found = self.condition(vector, relevant)
        except BadInput:     # one of them was forgotten since it was found
            if not (relevant := self._probable(query, task, vector, k, filter)):
                return ()
            found = self.condition(vector, relevant)
        return tuple(
            Passage(text=one.memory.text, id=one.memory.id, score=float(share), source=one.memory.source,
                    provenance=one.memory.provenance, vector=pattern.astype("<f4").tobytes())
            for one, share, pattern in zip(relevant, found.association, found.patterns, strict=True))

    def _probable(self, query: str, task: Task, vector: ArrayLike, k: int, filter: Filter | None) -> list[Relevant]:
        relevant = self.retrieve_relevant(query, task, vector=vector, k=k, filter=filter)
        return relevant if relevant and relevant[0].probability >= PROBABILITY_MIN else []


def retrieve(query: Floats, patterns: Floats, chances: Floats, *, beta: float = BETA, updates: int = UPDATES
             ) -> Retrieved:
    """Complete a query (dim,) among stored patterns (k, dim), each of which matters with some chance (k,).

    state <- patterns^T softmax(beta patterns . state + log chance). The chances stand as an external field, so that a
    pattern that the scorer rules out attracts nothing.
    Source: Ramsauer et al. 2020, "Hopfield networks is all you need", eq. 3; updates, theorem 4.
    """
    stored, state = _unit(patterns), _unit(query[None])[0]
    field = np.log(np.clip(chances, 1e-6, 1.0))
    for _ in range(updates):
        energy = beta * (stored @ state) + field
        weights = np.exp(energy - energy.max())
        association = weights / weights.sum()
        state = association @ stored
    return Retrieved(patterns=stored, association=association.astype(np.float32), state=state.astype(np.float32))


def _unit(rows: Floats) -> Floats:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = (rows / np.maximum(norms, np.float32(1e-12))).astype(np.float32)
    return unit
