"""How much the model's answers suffer when one matrix is rounded, as a number per format.

Each unit is rounded alone to the coarsest format and the change of the network's output is measured; finer formats
scale it by their weight errors, weighted by the layer's inputs. Adding these up over units is an approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aios.quantisation.formats import Format
from aios.quantisation.subject import Subject
from aios.store.quant import ArrowQuant

PROBE_BATCHES = 4            # of different lengths, run once per unit: enough to rank units
PROBE_TOKENS = 160           # of each
ROWS_MAX = 512               # of a matrix, to compare formats


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Stored matrices that share one format, because the network runs them as one: their bytes and damage by format."""

    names: tuple[str, ...]
    bytes: Mapping[Format, int]
    damage: Mapping[Format, float]


def weighted_error(weights: Float[Tensor, "n k"], error: Float[Tensor, "n k"],
                   gram: Float[Tensor, "k k"] | None) -> float:
    """||error X^T||^2 / ||weights X^T||^2, the share of the layer's output that is wrong; without X of the weights."""
    if gram is None:
        return float(error.square().sum() / weights.square().sum().clamp_min(1e-30))
    return float(((error @ gram) * error).sum() / ((weights @ gram) * weights).sum().clamp_min(1e-30))


def rounded(weights: Float[Tensor, "n k"], form: Format) -> Float[Tensor, "n k"]:
    """The weights after plain rounding with a clipping search."""
    return ArrowQuant.dequantize(ArrowQuant.quantize(
        weights, bits=form.bits, group_size=form.group_size, symmetric=form.symmetric, search=True))


@torch.inference_mode()
def units(subject: Subject, names: Sequence[str], formats: Sequence[Format], batches: Sequence[Int[Tensor, "b s"]],
          grams: Mapping[str, Float[Tensor, "k k"]], progress: Callable[[float], None]) -> list[Unit]:
    """Every matrix of `names` in its unit, with what each of `formats` costs and breaks."""
    members: dict[str, list[str]] = {}
    for name in names:
        place = subject.places.get(name)
        members.setdefault(place.module if place else f"\0{name}", []).append(name)   # \0: in no module
    probe = _probe(batches)
    reference = [subject.output(batch) for batch in probe]
    found = []
    for index, (module, stored) in enumerate(members.items()):
        weights = [subject.plain(name).float() for name in stored]
        base = _effect(subject, module, weights, formats[0], probe, reference)
        errors = _errors(torch.cat(weights), formats, grams.get(module))
        found.append(Unit(
            names=tuple(stored),
            bytes={form: sum(form.bytes(subject.shapes[name]) for name in stored) for form in formats},
            damage={form: base * error / max(errors[0], 1e-30) for form, error in zip(formats, errors, strict=True)}))
        progress((index + 1) / len(members))
    return found


def _probe(batches: Sequence[Int[Tensor, "b s"]]) -> list[Int[Tensor, "b s"]]:
    """A few batches spread over all lengths, few tokens in all."""
    count = min(PROBE_BATCHES, len(batches))
    chosen = [batches[(2 * index + 1) * len(batches) // (2 * count)] for index in range(count)]
    return [batch[:max(PROBE_TOKENS // batch.shape[1], 1)] for batch in chosen]


def _effect(subject: Subject, module: str, weights: Sequence[Tensor], form: Format,
            probe: Sequence[Int[Tensor, "b s"]], reference: Sequence[Tensor]) -> float:
    """Relative squared change of the network's output when this module alone is rounded; 0 in no module."""
    if module.startswith("\0"):
        return 0.0
    target = subject.network.get_submodule(module)
    kept = target.weight
    target.weight = nn.Parameter(torch.cat([rounded(part, form) for part in weights]), requires_grad=False)
    try:
        changed = [subject.output(batch) for batch in probe]
    finally:
        target.weight = kept
    wrong = sum(float((a - b).square().sum()) for a, b in zip(changed, reference, strict=True))
    return wrong / max(sum(float(states.square().sum()) for states in reference), 1e-30)


def _errors(weights: Float[Tensor, "n k"], formats: Sequence[Format],
            gram: Float[Tensor, "k k"] | None) -> list[float]:
    sample = weights[::max(len(weights) // ROWS_MAX, 1)].contiguous()
    return [weighted_error(sample, sample - rounded(sample, form), gram) for form in formats]
