"""`EncoderModel`: a small BERT-style sentence encoder (MiniLM), apart from the shared backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from aios.contracts import PackedTensor
from aios.model.config import EncoderConfig
from aios.model.imports import bert_config, bert_state
from aios.model.loading import load_frozen, repeated, unfilled
from aios.model.packed_encoder import PackedEncoder, packed_encoder
from aios.model.quant_linear import FAST_BITS, use_activation_bits

BATCH_TOKENS_MAX = 4096  # a batch whose activations still fit the last-level cache of a small machine
PADDING_SHARE_MAX = 0.125  # a batch ends before its shortest row would be padded by more than this


class EncoderLayer(nn.Module):
    """One post-norm layer: attention, then GELU feed-forward. Source: Devlin et al. 2018, "BERT"."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_dim, 3 * config.hidden_dim)
        self.out = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.attention_norm = nn.LayerNorm(config.hidden_dim, config.norm_eps)
        self.up = nn.Linear(config.hidden_dim, config.ffn_dim)
        self.down = nn.Linear(config.ffn_dim, config.hidden_dim)
        self.ffn_norm = nn.LayerNorm(config.hidden_dim, config.norm_eps)

    def forward(
        self, x: Float[Tensor, "b s d"], visible: Bool[Tensor, "b 1 1 s"] | None
    ) -> Float[Tensor, "b s d"]:
        batch, count, width = x.shape
        shape = (batch, count, 3, self.num_heads, width // self.num_heads)
        query, key, value = self.qkv(x).view(shape).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        x = self.attention_norm(x + self.out(mixed.transpose(1, 2).reshape(batch, count, width)))
        normalised: Tensor = self.ffn_norm(x + self.down(functional.gelu(self.up(x))))
        return normalised


def zero_embedding(count: int, width: int) -> nn.Embedding:
    """Return an embedding of zeros, whose weights are to be loaded.

    `nn.Embedding` alone would draw them, which on the meta device makes torch import its compiler: 900 modules.
    """
    return nn.Embedding(count, width, _weight=torch.zeros(count, width))


class EncoderModel(nn.Module):
    """Turn token ids into unit vectors: encoder, mean over real tokens, L2 norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.words = zero_embedding(config.vocab_size, config.hidden_dim)
        self.positions = zero_embedding(config.positions_max, config.hidden_dim)
        self.types = zero_embedding(config.num_types, config.hidden_dim)
        self.norm = nn.LayerNorm(config.hidden_dim, config.norm_eps)
        self.layers = nn.ModuleList(repeated(lambda _: EncoderLayer(config), config.num_layers))
        self._packed: PackedEncoder | None = None

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor | PackedTensor]) -> EncoderModel:
        """Build an encoder from a Hugging Face BERT; UnknownArchitecture or ModelCorrupt if it is none.

        Packed layers take activations as bytes: on the development set of STS-B that moves the rank correlation of
        MiniLM in INT8 and INT4 by 0.0003 at most (`aios bench encode` measures it).
        """
        shape = bert_config(config)
        with unfilled():
            model = cls(shape)
        load_frozen(model, bert_state(tensors, shape.num_layers))
        use_activation_bits(model, FAST_BITS)
        return model

    def hidden(
        self, ids: Int[Tensor, "b s"], real: Bool[Tensor, "b s"] | None = None
    ) -> Float[Tensor, "b s d"]:
        """Return the last layer's states; `real` is False at padding (None: there is none)."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        first_type = ids.new_zeros(())
        x = self.norm(self.words(ids) + self.positions(positions) + self.types(first_type))
        visible = None if real is None else real[:, None, None, :]
        for layer in self.layers:
            x = layer(x, visible)
        states: Tensor = x
        return states

    def forward(
        self, ids: Int[Tensor, "b s"], real: Bool[Tensor, "b s"] | None = None
    ) -> Float[Tensor, "b d"]:
        states = self.hidden(ids, real)
        if real is None:
            mean = states.mean(dim=1)
        else:
            share = real.to(states.dtype) / real.sum(dim=1, keepdim=True)
            mean = torch.einsum("bsd,bs->bd", states, share)
        return functional.normalize(mean, dim=-1)

    @torch.inference_mode()
    def encode(self, sequences: Sequence[Sequence[int]]) -> Float[Tensor, "n d"]:
        """Return one unit vector per sequence of token ids, in the order given.

        A sequence holds at least one token (the tokenizer's own [CLS] and [SEP] see to that) and at most
        `config.positions_max`.
        """
        if self._packed is None or not self._packed.stands_for(self):
            self._packed = packed_encoder(self)
        if self._packed is not None:
            return self._packed.encode(sequences)
        vectors = torch.empty(len(sequences), self.config.hidden_dim)
        for rows in length_batches([len(sequence) for sequence in sequences]):
            longest = len(sequences[rows[-1]])
            ids = torch.zeros(len(rows), longest, dtype=torch.long)
            for index, row in enumerate(rows):
                ids[index, : len(sequences[row])] = torch.tensor(sequences[row])
            lengths = torch.tensor([len(sequences[row]) for row in rows])
            real = None if len(sequences[rows[0]]) == longest else torch.arange(longest) < lengths[:, None]
            vectors[torch.tensor(rows)] = self(ids, real)
        return vectors


def length_batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield batches of row numbers, shortest rows first, padded little and bounded in tokens."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[row]
        full = (len(batch) + 1) * length > BATCH_TOKENS_MAX
        if batch and (full or lengths[batch[0]] < length * (1 - PADDING_SHARE_MAX)):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
