"""`TextScoreNetwork`: the backbone with its text head, as it is trained and stored in one weight file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from aios.contracts import Adapter, Modality, PackedTensor
from aios.errors import ModelCorrupt, UnknownArchitecture
from aios.model.cache import AttentionMask, KeyValueCache
from aios.model.config import TransformerConfig
from aios.model.heads import TextHead
from aios.model.loading import load_frozen, unfilled
from aios.model.memory_attention import GatedCrossAttention, MemoryOptions, PassagePointer, Pattern
from aios.model.packed_layers import PackedLayers
from aios.model.quant_linear import FAST_BITS, use_activation_bits
from aios.model.transformer import SharedTransformer

ARCHITECTURE = "aios-score-network"  # `model_type` of config.json


class TextScoreNetwork(nn.Module):
    """Map partly masked token ids to logits of the clean tokens; `never` ids get probability 0."""

    def __init__(self, config: TransformerConfig, vocab_size: int, *, never: Sequence[int] = (),
                 memory: MemoryOptions | None = None) -> None:
        super().__init__()
        self.backbone = SharedTransformer.from_config(config)
        self.pointer: PassagePointer | None = None
        if memory is not None:
            self.remember(memory)
        self.head = TextHead(vocab_size, config.hidden_dim)
        excluded = bytearray(vocab_size)   # torch's own indexed writing is half a megabyte of code, for a token or two
        for token in never:
            excluded[token] = True
        self.register_buffer("excluded", torch.frombuffer(excluded, dtype=torch.bool), persistent=False)

    @classmethod
    def open(
        cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor | PackedTensor]
    ) -> TextScoreNetwork:
        """Build the network that config.json describes; UnknownArchitecture or ModelCorrupt if it cannot be."""
        if spec.get("model_type") != ARCHITECTURE:
            raise UnknownArchitecture(
                f"{spec.get('architecture')!r} is no text diffusion model",
                remedy=f"it must be {ARCHITECTURE!r}",
            )
        try:
            config = TransformerConfig(**spec["transformer"])
            with unfilled():
                memory = MemoryOptions.read(spec["memory"]) if "memory" in spec else None
                network = cls(config, int(spec["vocab_size"]), never=spec["tokens"]["never"], memory=memory)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelCorrupt(
                f"config.json does not describe a text diffusion model: {error!r}",
                remedy="fetch the model again",
            ) from None
        use_activation_bits(load_frozen(network, tensors), FAST_BITS)   # a canvas is many rows, read again and again
        return network

    def remember(self, options: MemoryOptions) -> None:
        """Give the network a memory that has learned nothing yet: its predictions stay what they are."""
        config = self.backbone.config
        self.backbone.memory = GatedCrossAttention(config.hidden_dim, options, config.norm_eps)
        self.pointer = PassagePointer(config.hidden_dim, options)

    def hidden(
        self,
        ids: Int[Tensor, "b s"],
        *,
        t: Float[Tensor, "b s"] | None = None,
        positions: Int[Tensor, "b s"] | None = None,
        padding: Bool[Tensor, "b s"] | None = None,
        mask: AttentionMask | None = None,
        modality: Modality = Modality.TEXT,
        adapters: Sequence[Adapter] = (),
    ) -> Float[Tensor, "b s d"]:
        """Return the backbone's hidden states; `padding` is True at tokens that do not exist.

        A given `mask` stands in for the attention of the configuration.
        """
        states: Tensor = self.backbone(
            self.head.embed(ids), modality=torch.full_like(ids, modality), t=t, positions=positions, padding=padding,
            mask=mask, adapters=adapters,
        )  # fmt: skip
        return states

    def read(
        self,
        ids: Int[Tensor, "b s"],
        cache: KeyValueCache,
        opened: int,
        *,
        t: Float[Tensor, "b s"],
        positions: Int[Tensor, "b s"],
        modality: Modality = Modality.TEXT,
        packed: PackedLayers | None = None,
        memory: Pattern | None = None,
        adapters: Sequence[Adapter] = (),
    ) -> Float[Tensor, "b s d"]:
        """Return the hidden states of `SharedTransformer.read`."""
        return self.backbone.read(
            self.head.embed(ids), cache, opened, modality=torch.full_like(ids, modality), t=t, positions=positions,
            packed=packed, memory=memory, adapters=adapters,
        )  # fmt: skip

    def knows(self, modality: Modality) -> bool:
        """Return whether the modality's embedding was trained: until then it is zero."""
        embedding = self.backbone.modality
        return embedding is not None and bool(embedding.weight[modality].any())

    def logits(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Project hidden states onto the vocabulary, without the tokens that are never written."""
        excluded: Tensor = self.get_buffer("excluded")
        return self.head.project(hidden).masked_fill(excluded, -torch.inf)

    def forward(
        self,
        ids: Int[Tensor, "b s"],
        *,
        t: Float[Tensor, "b s"] | None = None,
        positions: Int[Tensor, "b s"] | None = None,
        padding: Bool[Tensor, "b s"] | None = None,
        adapters: Sequence[Adapter] = (),
    ) -> Float[Tensor, "b s v"]:
        return self.logits(self.hidden(ids, t=t, positions=positions, padding=padding, adapters=adapters))
