"""Formats cost what the packed tensors hold, and a budget goes where it helps most."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aios.errors import BadInput
from aios.quantisation.budget import allocate
from aios.quantisation.formats import Format, ladder, packable
from aios.quantisation.sensitivity import Unit
from aios.store.quant import ArrowQuant

FORMATS = ladder(Format(bits=2, group_size=64))


@pytest.mark.parametrize("form", [*FORMATS, Format(bits=4, group_size=64, symmetric=True, rank=3)], ids=str)
@pytest.mark.parametrize("shape", [(32, 64), (33, 100), (70, 200)])
def test_a_format_costs_what_its_packed_tensor_holds(form: Format, shape: tuple[int, int]) -> None:
    packed = ArrowQuant.quantize(torch.randn(shape), bits=form.bits, group_size=form.group_size,
                                 symmetric=form.symmetric, rank=form.rank)
    assert form.bytes(shape) == packed.nbytes


def test_only_matrices_of_a_panel_or_more_are_packed() -> None:
    assert packable((32, 32))
    assert not any(map(packable, [(31, 500), (500, 31), (500,), (2, 3, 4), ()]))


@pytest.mark.parametrize("wrong", [{"bits": 3}, {"group_size": 16}, {"rank": -1}, {"rank": 257}])
def test_a_format_that_does_not_exist_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BadInput):
        Format(**{"bits": 4, "group_size": 64, **wrong})   # type: ignore[arg-type]


def unit(name: str, sizes: list[int], damages: list[float]) -> Unit:
    return Unit(names=(name,), bytes=dict(zip(FORMATS, sizes, strict=False)),
                damage=dict(zip(FORMATS, damages, strict=False)))


def test_matrices_that_matter_get_the_bits() -> None:
    found = allocate([unit("a", [10, 20], [9.0, 1.0]), unit("b", [10, 20], [1.0, 0.1])], 30)
    assert found == {"a": FORMATS[1], "b": FORMATS[0]}


def test_a_format_that_is_larger_and_no_better_is_never_chosen() -> None:
    found = allocate([unit("a", [10, 20, 30], [5.0, 6.0, 1.0])], 100)
    assert found == {"a": FORMATS[2]}
    assert allocate([unit("a", [10, 20, 30], [5.0, 6.0, 1.0])], 29) == {"a": FORMATS[0]}


def test_a_budget_below_the_smallest_formats_is_refused() -> None:
    with pytest.raises(BadInput, match="budget"):
        allocate([unit("a", [10, 20], [9.0, 1.0])], 9)


sizes = st.lists(st.integers(1, 50), min_size=3, max_size=3).map(sorted)
damages = st.lists(st.floats(0, 100), min_size=3, max_size=3).map(lambda values: sorted(values, reverse=True))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(sizes, damages), min_size=1, max_size=4), st.integers(0, 200))
def test_the_allocation_fits_and_wastes_at_most_one_step(shapes: list[tuple[list[int], list[float]]],
                                                          spare: int) -> None:
    units = [unit(str(index), *shape) for index, shape in enumerate(shapes)]
    budget = sum(shape[0][0] for shape in shapes) + spare
    found = allocate(units, budget)
    spent = sum(each.bytes[found[each.names[0]]] for each in units)
    assert spent <= budget
    damage = sum(each.damage[found[each.names[0]]] for each in units)
    widest = max(each.bytes[high] - each.bytes[low] for each in units
                 for low, high in itertools.combinations(each.bytes, 2))
    best = min((sum(each.damage[form] for each, form in zip(units, choice, strict=True))
                for choice in itertools.product(*(each.bytes for each in units))
                if sum(each.bytes[form] for each, form in zip(units, choice, strict=True)) <= budget - widest),
               default=float("inf"))
    assert damage <= best + 1e-9   # no choice that leaves a step's room does better
