"""Low-rank adapters beside the linear maps of a network: worn by rows of a batch, never merged into weights.

    y = base(x) + sum over worn adapters of (alpha / r) (x A^T) B^T

Rows may wear different adapters, one, several or none; those without keep every bit. The base may be packed: gradients
reach A, B and the input through it. Source: Hu et al. 2021, "LoRA: low-rank adaptation", section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from aios.contracts import Adapter, Kind
from aios.errors import BadInput, CardMisfit, ReleaseMismatch
from aios.model.config import TransformerConfig
from aios.model.quant_linear import linear_together

TARGETS_SHOWN_MAX = 3  # of those that do not fit


@lru_cache(maxsize=16)  # networks in one process are few
def linear_shapes(config: TransformerConfig) -> Mapping[str, tuple[int, int]]:
    """Return (outputs, inputs) of every linear map that an adapter can stand beside, by its name in the backbone."""
    d, query, key = (config.hidden_dim, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim)
    shapes = {
        "attention.query": (query, d), "attention.key": (key, d), "attention.value": (key, d),
        "attention.out": (d, query), "ffn.gate": (config.ffn_dim, d), "ffn.up": (config.ffn_dim, d),
        "ffn.down": (d, config.ffn_dim),
    }  # fmt: skip
    return {f"layers.{layer}.{name}": shape for layer in range(config.num_layers) for name, shape in shapes.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRank:
    """The factors of one adapter: per target A (r, k) and B (n, r), which may train; each scaled by alpha / r.

    Raises CardMisfit where A and B are no such pair.
    """

    name: str
    kind: Kind
    release: str
    alpha: float
    factors: Mapping[str, tuple[Tensor, Tensor]]
    shapes: Mapping[str, tuple[int, int]] = field(init=False, repr=False)   # (n, k) of the maps it stands beside

    def __post_init__(self) -> None:
        for target, (a, b) in self.factors.items():
            if a.ndim != 2 or b.ndim != 2 or not len(a) or len(a) != b.shape[1] or a.dtype is not b.dtype:
                raise CardMisfit(f"the factors of {target[:80]} are {tuple(a.shape)} and {tuple(b.shape)} in {a.dtype} "
                                 f"and {b.dtype}; they must be (r, k) and (n, r) of one type", remedy="make it again")
            if not a.is_floating_point():
                raise CardMisfit(f"the factors of {target[:80]} are {a.dtype}", remedy="make it again in floats")
        shapes = {target: (len(b), a.shape[1]) for target, (a, b) in self.factors.items()}
        object.__setattr__(self, "shapes", shapes)

    @classmethod
    def fresh(cls, shapes: Mapping[str, tuple[int, int]], *, rank: int, rng: torch.Generator, name: str, kind: Kind,
              release: str, alpha: float) -> LowRank:
        """An adapter beside maps of these (n, k) that changes nothing yet: A is normal, B zero, and both train."""
        factors = {
            target: ((torch.randn(rank, columns, generator=rng) * columns**-0.5).requires_grad_(),
                     torch.zeros(rows, rank, requires_grad=True))
            for target, (rows, columns) in shapes.items()
        }
        return cls(name=name, kind=kind, release=release, alpha=alpha, factors=factors)

    def parameters(self) -> list[Tensor]:
        """Every A and B, for an optimiser."""
        return [factor for pair in self.factors.values() for factor in pair]

    @property
    def idle(self) -> bool:
        """Whether every B is zero, so that it changes nothing."""
        return not any(bool(b.any()) for _, b in self.factors.values())

    def delta(self, target: str, x: Float[Tensor, "... k"]) -> Float[Tensor, "... n"] | None:
        """What is added to the output of the map called `target`; None for one that it does not stand beside."""
        pair = self.factors.get(target)
        if pair is None:
            return None
        a, b = pair
        return functional.linear(functional.linear(x.to(a.dtype), a) * (self.alpha / len(a)), b)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnRows:
    """An adapter that only these rows of a batch wear."""

    adapter: Adapter
    rows: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the adapter."""
        return self.adapter.name

    @property
    def kind(self) -> Kind:
        """Of the adapter."""
        return self.adapter.kind

    @property
    def release(self) -> str:
        """Of the adapter."""
        return self.adapter.release

    def delta(self, target: str, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."] | None:
        """What is added to all rows of a whole batch: to others -0, which changes no bit of what it is added to."""
        mine = self.adapter.delta(target, x[list(self.rows)])
        if mine is None:
            return None
        return mine.new_full((len(x), *mine.shape[1:]), -0.0).index_copy(0, torch.tensor(self.rows), mine)


def check_wearable(adapters: Iterable[Adapter], *, kind: Kind, release: str | None = None) -> None:
    """ReleaseMismatch for an adapter of a model of another kind, or of another release where that is known."""
    for adapter in adapters:
        if adapter.kind != kind:
            raise ReleaseMismatch(f"{adapter.name[:80]} adapts models of kind {adapter.kind}; this one is {kind}",
                                  remedy="ask without it, or ask the model that it was trained for")
        if release is not None and adapter.release != release:
            raise ReleaseMismatch(f"{adapter.name[:80]} was trained for release {adapter.release[:12]}; this model is "
                                  f"{release[:12]}", remedy="ask without it, or train it again for this model")


def wearers(adapters: Iterable[Adapter], rows: int, config: TransformerConfig) -> list[tuple[Adapter, tuple[int, ...]]]:
    """Return every adapter with the rows that wear it; CardMisfit unless it fits the network, BadInput for its rows."""
    found = []
    for adapter in adapters:
        inner, worn_by = adapter, tuple(range(rows))
        if isinstance(adapter, OnRows):
            inner, worn_by = adapter.adapter, adapter.rows
            if len(set(worn_by)) < len(worn_by) or not all(0 <= row < rows for row in worn_by):
                raise BadInput(f"rows {list(worn_by)[:8]} are not distinct rows of a batch of {rows}",
                               remedy="name each row once, counting from 0")
        if isinstance(inner, LowRank) and not torch.compiler.is_compiling():   # it would unroll the check
            _check_fit(inner, config)
        if worn_by:
            found.append((inner, worn_by))
    return found


def _check_fit(adapter: LowRank, config: TransformerConfig) -> None:
    shapes = linear_shapes(config)
    misfits = [target for target, shape in adapter.shapes.items() if shapes.get(target) != shape]
    if misfits:
        said = [f"{target[:80]} {adapter.shapes[target]} beside {shapes.get(target, 'nothing')}"
                for target in misfits[:TARGETS_SHOWN_MAX]]
        raise CardMisfit(f"{adapter.name[:80]} does not fit the network: {', '.join(said)}",
                         remedy="wear it on the model that it was trained for")


class Worn:
    """Which slices of a forward's tensors along `dim` wear which adapters, as one part of the network sees it."""

    def __init__(self, worn: Sequence[tuple[Adapter, Tensor | None]], dim: int, path: str = "") -> None:
        self._worn, self._dim, self._path = worn, dim, path   # an index of None: all of them

    @classmethod
    def by_rows(cls, adapters: Sequence[Adapter], rows: int, config: TransformerConfig) -> Worn | None:
        """For tensors (b, s, d) of so many rows; None where nothing is worn."""
        if not adapters:
            return None
        return cls([(adapter, None if len(worn_by) == rows else torch.tensor(worn_by))
                    for adapter, worn_by in wearers(adapters, rows, config)], 0)

    @classmethod
    def by_tokens(cls, worn: Sequence[tuple[Adapter, tuple[int, ...]]], counts: Sequence[int]) -> Worn:
        """For tensors (1, s, d) that hold so many tokens of each row, one row after another."""
        return cls([(adapter, None if len(rows) == len(counts) else tokens_of(rows, counts)) for adapter, rows in worn],
                   1)

    def within(self, name: str) -> Worn:
        """The same for a part of this part."""
        return Worn(self._worn, self._dim, f"{self._path}{name}.")

    def linears(self, layers: Mapping[str, nn.Module], x: Float[Tensor, "b s k"]) -> list[Tensor]:
        """Return what each layer makes of `x`, and what is worn adds to it."""
        outs = linear_together(tuple(layers.values()), x)
        for adapter, index in self._worn:
            given = x if index is None else x.index_select(self._dim, index)
            for place, name in enumerate(layers):
                delta = adapter.delta(self._path + name, given)
                if delta is None:
                    continue
                out = outs[place]
                if delta.shape != (*given.shape[:-1], out.shape[-1]):
                    raise CardMisfit(f"{adapter.name[:80]} adds {tuple(delta.shape)} to {self._path}{name}, which has "
                                     f"{tuple(out.shape)}", remedy="wear it on the model that it was trained for")
                delta = delta.to(out.dtype)
                outs[place] = out + delta if index is None else out.index_add(self._dim, index, delta)
        return outs


def tokens_of(rows: Iterable[int], counts: Sequence[int]) -> Tensor:
    """Return where the tokens of rows are that lie one after another, so many of each."""
    ends = list(accumulate(counts))
    return torch.cat([torch.arange(ends[row] - counts[row], ends[row]) for row in rows])


def linears(layers: Mapping[str, nn.Module], x: Float[Tensor, "b s k"], worn: Worn | None) -> list[Tensor]:
    """Return what each layer, called as its parent calls it, makes of `x` and of what is worn."""
    return linear_together(tuple(layers.values()), x) if worn is None else worn.linears(layers, x)
