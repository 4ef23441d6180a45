"""Rank correlation with ties, held against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.lab.statistics import bootstrap, ranks, spearman


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert ranks(np.array([10.0, 20.0, 10.0, 30.0, 20.0, 20.0])).tolist() == [1.5, 4.0, 1.5, 6.0, 4.0, 4.0]


@pytest.mark.parametrize(("x", "y", "value"), [
    ([1, 2, 3, 4], [10, 200, 3000, 40000], 1.0),
    ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
    ([1, 2, 3, 4, 5], [5, 6, 7, 8, 7], 0.820782681668),    # ranks 1 2 3.5 5 3.5: 8 / sqrt(10 * 9.5)
    ([1, 1, 2, 2], [1, 2, 1, 2], 0.0),
    ([1, 2, 3], [7, 7, 7], 0.0),
])
def test_spearman_equals_the_hand_worked_value(x: list[float], y: list[float], value: float) -> None:
    assert spearman(np.array(x, dtype=float), np.array(y, dtype=float)) == pytest.approx(value, abs=1e-9)


@given(st.lists(st.integers(-50, 50), min_size=3, max_size=30), st.randoms(use_true_random=False))
def test_spearman_ignores_any_rising_transformation(values: list[int], random: object) -> None:
    x = np.array(values, dtype=float)
    y = np.array(sorted(values, key=lambda _: random.random()), dtype=float)  # type: ignore[attr-defined]
    assert spearman(x, y) == pytest.approx(spearman(np.exp(x / 10), 3 * y + 1), abs=1e-9)


def test_spearman_refuses_samples_that_do_not_pair() -> None:
    for x, y in (([1.0], [1.0]), ([1.0, 2.0], [1.0, 2.0, 3.0])):
        with pytest.raises(ValueError, match="same length"):
            spearman(np.array(x), np.array(y))


def test_the_interval_holds_the_value_and_follows_the_seed() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    y = x + rng.normal(size=200)
    low, high = bootstrap(spearman, x, y, 1)
    assert low < spearman(x, y) < high
    assert bootstrap(spearman, x, y, 1) == (low, high)
    assert bootstrap(spearman, x, y, 2) != (low, high)
