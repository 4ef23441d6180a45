"""One number that says how good a model is, by its kind: rank correlation, perplexity, or a bound on held-out text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from aios.lab.report import LabOptions
from aios.lab.statistics import Floats, spearman
from aios.model.score_network import TextScoreNetwork
from aios.quantisation.subject import LanguageNetwork, Subject
from aios.training.objective import held_out_bound

STSB, WIKITEXT = "stsb_en.parquet", "wikitext2_valid.parquet"
TOKENS_MAX = 16_384          # of running text: a perplexity within a percent or two, in about a minute
WINDOW_TOKENS = 256
METRICS: Final = {"encoder": ("sts_dev_spearman", "higher", STSB), "ar": ("perplexity", "lower", WIKITEXT),
                  "diffusion": ("held_out_bound_nats", "lower", WIKITEXT)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A model's number, or the reason why there is none."""

    metric: str
    better: Literal["higher", "lower"]
    value: float | None
    reason: str | None = None


def score(subject: Subject, data: Path | None) -> Score:
    """Measure the subject's network on the data of its kind; null with the reason when the data is absent."""
    if subject.kind not in METRICS:
        return Score(metric="quality", better="higher", value=None, reason=f"no measure is known for {subject.kind}")
    metric, better, file_name = METRICS[subject.kind]
    direction: Literal["higher", "lower"] = "higher" if better == "higher" else "lower"
    file = LabOptions(data=data, seed=0).find_data(file_name)
    if file is None:
        return Score(metric=metric, better=direction, value=None,
                     reason=f"no {file_name}: name its folder with --data or AIOS_DATA (docs/data.md)")
    value = _sts(subject, file) if subject.kind == "encoder" else _running_text(subject, file)
    return Score(metric=metric, better=direction, value=value)


def sts_pairs(file: Path, split: str) -> tuple[list[str], list[str], Floats]:
    """First sentences, second sentences and people's scores of one split of STS-B."""
    from pyarrow import parquet

    rows = [row for row in parquet.read_table(file, columns=["split", "a", "b", "score"]).to_pylist()
            if row["split"] == split]
    return [row["a"] for row in rows], [row["b"] for row in rows], np.array([row["score"] for row in rows])


def cosines(vectors: torch.Tensor) -> Floats:
    """Products of row i with row n + i, of 2n unit vectors."""
    first, second = vectors.double().chunk(2)
    products: Floats = (first * second).sum(dim=1).numpy()
    return products


def _sts(subject: Subject, file: Path) -> float:
    first, second, gold = sts_pairs(file, "dev")
    return spearman(cosines(subject.network.encode(subject.token_rows([*first, *second]))), gold)   # type: ignore[operator]


def _running_text(subject: Subject, file: Path) -> float:
    from pyarrow import parquet

    lines = parquet.read_table(file).column(0).to_pylist()
    windows = _windows(subject.token_rows(["\n".join(str(line) for line in lines)[:TOKENS_MAX * 8]])[0])
    if isinstance(subject.network, TextScoreNetwork):
        return held_out_bound(subject.network, windows, int(subject.spec["tokens"]["mask"]))
    return _perplexity(subject.network, windows)


def _windows(ids: Sequence[int]) -> torch.Tensor:
    count = min(len(ids), TOKENS_MAX) // WINDOW_TOKENS
    return torch.tensor(ids[:count * WINDOW_TOKENS]).view(count, WINDOW_TOKENS)


@torch.inference_mode()
def _perplexity(network: nn.Module, windows: torch.Tensor) -> float:
    """exp of the mean -log p of every token but each window's first."""
    assert isinstance(network, LanguageNetwork)
    total = 0.0
    for ids in torch.tensor_split(windows, -(-len(windows) // 4)):
        logits = network.head.project(network.hidden(ids)[:, :-1])
        total += float(functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"))
    return math.exp(total / (windows.numel() - len(windows)))
