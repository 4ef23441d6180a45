"""Which token comes next: the model's logits, filtered as the request asks, then one draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aios.messages import Generate

CANDIDATES = 1024        # sorted first for top_p; a model that is less sure than that pays for sorting them all
LIMITS = {"temperature": 10.0, "top_k": 1 << 20, "top_p": 1.0, "min_p": 1.0, "repetition_penalty": 100.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a token is chosen. The defaults of the fields filter nothing."""

    temperature: float = 1.0            # 0: the most likely token
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def of_model(cls, generation_config: Mapping[str, Any]) -> Choice:
        """What a model's generation_config.json recommends, else what suits most chat models."""
        said: dict[str, Any] = {name: generation_config.get(name) for name in LIMITS}
        usable = {name: value for name, value in said.items()
                  if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LIMITS[name]}
        if not usable or generation_config.get("do_sample") is False:
            return cls(temperature=0.7, top_p=0.95)
        return cls(temperature=usable.get("temperature", 1.0), top_k=int(usable.get("top_k", 0)),
                   top_p=usable.get("top_p") or 1.0, min_p=usable.get("min_p", 0.0),
                   repetition_penalty=usable.get("repetition_penalty") or 1.0)

    def asked(self, request: Generate) -> Choice:
        """The same with what the request says."""
        said = {name: getattr(request, name) for name in LIMITS}
        return replace(self, **{name: value for name, value in said.items() if value is not None})

    @property
    def plain(self) -> bool:
        """True where the most likely token is taken as it is."""
        return self.temperature == 0.0 and self.repetition_penalty == 1.0

    @property
    def filters(self) -> dict[str, float]:
        """Those in effect, by name."""
        neutral, names = Choice(), ["repetition_penalty"]
        if self.temperature:
            names += ["top_k", "top_p", "min_p"]
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(neutral, name)}


def draw(logits: Tensor, choice: Choice, rng: torch.Generator, seen: Tensor | None) -> int:
    """The next token of one text: logits (v,), `seen` (v,) bool where a token stands in the text already.

    The order of filters is transformers': repetition penalty, temperature, top_k, top_p, min_p.
    """
    if seen is not None and choice.repetition_penalty != 1.0:
        penalty = choice.repetition_penalty
        punished = torch.where(logits < 0, logits * penalty, logits / penalty)
        logits = torch.where(seen, punished, logits)
    if choice.temperature == 0.0:
        return int(logits.argmax())
    logits = logits / choice.temperature
    ids: Tensor | None = None
    if choice.top_k:
        logits, ids = logits.topk(min(choice.top_k, logits.numel()))
    if choice.top_p < 1.0:
        logits, order = _nucleus(logits, choice.top_p, ordered=ids is not None)
        ids = order if ids is None else ids[:logits.numel()]
    if choice.min_p > 0.0:
        logits = logits.masked_fill(logits < logits.max() + math.log(choice.min_p), -torch.inf)
    shares = torch.softmax(logits.double(), dim=0).cumsum(dim=0)
    at = int(torch.searchsorted(shares, torch.rand(1, generator=rng, dtype=torch.float64) * shares[-1], right=True))
    at = min(at, logits.numel() - 1)
    return at if ids is None else int(ids[at])


def _nucleus(logits: Tensor, share: float, *, ordered: bool) -> tuple[Tensor, Tensor]:
    """The fewest most likely tokens that make up `share`, likely ones first: (logits, ids)."""
    total = logits.logsumexp(dim=0)
    count = logits.numel()
    for candidates in (min(CANDIDATES, count), count):
        values, ids = (logits[:candidates], torch.arange(candidates)) if ordered else logits.topk(candidates)
        shares = (values.double() - total).exp().cumsum(dim=0)
        if candidates == count or shares[-1] >= share:
            break
    kept = 1 + int((shares[:-1] < share).sum())
    return values[:kept], ids[:kept]
