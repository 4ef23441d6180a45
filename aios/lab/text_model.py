"""A diffusion text model as evaluations see it: network, tokenizer, and its bound on windows of the held-out set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from aios.config import Places
from aios.contracts import PackedTensor, SamplingDefaults
from aios.errors import BadInput
from aios.lab.heldout import Cut, HeldOut, cuts
from aios.lab.statistics import CONFIDENCE, RESAMPLES, Floats
from aios.model.score_network import TextScoreNetwork
from aios.store import models
from aios.store.record import SPEC, TOKENIZER, ModelRecord, read_spec
from aios.training.objective import Objective, bound, measured_by
from aios.training.vocabulary import SIZES, file_sha256, vocabulary_path

WINDOW_TOKENS: Final = 256      # or the model's context, where that is shorter
DRAWS: Final = 4                # maskings of each window, spread evenly over all shares of masks


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Windows of one source: tokens, where they begin, and the bytes of text in each."""

    cut: Cut
    first: np.ndarray
    length: int

    @property
    def ids(self) -> Tensor:
        """(b, length) token ids."""
        index = self.first[:, None] + np.arange(self.length)
        return torch.from_numpy(self.cut.tokens[index].astype(np.int64))

    @property
    def bytes(self) -> Floats:
        """Of each window."""
        sizes: Floats = self.cut.token_bytes[self.ids.numpy()].sum(axis=1).astype(float)
        return sizes


@dataclass(frozen=True)
class TextModel:
    """An opened model. `tensors` are as stored, `network` computes with them as they are."""

    record: ModelRecord
    spec: Mapping[str, Any]
    tensors: Mapping[str, Tensor | PackedTensor]
    network: TextScoreNetwork
    tokenizer: Tokenizer

    @classmethod
    def open(cls, name: str, places: Places) -> TextModel:
        """An installed diffusion model of text; raises ModelMissing, ModelCorrupt, or BadInput for another kind."""
        record = models.find(name, places)
        file = record.file(TOKENIZER)
        if record.kind != "diffusion" or file is None:
            raise BadInput(f"{name} is no diffusion model of text", remedy="aios models list")
        spec, tensors = read_spec(record.path / SPEC), models.open_tensors(record)
        return cls(record, spec, tensors, TextScoreNetwork.open(spec, tensors).eval(), Tokenizer.from_file(str(file)))

    @property
    def eot(self) -> int:
        """The id of the end of text."""
        return int(self.spec["tokens"]["eot"])

    @property
    def packed(self) -> bool:
        """Whether some of its matrices are quantised."""
        return any(isinstance(tensor, PackedTensor) for tensor in self.tensors.values())

    @property
    def sampling(self) -> SamplingDefaults:
        """How it writes when nobody says."""
        return SamplingDefaults(**self.spec["aios"]["sampling"])

    @property
    def asked(self) -> Objective:
        """What its text is measured by: the likelihood in the order in which it writes blocks, else the bound."""
        return measured_by(self.sampling)

    @cached_property
    def vocabulary_sha256(self) -> str:
        """Of its tokenizer's file."""
        return next(file.sha256 for file in self.record.files if file.name == TOKENIZER)

    @cached_property
    def frozen_vocabulary(self) -> bool:
        """Whether it is cut as built recipes are: only then is the set known to be held out from its training."""
        return self.vocabulary_sha256 in {file_sha256(vocabulary_path(size)) for size in SIZES}

    def windows(self, documents: Sequence[HeldOut], count: int, seed: int) -> list[Windows]:
        """At most `count` windows of each source, drawn by the seed; short sources have one short window."""
        rng = np.random.default_rng(seed)
        found = []
        for cut in cuts(documents, self.tokenizer, self.eot):
            length = min(WINDOW_TOKENS, int(self.spec["length_max"]), len(cut.tokens))
            found.append(Windows(cut=cut, first=cut.windows(length, count, rng), length=length))
        return found

    def backbone_share(self) -> float:
        """Parameters of the backbone without its embedding of modalities, for each of the model's parameters."""
        sizes = {name: math.prod(tensor.shape) for name, tensor in self.tensors.items()}
        backbone = sum(size for name, size in sizes.items()
                       if name.startswith("backbone.") and not name.startswith("backbone.modality"))
        return backbone / sum(sizes.values())


def nats(network: TextScoreNetwork, windows: Windows, seed: int, asked: Objective) -> Floats:
    """The bound on -log p of every window in nats; the same seed hides the same tokens."""
    found = np.empty(len(windows.first))
    for at, ids in enumerate(windows.ids):
        # The rows of one batch share the levels of noise out among themselves: here, of one window.
        rows = ids.expand(1 if asked.exact else DRAWS, -1)
        found[at] = bound(network, asked, rows, seed=seed + at, rows=DRAWS) * windows.length
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Bits for each byte of the mixture: by source, window by window."""

    nats: Sequence[Floats]
    bytes: Sequence[Floats]
    weights: Sequence[float]
    names: Sequence[str]

    @property
    def by_source(self) -> dict[str, float]:
        """Bits per byte of each source."""
        return {name: float(nats.sum() / sizes.sum()) / math.log(2)
                for name, nats, sizes in zip(self.names, self.nats, self.bytes, strict=True)}

    @property
    def value(self) -> float:
        """Bits per byte of the mixture."""
        return sum(weight * rate for weight, rate in zip(self.weights, self.by_source.values(), strict=True))

    def resampled(self, seed: int) -> Floats:
        """The value over windows drawn again with replacement, source by source; the same seed draws the same ones."""
        rng, total = np.random.default_rng(seed), np.zeros(RESAMPLES)
        for nats, sizes, weight in zip(self.nats, self.bytes, self.weights, strict=True):
            chosen = rng.integers(0, len(nats), size=(RESAMPLES, len(nats)))
            total += weight * nats[chosen].sum(axis=1) / sizes[chosen].sum(axis=1) / math.log(2)
        return total

    def interval(self, seed: int, over: Rate | None = None) -> tuple[float, float]:
        """The 95 % interval of the value, or of its ratio to another rate of the same windows."""
        draws = self.resampled(seed) / (1.0 if over is None else over.resampled(seed))
        low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return float(low), float(high)

    def told(self) -> str:
        """Bits per byte by source, in words."""
        return ", ".join(f"{name} {rate:.3f}" for name, rate in self.by_source.items())


def rate(windows: Sequence[Windows], nats_of: Sequence[Floats]) -> Rate:
    """Bits per byte from the nats of every window."""
    return Rate(nats=nats_of, bytes=[one.bytes for one in windows], weights=[one.cut.weight for one in windows],
                names=[one.cut.source for one in windows])


def network_of_run(folder: Path) -> TextScoreNetwork:
    """The averaged weights of a training run, as its network; its objective may be another than the model's."""
    from aios.lab.training_roots import config_of
    from aios.model.config import TransformerConfig
    from aios.training.checkpoints import read_tensors
    from aios.training.vocabulary import UNWRITTEN

    told = config_of(folder)
    network = TextScoreNetwork(TransformerConfig(**told["network"]), told["vocab_size"], never=UNWRITTEN)
    network.load_state_dict(read_tensors(folder / "best.safetensors")[0])
    return network.eval()
