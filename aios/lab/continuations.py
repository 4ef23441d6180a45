"""Stretches of held-out text and what models write in their place: at matched entropy, judged by a language model.

A stretch is a prompt of 16 tokens and the 64 that really follow. A language model's loss falls with text that repeats
itself, so that arms are compared only where the entropy of their token histograms is that of the real text.
Temperatures are set on validation text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from aios.contracts import Canvas, Prediction, SamplingDefaults
from aios.diffusion.schedules import LogLinear
from aios.lab.statistics import CONFIDENCE, RESAMPLES, Floats
from aios.model.denoiser import TextDenoiser
from aios.model.score_network import TextScoreNetwork
from aios.training.samples import sampler_of, text_canvas

if TYPE_CHECKING:
    from aios.quantisation.subject import LanguageNetwork

PROMPT_TOKENS, NEW_TOKENS = 16, 64
BATCH_ROWS: Final = 25          # of samples that one seed draws; 2,000 tokens stay in the cache
ENTROPY_TOLERANCE_NATS: Final = 0.1
TUNED_WITHIN_NATS: Final = 0.02     # the rest of the tolerance is for the test text's difference from validation
TUNING_TRIALS: Final = 6        # the same for every arm
TEMPERATURES: Final = (0.2, 2.0)
JUDGE_BATCH_ROWS: Final = 8

Ints = NDArray[np.int64]


class Write(Protocol):
    """An arm: the tokens it writes behind each prompt, at a temperature."""

    def __call__(self, prompts: Ints, temperature: float, seed: int) -> Ints: ...


def stretches(documents: Mapping[str, Sequence[Sequence[int]]], weights: Mapping[str, float], count: int) -> Ints:
    """(n, 80) tokens out of documents by source, in the proportions of `weights`; at most `count`.

    The beginnings of documents come first, then what follows in them; documents below 80 tokens have none.
    """
    size = PROMPT_TOKENS + NEW_TOKENS
    pieces = {}
    for name, found in documents.items():
        numbered = [(begin, document[begin:begin + size]) for document in found
                    for begin in range(0, len(document) - size + 1, size)]
        pieces[name] = [piece for _, piece in sorted(numbered, key=lambda one: one[0])]   # stable: in their order
    there = {name: weights[name] for name, found in pieces.items() if found and weights.get(name)}
    rows: list[Sequence[int]] = []
    for name, weight in there.items():
        rows += pieces[name][:round(count * weight / sum(there.values()))]
    return np.array(rows[:count], dtype=np.int64).reshape(-1, size)


def by_document(tokens: NDArray[np.uint16], eot: int) -> list[list[int]]:
    """The documents of a stream, without the ends of text."""
    return [part.tolist() for part in np.split(tokens, np.flatnonzero(tokens == eot) + 1)
            for part in [part[:-1] if len(part) and part[-1] == eot else part]]


def histogram_entropy(rows: Ints) -> float:
    """The mean Shannon entropy of each row's token histogram, in nats."""
    total = 0.0
    for row in rows:
        share = np.unique(row, return_counts=True)[1] / len(row)
        total -= float((share * np.log(share)).sum())
    return total / len(rows)


