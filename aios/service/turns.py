"""What the worker has on its hands: kinds of work that advance one quantum a turn.

A turn answers for one request or several; `advance` tells what came of each of them, and who was answered or dropped
is none of its numbers any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from aios.errors import AiosError
from aios.messages import Generate, Response, State

Outcome = State | Response | AiosError


class Turn(Protocol):
    """Work on one or more requests."""

    started: bool

    @property
    def numbers(self) -> list[int]:
        """The requests that are not answered yet."""

    def advance(self) -> Mapping[int, Outcome]:
        """One quantum; what came of each request that moved."""

    def drop(self, number: int) -> bool:
        """Let go of a request; False when it is not here."""


@dataclass(slots=True, kw_only=True)
class Diffusion:
    """A canvas on its way: a quantum is one denoiser call."""

    number: int
    quanta: Generator[State, None, Response]
    started: bool = False
    over: bool = False

    @property
    def numbers(self) -> list[int]:
        """The one request, until it is answered."""
        return [] if self.over else [self.number]

    def advance(self) -> Mapping[int, Outcome]:
        """The canvas after one more step, or the answer."""
        self.over = True
        try:
            state = next(self.quanta)
        except StopIteration as done:
            return {self.number: done.value}
        except AiosError as error:
            return {self.number: error}
        self.over = False
        return {self.number: state}

    def drop(self, number: int) -> bool:
        """Close the generator."""
        if self.over or number != self.number:
            return False
        self.over = True
        with contextlib.suppress(AiosError):
            self.quanta.close()
        return True


@dataclass(slots=True, kw_only=True)
class Encodes:
    """Encode requests that are answered together: index in the batch -> number of the request."""

    open: dict[int, int]
    quanta: Iterator[dict[int, Response | AiosError]]
    started: bool = False

    @property
    def numbers(self) -> list[int]:
        """Those of the batch that wait."""
        return list(self.open.values())

    def advance(self) -> Mapping[int, Outcome]:
        """The requests that one quantum of texts finished."""
        finished = next(self.quanta, None)
        if finished is None:
            raise AssertionError("a request was not answered")
        return {self.open.pop(index): outcome for index, outcome in finished.items() if index in self.open}

    def drop(self, number: int) -> bool:
        """Its texts are computed with the others', for nobody."""
        found = [index for index, one in self.open.items() if one == number]
        for index in found:
            del self.open[index]
        return bool(found)


class Group(Protocol):
    """What the engine writes together: `aios.engine.decoding.Decoding`."""

    def join(self, key: Hashable, request: Generate) -> None:
        """Take a request in."""

    def leave(self, key: Hashable) -> None:
        """Let go of a request."""

    def advance(self) -> Mapping[Hashable, Outcome]:
        """One quantum."""


@dataclass(slots=True, kw_only=True)
class Texts:
    """Texts that one language model writes together: a quantum is a token of each. They join and leave at any time."""

    model: str
    alone: bool                # of a suspect, whom nobody joins
    group: Group
    started: bool = False
    numbers: list[int] = field(default_factory=list)

    def join(self, number: int, request: Generate) -> None:
        """One more text."""
        self.numbers.append(number)
        self.group.join(number, request)

    def advance(self) -> Mapping[int, Outcome]:
        """One token more of every text, or a slice of a prompt."""
        outcomes = {number: outcome for number, outcome in self.group.advance().items() if isinstance(number, int)}
        self.numbers = [number for number in self.numbers if isinstance(outcomes.get(number), State | None)]
        return outcomes

    def drop(self, number: int) -> bool:
        """The others go on."""
        if number not in self.numbers:
            return False
        self.numbers.remove(number)
        self.group.leave(number)
        return True


@dataclass(slots=True, kw_only=True)
class Arrival:
    """A text before its first quantum: opening its model may take a while, and is this request's doing."""

    number: int
    join: Callable[[], None]
    started: bool = False
    over: bool = False

    @property
    def numbers(self) -> list[int]:
        """The one request, until it has joined a group."""
        return [] if self.over else [self.number]

    def advance(self) -> Mapping[int, Outcome]:
        """Join, or be refused."""
        self.over = True
        try:
            self.join()
        except AiosError as error:
            return {self.number: error}
        return {}

    def drop(self, number: int) -> bool:
        """Nothing was begun."""
        if self.over or number != self.number:
            return False
        self.over = True
        return True
