"""Request -> Plan: which head answers, with which sampler, how long and how."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aios.contracts import Head, OpenHead, Sampler
from aios.diffusion.samplers import SAMPLERS
from aios.errors import BadInput, NoHead
from aios.messages import STEPS_MAX, Generation, Infill

if TYPE_CHECKING:
    from aios.registry.registry import Registry

REPAIRS = 24      # half of the gaps that a small model breaks are whole after four, nine of ten after all
SEED_BYTES = 4    # of a drawn seed: short enough to type again, exact in any client's numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything about one generation that is decided before it begins."""

    request: Generation
    plugin: str
    head: OpenHead
    sampler: str
    sample: Sampler
    steps: int
    temperature: float
    length: int
    seed: int
    block: int = 0      # tokens that are finished before the next ones, where the canvas is written onward
    repairs: int = 0    # how often what the head calls flawed may be written anew


def choose_head(request: Generation, registry: Registry) -> tuple[str, Head]:
    """The first plugin, in the registry's order, that brings a head for the modality; raises NoHead.

    A head of its own comes before one that writes the modality too.
    """
    heads = registry.heads()
    offers = [(head.modality,) for _, head in heads], [tuple(getattr(head, "also", ())) for _, head in heads]
    for offered_by in offers:
        for (plugin, head), modalities in zip(heads, offered_by, strict=True):
            if request.modality in modalities:
                return plugin, head
    offered = ", ".join(sorted({name for modalities in (*offers[0], *offers[1]) for name in modalities})) or "none"
    raise NoHead(f"no healthy plugin offers modality {request.modality[:40]!r}; offered: {offered}",
                 remedy="`aios plugins list` shows what is loaded and what was quarantined")


def plan(request: Generation, plugin: str, head: OpenHead) -> Plan:
    """Fill what the request leaves open with the head's defaults; a seed is drawn if there is none."""
    defaults, filling = head.defaults, isinstance(request, Infill)
    usual = (defaults.infill_sampler if filling else None) or defaults.sampler
    warmth = defaults.infill_temperature if filling else None
    sampler = usual if request.sampler is None else request.sampler
    if sampler not in SAMPLERS:
        raise BadInput(f"no sampler {sampler[:40]!r}; there are: {', '.join(sorted(SAMPLERS))}",
                       remedy="choose one of them")
    length = defaults.length if request.length is None else request.length
    steps = request.steps
    if steps is None:
        steps = min(max(1, round(length * defaults.steps_per_token)), STEPS_MAX)
    temperature = defaults.temperature if warmth is None else warmth
    return Plan(
        request=request, plugin=plugin, head=head, sampler=sampler, sample=SAMPLERS[sampler], steps=steps,
        length=length, temperature=temperature if request.temperature is None else request.temperature,
        seed=int.from_bytes(os.urandom(SEED_BYTES)) if request.seed is None else request.seed,
        block=defaults.block, repairs=_repairs(request, head))


def _repairs(request: Generation, head: OpenHead) -> int:
    if not isinstance(request, Infill) or getattr(head, "flawed", None) is None:
        return 0
    return REPAIRS if request.repairs is None else request.repairs