def diffusion(network: TextScoreNetwork, sampling: SamplingDefaults, eot: int) -> Write:
    """A network as an arm: its own sampler and number of steps; it may not end the text, as no other arm may."""
    reader = TextDenoiser(network, end_ids=(eot,))

    def denoise(canvas: Canvas) -> Prediction:
        prediction = reader(canvas)
        prediction.segments[0].values[..., eot] = -torch.inf
        return prediction

    def write(prompts: Ints, temperature: float, seed: int) -> Ints:
        rows = [_sampled(denoise, torch.from_numpy(prompts[begin:begin + BATCH_ROWS]), sampling, temperature,
                         seed + begin // BATCH_ROWS) for begin in range(0, len(prompts), BATCH_ROWS)]
        found: Ints = torch.cat(rows).numpy()
        return found

    return write


@torch.inference_mode()
def _sampled(denoise: Callable[[Canvas], Prediction], given: Tensor, sampling: SamplingDefaults, temperature: float,
             seed: int) -> Tensor:
    canvas = text_canvas(given, NEW_TOKENS, onward=bool(sampling.block))
    steps = max(1, round(NEW_TOKENS * sampling.steps_per_token))
    rng = torch.Generator().manual_seed(seed)
    sample, _ = sampler_of(sampling, tail=False)
    for state in sample(denoise, canvas, LogLinear(), steps, rng, temperature=temperature):
        canvas = state
    return canvas.segments[0].x[:, given.shape[1]:]


def tuned(write: Write, prompts: Ints, entropy: float, first: float, seed: int) -> float:
    """The temperature at which an arm's samples have this entropy: bracketed, then interpolated."""
    below: tuple[float, float] | None = None     # a temperature, and how far its entropy is off
    above: tuple[float, float] | None = None
    best, temperature = (np.inf, first), first
    for _ in range(TUNING_TRIALS):
        found = histogram_entropy(write(prompts, temperature, seed)) - entropy
        best = min(best, (abs(found), temperature))
        if abs(found) <= TUNED_WITHIN_NATS:
            break
        if found < 0:
            below = temperature, found
        else:
            above = temperature, found
        if below and above:
            temperature = below[0] + (above[0] - below[0]) * below[1] / (below[1] - above[1])
        else:
            temperature = (temperature + TEMPERATURES[found < 0]) / 2
    return best[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """A language model's nats for each text, and the texts' bytes."""

    nats: Floats
    bytes: Floats

    @property
    def per_byte(self) -> float:
        """Nats for each byte of all texts."""
        return float(self.nats.sum() / self.bytes.sum())

    def resampled(self, seed: int) -> Floats:
        """The same over texts drawn again with replacement; the same seed draws the same ones."""
        chosen = np.random.default_rng(seed).integers(0, len(self.nats), size=(RESAMPLES, len(self.nats)))
        found: Floats = self.nats[chosen].sum(axis=1) / self.bytes[chosen].sum(axis=1)
        return found


def position(samples: Losses, floor: Losses, ceiling: Losses, seed: int) -> tuple[float, tuple[float, float]]:
    """Where samples lie between floor (0) and ceiling (1), and a 95 % interval over prompts, which arms share."""
    value = (floor.per_byte - samples.per_byte) / (floor.per_byte - ceiling.per_byte)
    low_loss, loss, high_loss = (arm.resampled(seed) for arm in (ceiling, samples, floor))
    draws = (high_loss - loss) / (high_loss - low_loss)
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return value, (float(low), float(high))


@dataclass(frozen=True)
class Judge:
    """A causal language model that knows nothing of the arms; `start` stands before every text."""

    network: LanguageNetwork
    encode: Callable[[str], list[int]]
    start: int

    def losses(self, texts: Sequence[tuple[str, str]]) -> Losses:
        """-log p of each second text behind the first one, which may be empty."""
        given = [[self.start, *self.encode(before)] for before, _ in texts]
        told = [self.encode(text) for _, text in texts]
        order = sorted(range(len(texts)), key=lambda at: len(given[at]) + len(told[at]))
        nats = np.zeros(len(texts))
        for begin in range(0, len(order), JUDGE_BATCH_ROWS):
            chosen = order[begin:begin + JUDGE_BATCH_ROWS]
            nats[chosen] = self._batch([given[at] for at in chosen], [told[at] for at in chosen])
        return Losses(nats=nats, bytes=np.array([len(text.encode()) for _, text in texts], dtype=float))

    @torch.inference_mode()
    def _batch(self, given: Sequence[Sequence[int]], told: Sequence[Sequence[int]]) -> Floats:
        """Rows are filled up on the right, which a causal network does not see."""
        rows = [[*before, *text] for before, text in zip(given, told, strict=True)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        asked = torch.zeros(ids.shape, dtype=torch.bool)
        for at, (before, text) in enumerate(zip(given, told, strict=True)):
            asked[at, len(before):len(before) + len(text)] = True
        wanted = asked[:, 1:]
        logits = self.network.head.project(self.network.hidden(ids)[:, :-1][wanted])
        losses = functional.cross_entropy(logits.float(), ids[:, 1:][wanted], reduction="none")
        found: Floats = torch.zeros(wanted.shape).masked_scatter(wanted, losses).sum(dim=1).double().numpy()
        return found
