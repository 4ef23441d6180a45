"""The n-gram model against a dictionary that spells out its formula; sums, samples and overlaps."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from aios.errors import BadInput
from aios.lab.ngram import KneserNey, distinct_share, overlaps

VOCABULARY, NEVER, ORDER = 7, (0, 1), 3


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    rng = np.random.default_rng(3)
    found = [2]
    for _ in range(3000):   # mostly one of two followers, so that some n-grams are frequent and some rare
        followers = [2 + found[-1] % 5, 2 + (found[-1] + 2) % 5, rng.integers(2, 7)]
        found.append(int(rng.choice(followers, p=[0.6, 0.3, 0.1])))
    return np.array(found, dtype=np.uint16)


@pytest.fixture(scope="module")
def model(tokens: np.ndarray) -> KneserNey:
    return KneserNey.train(tokens, VOCABULARY, never=NEVER, order=ORDER)


def spelled_out(tokens: list[int], context: tuple[int, ...], token: int) -> float:
    """The same probability by counting with dictionaries."""
    grams = [Counter(zip(*(tokens[at:] for at in range(ORDER)), strict=False))]
    while len(next(iter(grams[0]))) > 1:
        grams.insert(0, Counter(gram[1:] for gram in grams[0]))
    p = 1 / (VOCABULARY - len(NEVER))
    for length, counts in enumerate(grams, start=1):
        n = [sum(count == times for count in counts.values()) for times in range(5)]
        share = n[1] / (n[1] + 2 * n[2]) if min(n[1:4]) else 0.0
        d = [0.0, *(times - (times + 1) * share * n[times + 1] / n[times] for times in (1, 2, 3))] if share else [
            0.0, 0.5, 1.0, 1.5]
        d = [min(max(value, 0.0), times) for times, value in enumerate(d)]
        behind = context[len(context) - length + 1:]
        mine = {gram: count for gram, count in counts.items() if gram[:-1] == behind}
        if mine:
            total, own = sum(mine.values()), mine.get((*behind, token), 0)
            rest = sum(d[min(count, 3)] for count in mine.values()) / total
            p = (own - d[min(own, 3)]) / total + rest * p
    return p


def test_probabilities_are_those_of_the_formula(model: KneserNey, tokens: np.ndarray) -> None:
    told = list(map(int, tokens))
    for context in ((2, 3), (6, 6), (5, 2), (4, 3)):
        wanted = [spelled_out(told, context, token) if token not in NEVER else 0.0 for token in range(VOCABULARY)]
        assert model.distribution(np.array([context]))[0] == pytest.approx(wanted, abs=1e-12)


def test_probabilities_add_up_to_one_behind_every_context(model: KneserNey) -> None:
    contexts = np.stack(np.meshgrid(np.arange(VOCABULARY), np.arange(VOCABULARY)), axis=-1).reshape(-1, 2)
    p = model.distribution(contexts)    # those that never occurred among them
    assert p.sum(axis=1) == pytest.approx(np.ones(len(contexts)), abs=1e-12)
    assert not p[:, list(NEVER)].any() and (p[:, 2:] > 0).all()


def test_a_stream_has_the_probabilities_of_its_tokens(model: KneserNey, tokens: np.ndarray) -> None:
    nats, start = model.nats(tokens[:50], start=2), 2
    padded = [start, start, *map(int, tokens[:50])]
    told = [-np.log(model.distribution(np.array([padded[at:at + 2]]))[0, padded[at + 2]]) for at in range(50)]
    assert nats == pytest.approx(told)
    shuffled = np.random.default_rng(0).permutation(tokens[:500])
    assert model.nats(tokens[:500], start).mean() < model.nats(shuffled, start).mean() - 0.3


def test_samples_follow_the_distribution_and_the_temperature(model: KneserNey) -> None:
    given = np.tile(np.array([2, 3]), (20_000, 1))
    drawn = model.continued(given, 1, temperature=1.0, never=(), rng=np.random.default_rng(1))[:, 0]
    assert np.bincount(drawn, minlength=VOCABULARY) / len(drawn) == pytest.approx(
        model.distribution(given[:1])[0], abs=0.02)
    cold = model.continued(given[:50], 4, temperature=0.02, never=(4,), rng=np.random.default_rng(1))
    assert cold.shape == (50, 4) and len(np.unique(cold, axis=0)) == 1 and not (cold == 4).any()


def test_keys_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadInput, match="64 bits"):
        KneserNey.train(np.zeros(10, dtype=np.uint16), 1 << 14)


def test_shared_and_distinct_n_grams_are_counted() -> None:
    rows = np.array([[1, 2, 3, 4, 5], [1, 2, 3, 9, 9]])
    streams = [np.array([7, 1, 2, 3, 4], dtype=np.uint16), np.array([2, 3, 9], dtype=np.uint16)]
    other = np.array([[1, 2, 9, 9, 9]])
    assert overlaps([rows, other], streams, 3) == pytest.approx([4 / 6, 0.0])    # 123 twice, 234 and 239
    assert overlaps([rows], [np.array([1], dtype=np.uint16)], 3) == [0.0]
    assert distinct_share(rows, 3) == pytest.approx(5 / 6)
