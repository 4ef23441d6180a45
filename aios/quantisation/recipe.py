"""The recipe: which format each stored tensor gets, and turning them into packed tensors one after another.

GPTQ runs through the network in stages: layers of a later stage are calibrated on what the layers before it give after
they were compressed, so that errors do not add up unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aios.contracts import PackedTensor
from aios.errors import BadInput
from aios.quantisation.budget import allocate
from aios.quantisation.calibration import grams, linear_layers, stages
from aios.quantisation.formats import Format, ladder, packable
from aios.quantisation.sensitivity import units, weighted_error
from aios.quantisation.subject import Subject
from aios.store.quant import ArrowQuant, Method

PLAN_TOKENS = 4096           # of calibration texts, to compare formats; packing itself uses all
HALF_MAX = 65_504.0          # the largest f16
FILE_BYTES_PER_TENSOR = 1024   # of the directory, page headers and gaps, measured as below 600

Batches = Sequence[Int[Tensor, "b s"]]
Progress = Callable[[str, float], None]   # what runs now, share done of all in 0..1


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to do to a model. With a budget, `form` is the coarsest format and matrices that matter get finer ones."""

    form: Format
    method: Method = "gptq"
    bytes_max: int | None = None             # of the weight file
    bits_mean_max: float | None = None       # bits per weight on average, every tensor counted
    tune_steps: int = 0                      # of distillation afterwards; 0: none

    @property
    def budgeted(self) -> bool:
        """Whether formats follow from a budget."""
        return self.bytes_max is not None or self.bits_mean_max is not None

    @property
    def calibrated(self) -> bool:
        """Whether texts have to run through the model."""
        return self.budgeted or self.method == "gptq" or self.tune_steps > 0

    def __str__(self) -> str:
        words = [self.method, str(self.form)]
        if self.bytes_max is not None:
            words.append(f"at most {self.bytes_max / 1e6:g} MB")
        if self.bits_mean_max is not None:
            words.append(f"at most {self.bits_mean_max:g} bits a weight")
        if self.tune_steps:
            words.append(f"tuned for {self.tune_steps} steps")
        return ", ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one stored tensor; `form` is None where it stayed plain."""

    name: str
    shape: tuple[int, ...]
    form: Format | None
    bytes_before: int
    bytes: int
    relative_error: float           # ||W - Q|| / ||W||
    output_error: float | None      # the same of the layer's outputs over the calibration texts

    @property
    def bits_per_weight(self) -> float:
        """Bits of codes, scales, zeros and residual for each weight."""
        return 8 * self.bytes / max(prod(self.shape), 1)


Produced = tuple[str, Tensor | PackedTensor, Outcome]


def bits_per_weight(outcomes: Sequence[Outcome]) -> float:
    """Bits of all stored tensors for each of their numbers."""
    return 8 * sum(outcome.bytes for outcome in outcomes) / sum(prod(outcome.shape) for outcome in outcomes)


