"""The model that is being compressed: its stored tensors, where each sits in the network, and how texts run through it.

Encoders, language models and diffusion models look alike from here: stored matrices that are rows of a module's
weight, token batches without padding, and hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aios.contracts import Kind, PackedTensor
from aios.diffusion.processes import hide
from aios.errors import BadInput
from aios.model.encoder import EncoderModel
from aios.model.imports import bert_config, bert_state, import_language_model, language_state
from aios.model.score_network import TextScoreNetwork
from aios.quantisation.formats import packable
from aios.store import models
from aios.store.quant import ArrowQuant
from aios.store.record import SPEC, TOKENIZER, read_spec
from aios.store.weights import WeightLoader
from aios.text.tokenizer import SentenceTokenizer, TextTokenizer

if TYPE_CHECKING:
    from aios.store.record import ModelRecord

WINDOW_TOKENS = 128          # of a language or diffusion model: long enough for attention to matter
SENTENCE_TOKENS_MAX = 128    # calibration needs typical inputs, not the longest
BATCH_TOKENS_MAX = 2048      # activations of a batch stay far below the weights
MASKING_SEED = 20_011        # which tokens a diffusion model's batches hide: the same in every run


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a stored matrix sits: rows first..end of the weight of the module called `module`."""

    module: str
    first: int
    end: int


