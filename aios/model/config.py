"""The shapes of networks, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict, Unpack

AttentionKind = Literal["causal", "bidirectional", "block_causal"]

HEAD_DIM = 64  # the usual width of one attention head
FFN_MULTIPLE = 64  # round the feed-forward width up to whole cache lines of float32


class TransformerOptions(TypedDict, total=False):
    """The keyword arguments of `SharedTransformer`; `TransformerConfig` tells their meaning."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_dim: int
    attention: AttentionKind
    block_length: int
    rope_theta: float
    norm_eps: float
    qkv_bias: bool
    out_bias: bool
    ffn_bias: bool
    qk_norm: bool
    num_modalities: int
    time_conditioning: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """The shape of a `SharedTransformer`.

    `num_modalities` 0 means a language model without modality embedding; `time_conditioning` adds an
    embedding of each token's time; `block_length` (tokens) matters to block-causal attention only.
    """

    hidden_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_dim: int
    attention: AttentionKind = "bidirectional"
    block_length: int = 1
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    qk_norm: bool = True
    num_modalities: int = 4
    time_conditioning: bool = True

    def __post_init__(self) -> None:
        if min(self.hidden_dim, self.num_layers, self.num_heads, self.head_dim, self.ffn_dim) < 1:
            raise ValueError("every size of a transformer must be at least 1")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} heads cannot share {self.num_kv_heads} key-value heads")

    @classmethod
    def of(cls, hidden_dim: int, num_layers: int, **options: Unpack[TransformerOptions]) -> TransformerConfig:
        """Return a configuration in which the sizes not given follow from `hidden_dim`."""
        head_dim = options.get("head_dim") or min(HEAD_DIM, hidden_dim)
        num_heads = options.get("num_heads") or max(1, hidden_dim // head_dim)
        options.setdefault("num_heads", num_heads)
        options.setdefault("num_kv_heads", num_heads)
        options.setdefault("head_dim", hidden_dim // num_heads)
        options.setdefault("ffn_dim", -(-hidden_dim * 8 // 3 // FFN_MULTIPLE) * FFN_MULTIPLE)
        return cls(hidden_dim=hidden_dim, num_layers=num_layers, **options)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for config.json; `TransformerConfig(**data)` is the way back."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """The shape of an `EncoderModel`."""

    vocab_size: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    ffn_dim: int
    positions_max: int
    num_types: int
    norm_eps: float
