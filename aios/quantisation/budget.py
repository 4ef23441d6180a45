"""Which format each matrix gets, so that all together stay within a number of bytes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from aios.errors import BadInput
from aios.quantisation.formats import Format
from aios.quantisation.sensitivity import Unit


def allocate(units: Sequence[Unit], bytes_max: int) -> dict[str, Format]:
    """The format of every stored matrix; BadInput when even the smallest formats exceed `bytes_max`.

    Each unit climbs the lower convex hull of (bytes, damage); the step with the largest gain per byte comes first.
    This is the solution of the Lagrangian relaxation, and exact up to the last step that does not fit.
    """
    hulls = [_hull(unit) for unit in units]
    spent = sum(unit.bytes[hull[0]] for unit, hull in zip(units, hulls, strict=True))
    if spent > bytes_max:
        raise BadInput(f"the smallest formats need {spent:,} bytes for the matrices, the budget leaves {bytes_max:,}",
                       remedy="allow more, or compress a smaller model")
    at = [0] * len(units)
    steps = [(-_gain(unit, hull, 0), index) for index, (unit, hull) in enumerate(zip(units, hulls, strict=True))
             if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, index = heapq.heappop(steps)
        unit, hull, here = units[index], hulls[index], at[index]
        cost = unit.bytes[hull[here + 1]] - unit.bytes[hull[here]]
        if spent + cost > bytes_max:
            continue
        spent += cost
        at[index] = here + 1
        if here + 2 < len(hull):
            heapq.heappush(steps, (-_gain(unit, hull, here + 1), index))
    return {name: hulls[index][at[index]] for index, unit in enumerate(units) for name in unit.names}


def _gain(unit: Unit, hull: Sequence[Format], here: int) -> float:
    """Damage that the next step removes per byte."""
    now, then = hull[here], hull[here + 1]
    return (unit.damage[now] - unit.damage[then]) / (unit.bytes[then] - unit.bytes[now])


def _hull(unit: Unit) -> list[Format]:
    """The formats worth their bytes, smallest first: larger ones remove less and less damage per byte."""
    hull: list[Format] = []
    for form in sorted(unit.bytes, key=lambda form: (unit.bytes[form], unit.damage[form])):
        if hull and (unit.damage[form] >= unit.damage[hull[-1]] or unit.bytes[form] == unit.bytes[hull[-1]]):
            continue
        while len(hull) > 1 and _gain(unit, [hull[-2], hull[-1]], 0) <= _gain(unit, [hull[-1], form], 0):
            hull.pop()
        hull.append(form)
    return hull