def plan(subject: Subject, recipe: Recipe, batches: Batches, progress: Progress) -> dict[str, Format]:
    """The format of every matrix that is packed; BadInput when the budget is too small."""
    names = [name for name, shape in subject.shapes.items() if packable(shape) and _real(subject.tensors[name])]
    if not recipe.budgeted:
        return dict.fromkeys(names, recipe.form)
    linear = linear_layers(subject.network, {place.module for place in subject.places.values()})
    progress("inputs of all layers", 0.0)
    sample = batches[::max(sum(batch.numel() for batch in batches) // PLAN_TOKENS, 1)]
    matrices = {name: gram for stage in stages(subject.network, linear, passes=1)
                for name, gram in grams(subject.network, stage, sample).items()}
    found = units(subject, names, ladder(recipe.form), batches, matrices,
                  lambda done: progress("sensitivity of every matrix", done))
    return allocate(found, _bytes_for(subject, recipe, set(names)))


def _real(tensor: Tensor | PackedTensor) -> bool:
    return isinstance(tensor, PackedTensor) or tensor.is_floating_point()


def _bytes_for(subject: Subject, recipe: Recipe, names: set[str]) -> int:
    """What the budget leaves for the matrices `names`, after everything else is counted."""
    plain = sum(_plain_bytes(subject.tensors[name]) for name in subject.shapes if name not in names)
    limits = []
    if recipe.bytes_max is not None:
        limits.append(recipe.bytes_max - FILE_BYTES_PER_TENSOR * len(subject.shapes))
    if recipe.bits_mean_max is not None:
        limits.append(int(recipe.bits_mean_max * sum(map(prod, subject.shapes.values())) / 8))
    return min(limits) - plain


def _plain_bytes(tensor: Tensor | PackedTensor) -> int:
    return tensor.nbytes if isinstance(tensor, PackedTensor) else _halved(tensor).nbytes


def _halved(tensor: Tensor) -> Tensor:
    """An f32 tensor in f16, unless it would overflow; others as they are."""
    wide = tensor.dtype in (torch.float32, torch.float64)
    fits = wide and (not tensor.numel() or float(tensor.abs().max()) <= HALF_MAX)   # NaN does not fit
    return tensor.half() if fits else tensor


def compressed(subject: Subject, recipe: Recipe, formats: Mapping[str, Format], batches: Batches,
               progress: Progress) -> Iterator[Produced]:
    """Every stored tensor, packed by `formats` or in half precision, as soon as it is done, in the order of the work.

    With GPTQ the subject's network takes over each packed matrix, dequantised, and is of no other use afterwards.
    """
    sequential = recipe.method == "gptq"
    linear = _linear(subject, formats) if sequential else {}
    total = sum(prod(shape) for shape in subject.shapes.values())
    done = 0
    for name, shape in subject.shapes.items():
        if name in linear:
            continue
        progress(name, done / total)
        yield _one(subject, recipe, name, formats.get(name), None, sequential)
        done += prod(shape)
    if not linear:
        return
    for stage in stages(subject.network, linear_layers(subject.network, {linear[name] for name in linear})):
        progress(f"inputs of {stage[0]}", done / total)
        matrices = grams(subject.network, stage, batches)
        for name in [name for name, module in linear.items() if module in stage]:
            progress(name, done / total)
            yield _one(subject, recipe, name, formats[name], matrices.get(linear[name]), sequential)
            done += prod(subject.shapes[name])


def _linear(subject: Subject, formats: Mapping[str, Format]) -> dict[str, str]:
    """The matrices that linear layers multiply with, and the modules of those."""
    modules = set(linear_layers(subject.network, {place.module for place in subject.places.values()}))
    return {name: place.module for name, place in subject.places.items() if place.module in modules and name in formats}


def _one(subject: Subject, recipe: Recipe, name: str, form: Format | None, gram: Float[Tensor, "k k"] | None,
         take_over: bool) -> Produced:
    stored = subject.tensors[name]
    if form is None:
        kept = stored if isinstance(stored, PackedTensor) else _halved(stored)
        return name, kept, _outcome(subject, name, None, kept, 0.0, None)
    weights = subject.plain(name).float()
    packed = quantised(weights, form, recipe.method, gram, residual=name in subject.places)
    values = ArrowQuant.dequantize(packed)
    error = weights - values
    if not bool(torch.isfinite(error).all()):
        raise BadInput(f"{name} holds numbers that are not finite, or too large for f16 scales",
                       remedy="`aios models verify` checks the source model")
    if take_over and name in subject.places:
        _take_over(subject, name, values)
    relative = float(error.norm() / weights.norm().clamp_min(1e-30))
    output = None if gram is None else weighted_error(weights, error, gram) ** 0.5
    return name, packed, _outcome(subject, name, form, packed, relative, output)


def after_tuning(subject: Subject, outcome: Outcome, tuned: Tensor | PackedTensor) -> Outcome:
    """The outcome of a tensor that was tuned: it may lie further from its source for the sake of the outputs."""
    weights = subject.plain(outcome.name).float()
    values = ArrowQuant.dequantize(tuned) if isinstance(tuned, PackedTensor) else tuned.float()
    relative = float((weights - values).norm() / weights.norm().clamp_min(1e-30))
    return replace(outcome, relative_error=relative, output_error=None)


def quantised(weights: Float[Tensor, "n k"], form: Format, method: Method, gram: Float[Tensor, "k k"] | None, *,
              residual: bool = True) -> PackedTensor:
    """One matrix by `method`; GPTQ without inputs to go by (embeddings) is rounding with a clipping search."""
    rank = min(form.rank, *weights.shape) if residual else 0
    if method == "gptq" and gram is not None:
        return ArrowQuant.quantize(weights, bits=form.bits, group_size=form.group_size, symmetric=form.symmetric,
                                   method="gptq", hessian=gram, rank=rank)
    if method == "hqq":
        return ArrowQuant.quantize(weights, bits=form.bits, group_size=form.group_size, symmetric=form.symmetric,
                                   method="hqq", rank=rank)
    return ArrowQuant.quantize(weights, bits=form.bits, group_size=form.group_size, symmetric=form.symmetric,
                               search=method == "gptq", rank=rank)


def _take_over(subject: Subject, name: str, values: Float[Tensor, "n k"]) -> None:
    """Put the dequantised matrix into the network, whose tensors may be maps of the source: it is never written to."""
    place = subject.places[name]
    module = subject.network.get_submodule(place.module)
    weight = module.get_parameter("weight").detach().clone()
    weight[place.first:place.end] = values
    module.weight = nn.Parameter(weight, requires_grad=False)


def _outcome(subject: Subject, name: str, form: Format | None, now: Tensor | PackedTensor, relative: float,
             output: float | None) -> Outcome:
    return Outcome(name=name, shape=subject.shapes[name], form=form, bytes_before=subject.tensors[name].nbytes,
                   bytes=now.nbytes, relative_error=relative, output_error=output)
