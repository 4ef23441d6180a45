"""`LanguageModel`: an imported causal network that writes many texts at once, a token of each in one forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from aios.contracts import Adapter, PackedTensor
from aios.model.cache import KeyValueCache, PackedStep, RunningCache
from aios.model.heads import TextHead
from aios.model.imports import import_language_model
from aios.model.lora import check_wearable
from aios.model.packed_layers import PackedLayers
from aios.model.quant_linear import INFERENCE_BITS, use_activation_bits
from aios.model.transformer import SharedTransformer

LENGTH_MAX_UNSAID = 2048  # tokens; where config.json does not say: what the oldest models of the kind read


class LanguageModel:
    """Backbone and head of a causal language model, and the memory its sequences need."""

    def __init__(self, backbone: SharedTransformer, head: TextHead, length_max: int) -> None:
        self.backbone = backbone
        self.head = head
        self.length_max = length_max
        self.vocab_size = head.vocab_size
        self._packed: PackedLayers | None = None
        self._asked = False

    @classmethod
    def open(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor | PackedTensor],
             activation_bits: int = INFERENCE_BITS) -> LanguageModel:
        """Build what config.json describes over the tensors; UnknownArchitecture or ModelCorrupt.

        Products with packed weights take activations of so many bits, 8 or 16.
        """
        length_max = spec.get("max_position_embeddings")
        if not isinstance(length_max, int) or length_max < 1:
            length_max = LENGTH_MAX_UNSAID
        backbone, head = import_language_model(spec, tensors)
        for part in (backbone, head):
            use_activation_bits(part, activation_bits)
        return cls(backbone, head, length_max)

    def prompt_cache(self, length: int) -> KeyValueCache:
        """An empty cache for a prompt of so many tokens."""
        return KeyValueCache(self.backbone.config, batch=1, length_max=length)

    def running_cache(self) -> RunningCache:
        """An empty cache for texts that are being written."""
        return RunningCache(self.backbone.config, length_max=self.length_max)

    def operations(self, length: int) -> int:
        """Floating-point operations of one token behind `length` others, without the projection."""
        config = self.backbone.config
        attended = 4 * config.num_heads * config.head_dim * length
        query, key = config.num_heads * config.head_dim, 2 * config.num_kv_heads * config.head_dim
        matrices = config.hidden_dim * (2 * query + key + 3 * config.ffn_dim)
        return config.num_layers * (2 * matrices + attended)

    def advance(
        self, ids: Sequence[int], step: PackedStep, wanted: Sequence[int] | None = None,
        adapters: Sequence[Adapter] = (),
    ) -> Float[Tensor, "n v"]:
        """Read the tokens of a step; return the logits of what follows.

        One row for every sequence of the step, or for those whose numbers are `wanted`. Rows of `adapters` are all
        sequences of the step; ReleaseMismatch for one that adapts no causal model.
        """
        check_wearable(adapters, kind="ar")
        embedded = self.head.embed(torch.tensor([ids]))
        if not self._asked:     # not before the first step: opening a model touches none of its weights
            self._packed, self._asked = self.backbone.packed_layers(), True
        hidden = self.backbone.advance(embedded, step, self._packed, adapters)
        if wanted is not None and len(wanted) < len(hidden):
            hidden = hidden[list(wanted)]
        return self.head.project(hidden)
