"""Which sampler a run's model gets: a trigram model of the training text judges what each writes, at matched entropy.

A sampler that repeats itself scores well with any language model, so that a score counts only where the entropy of
the samples' token histograms lies within 0.1 nat of that of validation text of the same length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from aios.contracts import SamplingDefaults
from aios.model.score_network import TextScoreNetwork
from aios.training.checkpoints import write_json
from aios.training.data import Corpus
from aios.training.export import PLAIN, Trained
from aios.training.samples import write

FILE: Final = "sampling.json"
JUDGE_SEED, SAMPLE_SEED = 20_101, 20_102
JUDGE_TOKENS = (
    4_000_000  # of the training mixture; more changes the score of held-out text by under 0.02 nats
)
JUDGE_SHARES = (0.1, 0.35, 0.55)  # of unigram, bigram and trigram in the judge's mixture
ENTROPY_TOLERANCE_NATS = 0.1
ROWS = 48
WHOLE = (("ancestral", 1.0), ("ancestral", 0.5), ("confidence", 0.5), ("entropy", 0.5))
BLOCKS = (("left_to_right", 1.0), ("ancestral", 1.0), ("left_to_right", 0.5))
TEMPERATURES = (1.0, 0.9, 0.8, 0.7)
# Of a model that writes blocks: a gap is filled with both sides in sight, and leaves less open than an onward text.
INFILL: Final = "confidence"
INFILL_TEMPERATURE: Final = 0.5


def candidates(block: int) -> tuple[SamplingDefaults, ...]:
    """The settings to choose from, for a model that learned blocks of this many tokens, or whole rows (0)."""
    return tuple(
        SamplingDefaults(sampler=sampler, steps_per_token=steps_per_token, temperature=temperature, length=64,
                         block=block, infill_sampler=INFILL if block else None,
                         infill_temperature=INFILL_TEMPERATURE if block else None)
        for sampler, steps_per_token in (BLOCKS if block else WHOLE) for temperature in TEMPERATURES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What one sampler's texts are like: the judge's nats a token, their entropy, and how often the network ran."""

    sampling: SamplingDefaults | None   # None: validation text itself
    judge: float
    entropy: float
    matched: bool
    calls: int


class TrigramJudge:
    """Interpolated trigrams of the training mixture; knows nothing of the network it judges."""

    def __init__(self, corpus: Corpus, *, vocab_size: int, tokens: int, length: int = 256) -> None:
        self.vocab_size = vocab_size
        rows = tokens // length
        ids = corpus.batch(seed=JUDGE_SEED, step=0, rows=rows, length=length).numpy()
        self.counts = [np.unique(self._keys(ids, order), return_counts=True) for order in (1, 2, 3)]
        self.total = rows * (length - 2)

    def _keys(self, ids: np.ndarray, order: int) -> np.ndarray:
        """Number the `order`-grams that end at every third and later token."""
        keys = np.zeros(ids[:, 2:].shape, dtype=np.int64)
        for back in range(order - 1, -1, -1):
            keys = keys * self.vocab_size + ids[:, 2 - back : ids.shape[1] - back]
        return keys

    def _count(self, ids: np.ndarray, order: int) -> np.ndarray:
        keys, counts = self.counts[order - 1]
        wanted = self._keys(ids, order)
        at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        return np.where(keys[at] == wanted, counts[at], 0)

    def nats_per_token(self, rows: Int[Tensor, "b s"]) -> float:
        """Return the mean -log p of every third and later token."""
        ids = rows.numpy()
        one, two, three = (self._count(ids, order) for order in (1, 2, 3))
        before = np.roll(ids, 1, axis=1)
        context_one, context_two = self._count(before, 1), self._count(before, 2)
        p = JUDGE_SHARES[0] * (one + 1) / (self.total + self.vocab_size)
        p += JUDGE_SHARES[1] * two / np.maximum(context_one, 1)
        p += JUDGE_SHARES[2] * three / np.maximum(context_two, 1)
        return float(-np.log(p).mean())


def histogram_entropy(rows: Int[Tensor, "b s"]) -> float:
    """Return the mean entropy in nats of each row's token histogram."""
    entropies = []
    for row in rows:
        share = torch.unique(row, return_counts=True)[1] / len(row)
        entropies.append(float(torch.special.entr(share).sum()))
    return sum(entropies) / len(entropies)


def held_out_mixture(corpus: Corpus, *, rows: int, length: int) -> Int[Tensor, "b s"]:
    """Return validation windows of every source, in the proportions of the mixture."""
    parts = [
        corpus.held_out_windows(name, rows=max(1, round(rows * weight)), length=length)
        for name, weight in corpus.weights.items()
    ]
    return torch.cat(parts)


def compare(
    network: TextScoreNetwork, corpus: Corpus, candidates: Sequence[SamplingDefaults], *, rows: int = ROWS
) -> Iterator[Judged]:
    """Yield what validation text is like, then what each candidate writes."""
    judge = TrigramJudge(corpus, vocab_size=network.head.vocab_size, tokens=JUDGE_TOKENS)
    length = candidates[0].length
    real = held_out_mixture(corpus, rows=rows * 8, length=length)
    reference = histogram_entropy(real)
    yield Judged(sampling=None, judge=judge.nats_per_token(real), entropy=reference, matched=True, calls=0)
    for candidate in candidates:
        nothing = torch.zeros(rows, 0, dtype=torch.long)
        written, calls = write(network, nothing, sampling=candidate, seed=SAMPLE_SEED)
        entropy = histogram_entropy(written)
        yield Judged(sampling=candidate, judge=judge.nats_per_token(written), entropy=entropy,
                     matched=abs(entropy - reference) <= ENTROPY_TOLERANCE_NATS, calls=calls)


def best(judged: Sequence[Judged]) -> SamplingDefaults | None:
    """The candidate with the best score at matched entropy; None when none matches."""
    matching = [(one.judge, index) for index, one in enumerate(judged) if one.matched and one.sampling is not None]
    return judged[min(matching)[1]].sampling if matching else None


def keep(run: Path, sampling: SamplingDefaults) -> None:
    """Write a run's sampler beside its weights, where `chosen` finds it."""
    write_json(asdict(sampling), run / FILE)


def chosen(trained: Trained) -> SamplingDefaults:
    """The sampler that was kept for a run, else a plain one."""
    try:
        told: dict[str, Any] = json.loads((trained.folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return PLAIN if not trained.block else replace(
            PLAIN, sampler="left_to_right", block=trained.block, infill_sampler=INFILL,
            infill_temperature=INFILL_TEMPERATURE)
    return msgspec.convert(told, SamplingDefaults)