class LanguageNetwork(nn.Module):
    """Backbone and head of a causal language model as one network."""

    def __init__(self, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.backbone, self.head = import_language_model(spec, tensors)

    def hidden(self, ids: Int[Tensor, "b s"]) -> Float[Tensor, "b s d"]:
        """Return the last hidden state of every token."""
        states: Tensor = self.backbone(self.head.embed(ids))
        return states


class Subject:
    """A model to compress. `tensors` are as stored; `network` is built of them, in f32, at first use."""

    def __init__(self, kind: Kind, spec: Mapping[str, Any], tensors: Mapping[str, Tensor | PackedTensor],
                 tokenizer: SentenceTokenizer | TextTokenizer | None = None) -> None:
        self.kind = kind
        self.spec = spec
        self.tensors = tensors
        self._tokenizer = tokenizer
        self.shapes = {name: tuple(int(axis) for axis in tensor.shape) for name, tensor in tensors.items()}

    @classmethod
    def open(cls, record: ModelRecord) -> Subject:
        """An installed model; raises ModelCorrupt or UnknownArchitecture."""
        spec, file = read_spec(record.path / SPEC), record.file(TOKENIZER)
        tokenizer: SentenceTokenizer | TextTokenizer | None = None
        if file is not None:
            encoder = record.kind == "encoder"
            tokenizer = SentenceTokenizer.open(file, _tokens_max(spec)) if encoder else TextTokenizer.open(file)
        return cls(record.kind, spec, models.open_tensors(record), tokenizer)

    def check_intact(self) -> None:
        """Wait until every byte of the source's file is checked; raises ModelCorrupt naming the tensor."""
        if isinstance(self.tensors, WeightLoader):
            self.tensors.intact(wait=True)

    def plain(self, name: str) -> Tensor:
        """A stored tensor as plain numbers; what is packed already is dequantised."""
        tensor = self.tensors[name]
        return ArrowQuant.dequantize(tensor) if isinstance(tensor, PackedTensor) else tensor

    @cached_property
    def network(self) -> nn.Module:
        """The network, f32, without gradients."""
        return self.build({name: self.plain(name) for name in self.tensors})

    def build(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """A network of the model's shape out of `tensors`, named as they are stored."""
        if self.kind == "encoder":
            return EncoderModel.from_huggingface(self.spec, tensors)
        if self.kind == "diffusion":
            return TextScoreNetwork.open(self.spec, tensors)
        return LanguageNetwork(self.spec, tensors)

    @cached_property
    def places(self) -> dict[str, Place]:
        """The place of every stored matrix that the network multiplies with or looks up and that can be packed."""
        return {name: Place(module=parameter.removesuffix(".weight"), first=first, end=end)
                for name, (parameter, first, end) in self._spans.items()
                if packable(self.shapes[name]) and parameter.endswith(".weight")}

    @cached_property
    def vectors(self) -> dict[str, tuple[str, int, int]]:
        """The network's parameter and the entries first..end of it that each stored vector gives."""
        return {name: span for name, span in self._spans.items() if len(self.shapes[name]) == 1}

    @cached_property
    def _spans(self) -> dict[str, tuple[str, int, int]]:
        """Parameter and rows of every stored tensor that the network uses.

        Found by sending row markers instead of weights through the very functions that import the model.
        """
        names = list(self.shapes)
        markers = {name: torch.full(((*self.shapes[name], 1)[0], 1), float(index)) for index, name in enumerate(names)}
        found: dict[str, tuple[str, int, int]] = {}
        for parameter, rows in self._arranged(markers).items():
            sources, counts = torch.unique_consecutive(rows.flatten(), return_counts=True)
            ends = counts.cumsum(0).tolist()
            for source, count, end in zip(sources.tolist(), counts.tolist(), ends, strict=True):
                found[names[int(source)]] = parameter, end - count, end
        return found

    def _arranged(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the stored names as the network's parameters."""
        if self.kind == "encoder":
            found = bert_state(tensors, bert_config(self.spec).num_layers)
        elif self.kind == "diffusion":
            found = dict(tensors)
        else:
            backbone, head = language_state(tensors)
            if self.spec.get("tie_word_embeddings", False):
                head.pop("projection.weight", None)
            found = {**{f"backbone.{name}": tensor for name, tensor in backbone.items()},
                     **{f"head.{name}": tensor for name, tensor in head.items()}}
        return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}

    def output(self, ids: Int[Tensor, "b s"]) -> Tensor:
        """What the network gives for a batch: the unit vectors of an encoder, the hidden states of any other."""
        answer: Tensor = self.network(ids) if self.kind == "encoder" else self.network.hidden(ids)   # type: ignore[operator]
        return answer

    def token_rows(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, as the model reads them."""
        if self._tokenizer is None:
            raise BadInput("the model has no tokenizer, so that no text can calibrate or judge it",
                           remedy="choose --method rtn or hqq")
        if isinstance(self._tokenizer, SentenceTokenizer):
            return self._tokenizer.encode_batch(texts)
        return [self._tokenizer.encode(text) for text in texts]

    def batches(self, texts: Sequence[str]) -> list[Int[Tensor, "b s"]]:
        """The texts as token batches without padding: sentences of one length, or windows of one stream."""
        rows = self.token_rows(texts)
        if self.kind != "encoder":
            stream = [token for row in rows for token in row]
            rows = [stream[at:at + WINDOW_TOKENS] for at in range(0, len(stream), WINDOW_TOKENS)]
        return [self._noised(batch) for batch in _same_lengths([row for row in rows if row])]

    def _noised(self, ids: Int[Tensor, "b s"]) -> Int[Tensor, "b s"]:
        """What the network sees: a diffusion model sees some of the tokens hidden."""
        if self.kind != "diffusion":
            return ids
        rng = torch.Generator().manual_seed(MASKING_SEED)
        return hide(ids, torch.ones_like(ids, dtype=torch.bool), int(self.spec["tokens"]["mask"]), rng).ids


def _tokens_max(spec: Mapping[str, Any]) -> int:
    """How many tokens of a sentence calibrate: no more than the encoder has positions for."""
    positions = spec.get("max_position_embeddings")
    return min(positions, SENTENCE_TOKENS_MAX) if isinstance(positions, int) and positions > 2 else SENTENCE_TOKENS_MAX


def _same_lengths(rows: Sequence[Sequence[int]]) -> list[Int[Tensor, "b s"]]:
    """Rows of one length together, shortest first, in batches of a bounded number of tokens."""
    lengths: dict[int, list[Sequence[int]]] = {}
    for row in rows:
        lengths.setdefault(len(row), []).append(row)
    batches = []
    for length, members in sorted(lengths.items()):
        step = max(BATCH_TOKENS_MAX // length, 1)
        batches += [torch.tensor(members[at:at + step]) for at in range(0, len(members), step)]
    return batches
