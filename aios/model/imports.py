"""Published weights by their Hugging Face names: Llama, Qwen2 and Qwen3 backbones, BERT encoders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aios.contracts import PackedTensor
from aios.errors import ModelCorrupt, UnknownArchitecture
from aios.model.config import EncoderConfig, TransformerConfig
from aios.model.heads import TextHead
from aios.model.loading import Weight, load_frozen, unfilled
from aios.model.transformer import SharedTransformer

LANGUAGE_MODELS = ("llama", "qwen2", "qwen3")
SIZE_MAX = 1 << 24     # of one axis; the longest in use is a vocabulary of 256,000
LAYERS_MAX = 1024      # the deepest in use has 126; each costs time and memory before a tensor is looked at
NUMBER_MAX = 1e12      # of bases and epsilons

_LANGUAGE_PARTS = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out",
    "self_attn.q_norm": "attention.query_norm",
    "self_attn.k_norm": "attention.key_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn.gate",
    "mlp.up_proj": "ffn.up",
    "mlp.down_proj": "ffn.down",
}
_LANGUAGE_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_BERT_PARTS = {
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "ffn_norm",
}
_BERT_EMBEDDINGS = {
    "word_embeddings.weight": "words.weight",
    "position_embeddings.weight": "positions.weight",
    "token_type_embeddings.weight": "types.weight",
    "LayerNorm.weight": "norm.weight",
    "LayerNorm.bias": "norm.bias",
}


def _refuse(what: str) -> UnknownArchitecture:
    return UnknownArchitecture(
        what, remedy=f"AIOS implements {', '.join(LANGUAGE_MODELS)} and bert; choose such a model"
    )


def _corrupt(name: str, value: object) -> ModelCorrupt:
    return ModelCorrupt(f"config.json gives {name} as {value!r:.80}", remedy="fetch the model again")


def _size(config: Mapping[str, Any], name: str, default: int | None = None, *, most: int = SIZE_MAX) -> int:
    value = config.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise _corrupt(name, value)
    return value


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < NUMBER_MAX:
        raise _corrupt(name, value)
    return float(value)


def _rope_theta(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise _corrupt("rope_parameters", rope)
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise _refuse(f"rotary scaling {rope!r:.200} is not implemented")
    return _number(rope, "rope_theta", _number(config, "rope_theta", 10_000.0))


def language_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Translate the config.json of a Llama-, Qwen2- or Qwen3-style model."""
    kind = config.get("model_type")
    if kind not in LANGUAGE_MODELS:
        raise _refuse(f"{kind!r:.80} is no language model that AIOS knows")
    if config.get("hidden_act", "silu") != "silu":
        raise _refuse(f"activation {config['hidden_act']!r} is not implemented")
    if config.get("use_sliding_window"):
        raise _refuse("sliding-window attention is not implemented")
    hidden_dim, num_heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    num_kv_heads = _size(config, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads or num_heads > hidden_dim:
        raise _corrupt("num_attention_heads, num_key_value_heads", (num_heads, num_kv_heads))
    bias = bool(config.get("attention_bias", False))
    return TransformerConfig(
        hidden_dim=hidden_dim,
        num_layers=_size(config, "num_hidden_layers", most=LAYERS_MAX),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_size(config, "head_dim", hidden_dim // num_heads),
        ffn_dim=_size(config, "intermediate_size"),
        attention="causal",
        rope_theta=_rope_theta(config),
        norm_eps=_number(config, "rms_norm_eps", 1e-6),
        qkv_bias=bias or kind == "qwen2",
        out_bias=bias,
        ffn_bias=bool(config.get("mlp_bias", False)),
        qk_norm=kind == "qwen3",
        num_modalities=0,
        time_conditioning=False,
    )


def language_state(
    tensors: Mapping[str, Tensor | PackedTensor],
) -> tuple[dict[str, Weight], dict[str, Weight]]:
    """Return the backbone's and the head's tensors under our names."""
    backbone: dict[str, Weight] = {}
    head: dict[str, Weight] = {}
    ends = {
        "model.embed_tokens.weight": (head, "embedding.weight"),
        "lm_head.weight": (head, "projection.weight"),
        "model.norm.weight": (backbone, "norm.weight"),
    }
    for name, tensor in tensors.items():
        if name in ends:
            group, ours = ends[name]
            group[ours] = tensor
        elif (found := _LANGUAGE_LAYER.fullmatch(name)) and found[2] in _LANGUAGE_PARTS:
            backbone[f"layers.{found[1]}.{_LANGUAGE_PARTS[found[2]]}.{found[3]}"] = tensor
        elif not name.endswith("rotary_emb.inv_freq"):  # old exports carry it; it follows from the config
            raise _refuse(f"tensor {name} belongs to no part that AIOS knows")
    return backbone, head


def import_language_model(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor | PackedTensor]
) -> tuple[SharedTransformer, TextHead]:
    """Build backbone and head of a causal language model; the tensors are used in place, not copied."""
    shape = language_config(config)
    backbone_state, head_state = language_state(tensors)
    tied = bool(config.get("tie_word_embeddings", False)) or "projection.weight" not in head_state
    if tied:
        head_state.pop("projection.weight", None)
    with unfilled():
        backbone = SharedTransformer.from_config(shape)
        head = TextHead(_size(config, "vocab_size"), shape.hidden_dim, tied=tied)
    return load_frozen(backbone, backbone_state), load_frozen(head, head_state)


def bert_config(config: Mapping[str, Any]) -> EncoderConfig:
    """Translate the config.json of a BERT-style encoder."""
    if config.get("model_type") != "bert":
        raise _refuse(f"{config.get('model_type')!r:.80} is no encoder that AIOS knows")
    if config.get("hidden_act", "gelu") != "gelu":
        raise _refuse(f"activation {config['hidden_act']!r} is not implemented")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise _refuse(f"{config['position_embedding_type']!r} positions are not implemented")
    return EncoderConfig(
        vocab_size=_size(config, "vocab_size"),
        hidden_dim=_size(config, "hidden_size"),
        num_layers=_size(config, "num_hidden_layers", most=LAYERS_MAX),
        num_heads=_size(config, "num_attention_heads"),
        ffn_dim=_size(config, "intermediate_size"),
        positions_max=_size(config, "max_position_embeddings"),
        num_types=_size(config, "type_vocab_size"),
        norm_eps=_number(config, "layer_norm_eps", 1e-12),
    )


def bert_state(tensors: Mapping[str, Tensor | PackedTensor], num_layers: int) -> dict[str, Weight]:
    """Return a BERT's tensors under our names, queries, keys and values together; the pooler is not used."""
    plain = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    state: dict[str, Weight] = {}
    try:
        for theirs, ours in _BERT_EMBEDDINGS.items():
            state[ours] = plain[f"embeddings.{theirs}"]
        for layer in range(num_layers):
            prefix = f"encoder.layer.{layer}"
            for kind in ("weight", "bias"):
                state[f"layers.{layer}.qkv.{kind}"] = _fused(
                    *(plain[f"{prefix}.attention.self.{part}.{kind}"] for part in ("query", "key", "value"))
                )
                for theirs, ours in _BERT_PARTS.items():
                    state[f"layers.{layer}.{ours}.{kind}"] = plain[f"{prefix}.{theirs}.{kind}"]
    except KeyError as missing:
        raise ModelCorrupt(f"tensor {missing} is missing", remedy="fetch the model again") from None
    return state


def _fused(*parts: Tensor | PackedTensor) -> Weight:
    """One matrix of the rows of all, where none is packed; else the matrices, one below the other."""
    plain = [part for part in parts if isinstance(part, Tensor)]
    try:
        return torch.cat(plain) if len(plain) == len(parts) else parts
    except RuntimeError as error:
        raise ModelCorrupt(f"queries, keys and values do not fit: {error}", remedy="fetch the model again") from None
