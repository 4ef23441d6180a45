"""The statistics behind verdicts: rank correlation and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 1000
CONFIDENCE = 0.95
BISECTIONS = 40    # of 0..1: far below what a rate is told with


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


def clopper_pearson(hits: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of a rate of `hits` in `n`. Source: Clopper and Pearson 1934."""
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"{hits} hits in {n}")
    counts = np.arange(n + 1)
    ways = np.concatenate(([0.0], np.cumsum(np.log(n - counts[:-1]) - np.log(counts[1:]))))

    def at_least(k: int, p: float) -> float:
        return float(np.exp(ways[k:] + counts[k:] * np.log(p) + (n - counts[k:]) * np.log1p(-p)).sum())

    def solve(k: int, chance: float) -> float:
        """The p at which k hits or more have this chance; the chance grows with p."""
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if at_least(k, middle) < chance else (low, middle)
        return (low + high) / 2

    tail = (1 - CONFIDENCE) / 2
    return (solve(hits, tail) if hits else 0.0), (solve(hits + 1, 1 - tail) if hits < n else 1.0)
