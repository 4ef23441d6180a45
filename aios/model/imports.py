"""Published weights by their Hugging Face names: Llama, Qwen2 and Qwen3 backbones, BERT encoders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aios.errors import ModelCorrupt, UnknownArchitecture
from aios.model.config import EncoderConfig, TransformerConfig
from aios.model.embeddings import RotaryEmbedding
from aios.model.heads import TextHead
from aios.model.transformer import SharedTransformer

LANGUAGE_MODELS = ("llama", "qwen2", "qwen3")

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


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelCorrupt(f"config.json gives {name} as {value!r}", remedy="fetch the model again")
    return value


def _rope_theta(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise _refuse(f"rotary scaling {rope} is not implemented")
    return float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))


def language_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Translate the config.json of a Llama-, Qwen2- or Qwen3-style model."""
    kind = config.get("model_type")
    if kind not in LANGUAGE_MODELS:
        raise _refuse(f"{kind!r} is no language model that AIOS knows")
    if config.get("hidden_act", "silu") != "silu":
        raise _refuse(f"activation {config['hidden_act']!r} is not implemented")
    if config.get("use_sliding_window"):
        raise _refuse("sliding-window attention is not implemented")
    hidden_dim, num_heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    bias = bool(config.get("attention_bias", False))
    return TransformerConfig(
        hidden_dim=hidden_dim,
        num_layers=_size(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=config.get("head_dim") or hidden_dim // num_heads,
        ffn_dim=_size(config, "intermediate_size"),
        attention="causal",
        rope_theta=_rope_theta(config),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        qkv_bias=bias or kind == "qwen2",
        out_bias=bias,
        ffn_bias=bool(config.get("mlp_bias", False)),
        qk_norm=kind == "qwen3",
        num_modalities=0,
        time_conditioning=False,
    )


def language_state(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the backbone's and the head's tensors under our names."""
    backbone: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
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
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[SharedTransformer, TextHead]:
    """Build backbone and head of a causal language model; the tensors are used in place, not copied."""
    shape = language_config(config)
    backbone_state, head_state = language_state(tensors)
    tied = bool(config.get("tie_word_embeddings", False)) or "projection.weight" not in head_state
    if tied:
        head_state.pop("projection.weight", None)
    with torch.device("meta"):
        backbone = SharedTransformer.from_config(shape)
        head = TextHead(_size(config, "vocab_size"), shape.hidden_dim, tied=tied)
    backbone.rotary = RotaryEmbedding(shape.head_dim, shape.rope_theta)  # its table is computed, not stored
    load_exactly(backbone, backbone_state)
    load_exactly(head, head_state)
    return backbone.eval().requires_grad_(False), head.eval().requires_grad_(False)


def bert_config(config: Mapping[str, Any]) -> EncoderConfig:
    """Translate the config.json of a BERT-style encoder."""
    if config.get("model_type") != "bert":
        raise _refuse(f"{config.get('model_type')!r} is no encoder that AIOS knows")
    if config.get("hidden_act", "gelu") != "gelu":
        raise _refuse(f"activation {config['hidden_act']!r} is not implemented")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise _refuse(f"{config['position_embedding_type']!r} positions are not implemented")
    return EncoderConfig(
        vocab_size=_size(config, "vocab_size"),
        hidden_dim=_size(config, "hidden_size"),
        num_layers=_size(config, "num_hidden_layers"),
        num_heads=_size(config, "num_attention_heads"),
        ffn_dim=_size(config, "intermediate_size"),
        positions_max=_size(config, "max_position_embeddings"),
        num_types=_size(config, "type_vocab_size"),
        norm_eps=float(config.get("layer_norm_eps", 1e-12)),
    )


def bert_state(tensors: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Return a BERT's tensors under our names, queries, keys and values fused; the pooler is not used."""
    plain = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    state: dict[str, Tensor] = {}
    try:
        for theirs, ours in _BERT_EMBEDDINGS.items():
            state[ours] = plain[f"embeddings.{theirs}"]
        for layer in range(num_layers):
            prefix = f"encoder.layer.{layer}"
            for kind in ("weight", "bias"):
                fused = [
                    plain[f"{prefix}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")
                ]
                state[f"layers.{layer}.qkv.{kind}"] = torch.cat(fused)
                for theirs, ours in _BERT_PARTS.items():
                    state[f"layers.{layer}.{ours}.{kind}"] = plain[f"{prefix}.{theirs}.{kind}"]
    except KeyError as missing:
        raise ModelCorrupt(f"tensor {missing} is missing", remedy="fetch the model again") from None
    return state


def load_exactly(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put `state` into `module` without copying float32 tensors; ModelCorrupt unless names and shapes agree."""
    try:
        module.load_state_dict(
            {name: tensor.float() for name, tensor in state.items()}, strict=True, assign=True
        )
    except RuntimeError as error:
        raise ModelCorrupt(
            f"the tensors do not fit config.json: {error}", remedy="fetch the model again"
        ) from None
