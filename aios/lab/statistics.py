"""The statistics behind verdicts: rank correlation and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 1000
CONFIDENCE = 0.95


def ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Floats = (last - counts + 1 + last) / 2.0
    return mean[inverse]


def spearman(x: Floats, y: Floats) -> float:
    """Spearman's rank correlation with ties: Pearson's correlation of the ranks; 0 where one side is constant."""
    if len(x) != len(y) or len(x) < 2:
        raise ValueError("two samples of the same length, at least 2")
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def bootstrap(measure: Callable[[Floats, Floats], float], x: Floats, y: Floats, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of `measure` over pairs drawn with replacement."""
    rng = np.random.default_rng(seed)
    draws = [measure(x[chosen], y[chosen]) for chosen in rng.integers(0, len(x), size=(RESAMPLES, len(x)))]
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
