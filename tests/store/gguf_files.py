"""Tiny GGUF models, written by the ggml project's own package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel

HIDDEN, HEADS, KV_HEADS, FFN, LAYERS = 64, 2, 1, 96, 2
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
Floats = NDArray[np.float32]


def tokens() -> list[str]:
    """Three control tokens, the 256 bytes, and two words."""
    return ["<|end|>", "<|start|>", "<|turn|>", *sorted(ByteLevel.alphabet()), "he", "hello"]


def weights(seed: int = 0, architecture: str = "llama") -> dict[str, Floats]:
    """Random matrices by their names in a GGUF, rows in Hugging Face's order."""
    rng = np.random.default_rng(seed)
    head_dim = HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(tokens()), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        parts: dict[str, tuple[int, ...]] = {
            "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,), "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (KV_HEADS * head_dim, HIDDEN), "attn_v": (KV_HEADS * head_dim, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN),
            "ffn_down": (HIDDEN, FFN)}
        if architecture == "qwen3":
            parts |= {"attn_q_norm": (head_dim,), "attn_k_norm": (head_dim,)}
        shapes |= {f"blk.{layer}.{part}.weight": shape for part, shape in parts.items()}
        if architecture == "qwen2":
            shapes |= {f"blk.{layer}.attn_{part}.bias": parts[f"attn_{part}"][:1] for part in "qkv"}
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def permuted(matrix: Floats, heads: int) -> Floats:
    """Rows as llama.cpp wants them for its rotary embedding (its converter's `permute`)."""
    split = matrix.reshape(heads, 2, matrix.shape[0] // heads // 2, *matrix.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(matrix.shape))


def write_gguf(path: Path, *, architecture: str = "llama", quantised: str = "Q4_1", pre: str | None = "smollm",
               matrices: dict[str, Floats] | None = None, changes: dict[str, Any] | None = None) -> dict[str, Floats]:
    """Write a model; returns what its tensors stand for, rows in Hugging Face's order.

    `changes` are metadata: texts, whole numbers or truth values, by key.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    writer.add_license("cc0-1.0")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50_000.0)
    _add_tokenizer(writer, pre)
    for key, value in (changes or {}).items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}[type(value)]
        add(key, value)
    kept: dict[str, Floats] = {}
    for name, matrix in (weights(architecture=architecture) if matrices is None else matrices).items():
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2]) if architecture == "llama" else None
        kept[name] = _add_tensor(writer, name, matrix, quantised, heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


def _add_tokenizer(writer: gguf.GGUFWriter, pre: str | None) -> None:
    words = tokens()
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3] + [1] * (len(words) - 3))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(0)
    writer.add_chat_template(TEMPLATE)


def _add_tensor(writer: gguf.GGUFWriter, name: str, matrix: Floats, quantised: str, heads: int | None) -> Floats:
    if matrix.ndim < 2 or quantised == "F32":
        writer.add_tensor(name, matrix if heads is None else permuted(matrix, heads))
        return matrix
    kind = GGMLQuantizationType[quantised]
    data = gguf.quantize(matrix if heads is None else permuted(matrix, heads), kind)
    # F16 is a type of numpy's; blocks are announced by their type.
    writer.add_tensor(name, data) if quantised == "F16" else writer.add_tensor(name, data, raw_dtype=kind)
    rounded: Floats = gguf.dequantize(gguf.quantize(matrix, kind), kind).reshape(matrix.shape)
    return rounded
