"""A short tuning after packing: scales, zeros, biases and norms learn to give the source's hidden states again.

Codes stay as they are, so that the tuned model has exactly the size of the packed one. The texts need no labels: the
uncompressed network is the teacher. Source: Hinton et al. 2015, "Distilling the knowledge in a neural network".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from aios.contracts import PackedTensor
from aios.quantisation.subject import Subject
from aios.store.quant import ArrowQuant

RATE = 0.01                  # of Adam, relative to each group's scale
PLAIN_RATE = 0.002           # of biases and norms
WARM_UP_STEPS = 10
BETAS = (0.9, 0.98)
SHUFFLE_SEED = 7             # of the order of batches: the same texts give the same release

Stored = Tensor | PackedTensor


class Adjustable(nn.Module):
    """Packed matrices, one above the other, as one weight whose scales and zeros can learn; codes cannot."""

    def __init__(self, parts: Sequence[PackedTensor], bias: Tensor | None, *, lookup: bool) -> None:
        super().__init__()
        self.parts = parts
        self.bits, self.group_size, self.symmetric = parts[0].bits, parts[0].group_size, parts[0].zeros is None
        plain = [ArrowQuant.unpack(part) for part in parts]
        self.codes = torch.cat([codes for codes, _, _ in plain])
        self.scales = torch.cat([scales for _, scales, _ in plain]).float()
        middle = float(1 << (self.bits - 1))
        self.zeros = -middle * self.scales if self.symmetric else \
            torch.cat([zeros for _, _, zeros in plain if zeros is not None]).float()
        self.stretch = nn.Parameter(torch.zeros_like(self.scales))
        self.shift = None if self.symmetric else nn.Parameter(torch.zeros_like(self.scales))
        self.bias = None if bias is None else nn.Parameter(bias.clone())
        self.lookup = lookup
        residuals = [part.left.float() @ part.right.float() for part in parts
                     if part.left is not None and part.right is not None]
        self.residual = torch.cat(residuals) if residuals else None

    def statistics(self, rows: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Scales and zeros (n, groups) as they are now."""
        scales, zeros = self.scales[rows], self.zeros[rows]
        stretched = 1 + self.stretch[rows]
        if self.shift is None:
            return scales * stretched, zeros * stretched
        return scales * stretched, zeros + scales.abs() * self.shift[rows]

    def values(self, rows: Tensor | slice = slice(None)) -> Float[Tensor, "n k"]:
        """The weights that codes, scales and zeros stand for now."""
        scales, zeros = self.statistics(rows)
        codes = self.codes[rows].float()
        columns = codes.shape[1]
        scales, zeros = (each.repeat_interleave(self.group_size, dim=1)[:, :columns] for each in (scales, zeros))
        weights = torch.addcmul(zeros, scales, codes)
        return weights if self.residual is None else weights + self.residual[rows]

    @property
    def weight(self) -> Float[Tensor, "n k"]:
        """What `nn.Linear` and `nn.Embedding` call so."""
        return self.values()

    def forward(self, x: Tensor) -> Tensor:
        if not self.lookup:
            return functional.linear(x, self.values(), self.bias)
        rows, inverse = torch.unique(x, return_inverse=True)
        return functional.embedding(inverse, self.values(rows))

    @torch.no_grad()
    def packed(self) -> list[PackedTensor]:
        """The matrices again, with the scales and zeros that were learnt."""
        scales, zeros = (statistic.half() for statistic in self.statistics())
        result, first = [], 0
        for part in self.parts:
            rows = slice(first, first + part.rows)
            tuned = ArrowQuant.pack(self.codes[rows], scales[rows], None if self.symmetric else zeros[rows],
                                    bits=self.bits, group_size=self.group_size)
            result.append(replace(tuned, left=part.left, right=part.right))
            first += part.rows
        return result


def tune(subject: Subject, stored: Mapping[str, Stored], batches: Sequence[Int[Tensor, "b s"]], steps: int,
         progress: Callable[[float], None] = lambda done: None) -> dict[str, Stored]:
    """The stored tensors after `steps` of distillation; deterministic for the same texts and thread count."""
    teacher = subject.build({name: subject.plain(name) for name in subject.tensors})
    student = subject.build({name: ArrowQuant.dequantize(tensor) if isinstance(tensor, PackedTensor) else tensor.float()
                             for name, tensor in stored.items()})
    names = _make_adjustable(subject, student, stored)
    vectors = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in student.named_parameters()
               if parameter.ndim == 1}
    for name, parameter in vectors.items():
        module, _, leaf = name.rpartition(".")
        setattr(student.get_submodule(module), leaf, parameter)
    _distil(teacher, student, list(vectors.values()), batches, steps, progress)
    tuned = dict(stored)
    for module, members in names.items():
        layer = student.get_submodule(module)
        assert isinstance(layer, Adjustable)
        tuned.update(zip(members, layer.packed(), strict=True))
    return tuned | _learnt_vectors(subject, student, stored)


def _make_adjustable(subject: Subject, student: nn.Module, stored: Mapping[str, Stored]) -> dict[str, list[str]]:
    """Replace every layer whose matrices are all packed; returns the stored names of each, in row order."""
    members: dict[str, list[str]] = {}
    for name, place in sorted(subject.places.items(), key=lambda item: (item[1].module, item[1].first)):
        members.setdefault(place.module, []).append(name)
    done = {}
    for module, names in members.items():
        parts = [part for part in (stored[name] for name in names) if isinstance(part, PackedTensor)]
        if len(parts) != len(names):
            continue
        layer = student.get_submodule(module)
        bias = getattr(layer, "bias", None)
        parent, _, leaf = module.rpartition(".")
        setattr(student.get_submodule(parent), leaf,
                Adjustable(parts, bias, lookup=isinstance(layer, nn.Embedding)))
        done[module] = names
    return done


def _distil(teacher: nn.Module, student: nn.Module, vectors: Sequence[nn.Parameter],
            batches: Sequence[Int[Tensor, "b s"]], steps: int, progress: Callable[[float], None]) -> None:
    """Adam on the squared error of hidden states and of their directions' mean, relative to the teacher's."""
    layers = [module for module in student.modules() if isinstance(module, Adjustable)]
    statistics = [each for layer in layers for each in (layer.stretch, layer.shift) if each is not None]
    optimiser = torch.optim.Adam([{"params": statistics, "lr": RATE}, {"params": list(vectors), "lr": PLAIN_RATE}],
                                 betas=BETAS)
    rates = [group["lr"] for group in optimiser.param_groups]
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(SHUFFLE_SEED)).tolist()
    for step in range(steps):
        ids = batches[order[step % len(order)]]
        with torch.no_grad():
            wanted = teacher.hidden(ids)   # type: ignore[operator]
        given = student.hidden(ids)        # type: ignore[operator]
        means = [functional.normalize(states.mean(dim=1), dim=-1) for states in (given, wanted)]
        loss = (given - wanted).square().sum() / wanted.square().sum() + (means[0] - means[1]).square().sum(1).mean()
        share = min(1.0, (step + 1) / WARM_UP_STEPS) * (1 - step / steps)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * share
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        progress((step + 1) / steps)


def _learnt_vectors(subject: Subject, student: nn.Module, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Biases and norms as they are now, in the types in which they are stored."""
    learnt: dict[str, Stored] = {}
    for name, (parameter, first, end) in subject.vectors.items():
        kept = stored[name]
        if isinstance(kept, Tensor):
            learnt[name] = student.get_parameter(parameter).detach()[first:end].to(kept.dtype).clone()
    return learnt
