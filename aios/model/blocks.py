"""The parts of one transformer layer: norm, attention with its cache and masks, feed-forward."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from aios.model.cache import AttentionMask, Cache, attend
from aios.model.config import AttentionKind, TransformerConfig
from aios.model.embeddings import rotate
from aios.model.lora import Worn, linears


class RMSNorm(nn.Module):
    """Scale to unit root mean square. Source: Zhang and Sennrich 2019, eq. 4."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class SwiGLU(nn.Module):
    """Gated feed-forward. Source: Shazeer 2020, "GLU variants improve transformer", eq. 6."""

    def __init__(self, hidden_dim: int, ffn_dim: int, *, bias: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_dim, ffn_dim, bias=bias)
        self.up = nn.Linear(hidden_dim, ffn_dim, bias=bias)
        self.down = nn.Linear(ffn_dim, hidden_dim, bias=bias)

    def forward(self, x: Float[Tensor, "b s d"], worn: Worn | None = None) -> Float[Tensor, "b s d"]:
        gate, up = linears({"gate": self.gate, "up": self.up}, x, worn)
        (out,) = linears({"down": self.down}, functional.silu(gate) * up, worn)
        return out


def attention_mask(
    kind: AttentionKind,
    *,
    queries: int,
    keys: int,
    block_length: int,
    padding: Bool[Tensor, "b k"] | None,
    device: torch.device,
) -> AttentionMask:
    """Return the mask for the last `queries` of `keys` tokens; `padding` is True at keys that do not exist.

    Block-causal order sees all of its own block of `block_length` tokens and every earlier block.
    """
    if padding is None and (kind == "bidirectional" or queries == 1 == keys):
        return AttentionMask()
    if padding is None and kind == "causal" and queries == keys:
        return AttentionMask(causal=True)
    query_index = torch.arange(keys - queries, keys, device=device).unsqueeze(1)
    key_index = torch.arange(keys, device=device).unsqueeze(0)
    if kind == "causal":
        allowed = key_index <= query_index
    elif kind == "block_causal":
        allowed = key_index // block_length <= query_index // block_length
    else:
        allowed = torch.ones(queries, keys, dtype=torch.bool, device=device)
    table = allowed[None, None]
    if padding is not None:
        # A padded query may see itself, so that its softmax is defined; nobody reads its result.
        itself = (key_index == query_index)[None, None]
        table = table & ~padding[:, None, None, :] | itself
    return AttentionMask(allowed=table)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions. Source: Ainslie et al. 2023, "GQA"."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.groups = config.num_heads // config.num_kv_heads
        query_dim, key_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = nn.Linear(config.hidden_dim, query_dim, bias=config.qkv_bias)
        self.key = nn.Linear(config.hidden_dim, key_dim, bias=config.qkv_bias)
        self.value = nn.Linear(config.hidden_dim, key_dim, bias=config.qkv_bias)
        self.out = nn.Linear(query_dim, config.hidden_dim, bias=config.out_bias)
        self.query_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.key_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def heads(self, x: Float[Tensor, "b s e"]) -> Float[Tensor, "b h s hd"]:
        """Split the last axis into heads."""
        return x.view(x.shape[0], x.shape[1], -1, self.head_dim).transpose(1, 2)

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        *,
        rotation: tuple[Tensor, Tensor],
        mask: AttentionMask,
        cache: Cache | None,
        worn: Worn | None = None,
    ) -> Float[Tensor, "b s d"]:
        together = linears({"query": self.query, "key": self.key, "value": self.value}, x, worn)
        query, key, value = (self.heads(one) for one in together)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = rotate(query, *rotation), rotate(key, *rotation)
        if cache is None:
            mixed = attend(query, key, value, mask)
        else:
            mixed = cache.attend(self.layer, query, key, value, mask)
        (out,) = linears({"out": self.out}, mixed.transpose(1, 2).flatten(2), worn)
        return out


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_dim, config.norm_eps)
        self.attention = Attention(config, layer)
        self.ffn_norm = RMSNorm(config.hidden_dim, config.norm_eps)
        self.ffn = SwiGLU(config.hidden_dim, config.ffn_dim, bias=config.ffn_bias)

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        *,
        rotation: tuple[Tensor, Tensor],
        mask: AttentionMask,
        cache: Cache | None,
        worn: Worn | None = None,
    ) -> Float[Tensor, "b s d"]:
        attention, ffn = (None, None) if worn is None else (worn.within("attention"), worn.within("ffn"))
        x = x + self.attention(self.attention_norm(x), rotation=rotation, mask=mask, cache=cache, worn=attention)
        out: Tensor = x + self.ffn(self.ffn_norm(x), ffn)
        return out
