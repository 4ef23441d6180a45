"""Answers with memory: by diffusion, in every way in which it can use memory and in none, and by autoregression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import torch

from aios.config import Config, Places
from aios.contracts import Canvas, Condition, OpenHead
from aios.engine import pipeline, router
from aios.engine.assembly import Assembly
from aios.engine.decoding import Decoding
from aios.errors import AiosError
from aios.lab.report import LabOptions
from aios.messages import ChatMessage, Diffuse, Generate, Infill, Passage, Response
from aios.registry.registry import Registry

TOKENS: Final = 24
#: memory: as it is used in service. passages: read, and nothing more. pointer: read and pointed at. attention: the
#: patterns are attended to, and no passage is read. none: no memory.
ARMS: Final = ("memory", "passages", "pointer", "attention", "none")


class Item(Protocol):
    """A question and what was retrieved for it."""

    @property
    def fact(self) -> Any:
        """With the question as `asked`."""

    @property
    def passages(self) -> tuple[Passage, ...]:
        """Best first."""


@dataclass(frozen=True, slots=True)
class _Unread:
    """A head whose requests are read without their passages; the pipeline still conditions on these."""

    head: OpenHead

    def __getattr__(self, name: str) -> Any:
        return getattr(self.head, name)

    def encode(self, request: Diffuse | Infill, length: int) -> tuple[Canvas, Condition]:
        """The canvas of the question alone."""
        return self.head.encode(replace(request, passages=()) if isinstance(request, Diffuse) else request, length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """A diffusion model that answers questions, likeliest tokens first."""

    plugin: str
    head: OpenHead
    network: Any                 # of the head; the text head's has a pointer and attention to patterns

    @classmethod
    def open(cls, places: Places, model: str) -> Writer:
        """The head that answers in this installation, opened on a model; raises what opening it raises."""
        config = Config()
        registry = Registry.allowed(config, places)
        plugin, head = router.choose_head(Diffuse(modality="text"), registry)
        opened = Assembly(config, places).head(plugin, head, model, "text")
        return cls(plugin=plugin, head=opened, network=getattr(opened, "network", None))

    @property
    def told(self) -> str:
        """What of memory the model has learned to use, in words."""
        parts = [name for name, gate in self._gates().items() if float(gate)]
        return "it reads passages" + "".join(f" and {'points at their words' if name == 'pointer' else 'attends'}"
                                             for name in parts)

    def answers(self, asked: Sequence[Item], arm: str, options: LabOptions) -> list[str]:
        """The answer to every question; a seed of its own for each, whichever arm."""
        found = []
        with self._set(arm):
            for number, one in enumerate(asked):
                options.progress(f"answering, {arm}", 0.3 + 0.5 * (ARMS.index(arm) + number / len(asked)) / len(ARMS))
                found.append(self.answer(one, arm, seed=number))
        return found

    def answer(self, one: Item, arm: str, *, seed: int) -> str:
        """One answer."""
        said = (ChatMessage(role="user", content=one.fact.asked),)
        request = Diffuse(messages=said, passages=() if arm == "none" else one.passages, length=TOKENS, seed=seed,
                          temperature=0.0)
        head: Any = _Unread(self.head) if arm == "attention" else self.head
        quanta = pipeline.generate(router.plan(request, self.plugin, head))
        while True:
            try:
                next(quanta)
            except StopIteration as done:
                response: Response = done.value
                return response.text

    def _gates(self) -> dict[str, torch.Tensor]:
        pointer = getattr(self.network, "pointer", None)
        attention = getattr(getattr(self.network, "backbone", None), "memory", None)
        return {name: part.gate for name, part in (("pointer", pointer), ("attention", attention)) if part is not None}

    @contextmanager
    def _set(self, arm: str) -> Iterator[None]:
        """Shut the gates that an arm leaves shut."""
        gates = self._gates()
        before = {name: gate.detach().clone() for name, gate in gates.items()}
        shut = {"passages": ("pointer", "attention"), "pointer": ("attention",), "attention": ("pointer",)}.get(arm, ())
        try:
            with torch.no_grad():
                for name in shut:
                    if name in gates:
                        gates[name].zero_()
            yield
        finally:
            with torch.no_grad():
                for name, gate in gates.items():
                    gate.copy_(before[name])

    @staticmethod
    def generated(places: Places, model: str, asked: Sequence[Item]) -> list[str]:
        """The answers of an autoregressive model that has the same passages in sight."""
        group = Decoding(Assembly(Config(), places).language(model))
        for number, one in enumerate(asked):
            group.join(number, Generate(prompt=one.fact.asked, passages=one.passages, max_tokens=TOKENS,
                                        temperature=0.0))
        answers: dict[Any, str] = {}
        while group.open:
            for key, outcome in group.advance().items():
                if isinstance(outcome, AiosError):
                    raise outcome
                if isinstance(outcome, Response):
                    answers[key] = outcome.text
        return [answers[number] for number in range(len(asked))]
