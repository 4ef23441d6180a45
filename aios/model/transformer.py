"""`SharedTransformer`: the one backbone of the score network and of imported language models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from aios.contracts import Adapter
from aios.model.blocks import Layer, RMSNorm, attention_mask
from aios.model.cache import AttentionMask, Cache, KeyValueCache, PackedStep
from aios.model.config import TransformerConfig, TransformerOptions
from aios.model.embeddings import ModalityEmbedding, RotaryEmbedding, SinusoidalTimeEmbedding
from aios.model.loading import repeated
from aios.model.lora import Worn, wearers
from aios.model.memory_attention import GatedCrossAttention, Pattern
from aios.model.packed_layers import PackedLayers, packed_layers

__all__ = ["SharedTransformer", "TransformerConfig", "TransformerOptions"]

INIT_STD = 0.02  # GPT-2's


class SharedTransformer(nn.Module):
    """Turn token embeddings of any modality into hidden states for the heads."""

    def __init__(self, hidden_dim: int, num_layers: int, **options: Unpack[TransformerOptions]) -> None:
        super().__init__()
        config = TransformerConfig.of(hidden_dim, num_layers, **options)
        self.config = config
        self.modality = (
            ModalityEmbedding(config.num_modalities, hidden_dim) if config.num_modalities else None
        )
        self.time = SinusoidalTimeEmbedding(hidden_dim) if config.time_conditioning else None
        self.rotary = RotaryEmbedding(config.head_dim, config.rope_theta)
        self.layers = nn.ModuleList(repeated(lambda index: Layer(config, index), num_layers))
        self.norm = RMSNorm(hidden_dim, config.norm_eps)
        self.memory: GatedCrossAttention | None = None  # behind the last layer, of a network that has learned it
        if not self.norm.weight.is_meta:
            self.reset_parameters()

    @classmethod
    def from_config(cls, config: TransformerConfig) -> SharedTransformer:
        """Build the network that `config` describes, with fresh weights."""
        options = config.to_dict()
        return cls(options.pop("hidden_dim"), options.pop("num_layers"), **options)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start matrices small and residual outputs at zero, so that every layer begins as the identity."""
        for layer in self.layers:
            for name, module in layer.named_modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=INIT_STD)
                    if name in ("attention.out", "ffn.down"):
                        nn.init.zeros_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        *,
        modality: Int[Tensor, "b s"] | None = None,
        t: Float[Tensor, "b s"] | None = None,
        positions: Int[Tensor, "b s"] | None = None,
        padding: Bool[Tensor, "b k"] | None = None,
        cache: KeyValueCache | None = None,
        mask: AttentionMask | None = None,
        memory: Pattern | None = None,
        adapters: Sequence[Adapter] = (),
    ) -> Float[Tensor, "b s d"]:
        """Return normalised hidden states of the embedded tokens `x`.

        `t` is each token's time, 0 data and 1 noise. `positions` count on from the cache unless given.
        `padding` is True at keys (cached ones first) that do not exist. A given cache is extended. A given `mask`
        stands in for that of the configuration: one network may be asked in several orders. `memory` is what its
        own memory has prepared of condition tokens. `adapters` are worn by all rows, or those of their `OnRows`.
        """
        batch, count, _ = x.shape
        cached = cache.length if cache is not None else 0
        if positions is None:
            positions = torch.arange(cached, cached + count, device=x.device).expand(batch, count)
        x = self._told(x, modality, t)
        mask = mask or attention_mask(
            self.config.attention,
            queries=count,
            keys=cached + count,
            block_length=self.config.block_length,
            padding=padding,
            device=x.device,
        )
        rotation, worn = self.rotary(positions), Worn.by_rows(adapters, batch, self.config)
        x = self._through_layers(x, rotation, mask, cache, worn)
        if cache is not None:
            cache.advance(count)
        return self._normalised(x, memory)

    def _through_layers(
        self, x: Float[Tensor, "b s d"], rotation: tuple[Tensor, Tensor], mask: AttentionMask, cache: Cache | None,
        worn: Worn | None,
    ) -> Float[Tensor, "b s d"]:  # fmt: skip
        for number, layer in enumerate(self.layers):
            within = None if worn is None else worn.within(f"layers.{number}")
            x = layer(x, rotation=rotation, mask=mask, cache=cache, worn=within)
        return x

    def _normalised(self, x: Float[Tensor, "b s d"], memory: Pattern | None) -> Float[Tensor, "b s d"]:
        if self.memory is not None and memory is not None:
            x = self.memory(x, memory)
        normalised: Tensor = self.norm(x)
        return normalised

    def _told(
        self, x: Float[Tensor, "b s d"], modality: Int[Tensor, "b s"] | None, t: Float[Tensor, "b s"] | None
    ) -> Float[Tensor, "b s d"]:
        if self.modality is not None and modality is not None:
            x = x + self.modality(modality)
        if self.time is not None and t is not None:
            x = x + self.time(t)
        return x

    def read(
        self,
        x: Float[Tensor, "b s d"],
        cache: KeyValueCache,
        opened: int,
        *,
        modality: Int[Tensor, "b s"] | None = None,
        t: Float[Tensor, "b s"] | None = None,
        positions: Int[Tensor, "b s"],
        packed: PackedLayers | None = None,
        memory: Pattern | None = None,
        adapters: Sequence[Adapter] = (),
    ) -> Float[Tensor, "b s d"]:
        """Return normalised hidden states of tokens behind those of the cache, read in order, whatever the
        configuration says, but for the last `opened` of them, which see each other.

        Their keys and values are written to the cache; whoever keeps them calls its `advance`. `packed` are handles
        of these very layers, where they are packed.
        """
        x, rotation = self._told(x, modality, t), self.rotary(positions)
        if packed is not None and packed.faithful:
            x = packed.read(x, rotation, cache, opened, adapters)
        else:
            mask = AttentionMask.open_end(cache.length, x.shape[1], opened)
            x = self._through_layers(x, rotation, mask, cache, Worn.by_rows(adapters, len(x), self.config))
        return self._normalised(x, memory)

    def packed_layers(self) -> PackedLayers | None:
        """Return handles of the layers if all of their matrices are packed."""
        return packed_layers(self.config, [layer for layer in self.layers if isinstance(layer, Layer)])

    def advance(
        self, x: Float[Tensor, "1 s d"], step: PackedStep, packed: PackedLayers | None = None,
        adapters: Sequence[Adapter] = (),
    ) -> Float[Tensor, "n d"]:
        """Return the normalised hidden state of the last token of every sequence in `step`, which is extended.

        `packed` are handles of these very layers, where they are packed. Rows of `adapters` are the step's sequences.
        """
        rotation, mask = self.rotary(step.positions), AttentionMask()
        if packed is not None and packed.faithful:
            x = packed.advance(x, rotation, step, adapters)
        else:
            found = wearers(adapters, len(step.lasts), self.config)
            worn = Worn.by_tokens(found, step.counts) if found else None
            x = self._through_layers(x, rotation, mask, step, worn)
        step.advance()
        normalised: Tensor = self.norm(x[0, step.lasts])
        return normalised
