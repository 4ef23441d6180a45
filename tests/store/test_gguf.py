"""A GGUF becomes the model it was made from: names, rows, codes, tokenizer and ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from aios.contracts import PackedTensor
from aios.errors import AiosError, ModelCorrupt, UnknownArchitecture
from aios.store.convert import ModelConverter
from aios.store.quant import ArrowQuant
from aios.store.weights import WeightLoader
from tests.store import gguf_files
from tests.store.gguf_files import FFN, HIDDEN, TEMPLATE, tokens, weights, write_gguf

NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
         "blk.1.attn_q.weight": "model.layers.1.self_attn.q_proj.weight",
         "blk.0.attn_k.weight": "model.layers.0.self_attn.k_proj.weight",
         "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
         "blk.1.attn_output.weight": "model.layers.1.self_attn.o_proj.weight",
         "blk.1.attn_norm.weight": "model.layers.1.input_layernorm.weight",
         "blk.0.ffn_norm.weight": "model.layers.0.post_attention_layernorm.weight",
         "blk.0.ffn_gate.weight": "model.layers.0.mlp.gate_proj.weight",
         "blk.0.ffn_up.weight": "model.layers.0.mlp.up_proj.weight",
         "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight"}


def convert(path: Path, **options: Any) -> tuple[Path, WeightLoader]:
    folder = ModelConverter.convert(path, target=path.with_suffix(""), **options)
    return folder, WeightLoader.open(folder / "model.parquet")


def plain(tensor: torch.Tensor | PackedTensor) -> Any:
    return (ArrowQuant.dequantize(tensor) if isinstance(tensor, PackedTensor) else tensor.float()).numpy()


@pytest.mark.parametrize(("quantised", "dtype"), [
    ("F32", "f32"), ("F16", "f16"), ("BF16", "bf16"), ("Q4_0", "int4"), ("Q4_1", "int4"), ("Q8_0", "int8")])
def test_what_can_be_kept_is_kept_to_the_bit(tmp_path: Path, quantised: str, dtype: str) -> None:
    expected = write_gguf(tmp_path / "m.gguf", quantised=quantised)
    _, tensors = convert(tmp_path / "m.gguf")
    assert len(tensors) == len(expected)
    for theirs, ours in NAMES.items():
        assert np.array_equal(plain(tensors[ours]), expected[theirs]), theirs
        assert tensors.records[ours].dtype == ("f32" if expected[theirs].ndim == 1 else dtype)
    tensors.verify()


@pytest.mark.parametrize("precision", ["f16", "f32"])
@pytest.mark.parametrize("quantised", ["Q5_0", "Q5_1"])
def test_what_cannot_be_kept_is_dequantised(tmp_path: Path, quantised: str, precision: Any) -> None:
    expected = write_gguf(tmp_path / "m.gguf", quantised=quantised)
    _, tensors = convert(tmp_path / "m.gguf", precision=precision)
    for theirs, ours in NAMES.items():
        exact = expected[theirs] if precision == "f32" or expected[theirs].ndim == 1 else (
            expected[theirs].astype(np.float16).astype(np.float32))
        assert np.array_equal(plain(tensors[ours]), exact), theirs


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_only_llama_reorders_rows_and_every_architecture_keeps_its_own_parts(tmp_path: Path, architecture: str) -> None:
    expected = write_gguf(tmp_path / "m.gguf", architecture=architecture, quantised="Q8_0", pre="qwen2")
    folder, tensors = convert(tmp_path / "m.gguf")
    for theirs, ours in NAMES.items():
        assert np.array_equal(plain(tensors[ours]), expected[theirs]), theirs
    own = {"qwen2": ("blk.1.attn_q.bias", "model.layers.1.self_attn.q_proj.bias"),
           "qwen3": ("blk.0.attn_k_norm.weight", "model.layers.0.self_attn.k_norm.weight")}
    theirs, ours = own[architecture]
    assert np.array_equal(plain(tensors[ours]), expected[theirs])
    spec = json.loads((folder / "config.json").read_text())
    assert (spec["model_type"], spec["tie_word_embeddings"]) == (architecture, True)


def test_the_spec_is_the_one_hugging_face_would_have(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", matrices=weights() | {"output.weight": weights()["token_embd.weight"]})
    folder, tensors = convert(tmp_path / "m.gguf")
    spec = json.loads((folder / "config.json").read_text())
    assert spec == tensors.spec == {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": len(tokens()),
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "hidden_act": "silu", "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 50_000.0, "tie_word_embeddings": False, "attention_bias": False, "bos_token_id": 1,
        "eos_token_id": [0, 2]}
    assert "lm_head.weight" in tensors
    assert json.loads((folder / "generation_config.json").read_text()) == {"bos_token_id": 1, "eos_token_id": [0, 2]}
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert (settings["chat_template"], settings["eos_token"]) == (TEMPLATE, "<|turn|>")
    assert "Tiny" in tensors.card and "cc0-1.0" in tensors.card


@pytest.mark.parametrize(("pre", "pieces"), [
    ("gpt-2", ["don", "'t", "Ġ1234", "Ċ", "Ċ", "x"]),
    ("smollm", ["don", "'t", "Ġ", "1", "2", "3", "4", "Ċ", "Ċ", "x"]),
    ("qwen2", ["don", "'t", "Ġ", "1", "2", "3", "4", "ĊĊ", "x"]),
    ("llama-bpe", ["don", "'t", "Ġ", "123", "4", "ĊĊ", "x"])])
def test_text_is_split_by_the_rule_that_the_file_names(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    write_gguf(tmp_path / "m.gguf", pre=pre)
    folder, _ = convert(tmp_path / "m.gguf")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("don't 1234\n\nx")] == pieces
    ids = tokenizer.encode("hello <|turn|>").ids
    assert ids[-1] == 2 and tokenizer.decode(ids, skip_special_tokens=True) == "hello "
    whole = tokenizer.encode("hello").ids
    assert (whole == [tokenizer.token_to_id("hello")]) == (pre == "llama-bpe")   # a whole word wins without merges


def test_a_begin_that_the_model_expects_is_put_in_front(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", changes={"tokenizer.ggml.add_bos_token": True})
    folder, _ = convert(tmp_path / "m.gguf")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("hi").ids[0] == 1
    assert tokenizer.encode("hi", add_special_tokens=False).ids[0] != 1


@pytest.mark.parametrize(("options", "error", "why"), [
    ({"pre": "deepseek-llm"}, UnknownArchitecture, "deepseek-llm"),
    ({"pre": None}, UnknownArchitecture, "nothing"),
    ({"architecture": "mamba", "matrices": {}}, UnknownArchitecture, "mamba"),
    ({"changes": {"llama.rope.scaling.type": "yarn"}}, UnknownArchitecture, "scaling"),
    ({"changes": {"llama.rope.dimension_count": 8}}, UnknownArchitecture, "part of each head"),
    ({"changes": {"llama.expert_count": 8}}, UnknownArchitecture, "experts"),
    ({"changes": {"split.count": 3}}, UnknownArchitecture, "further files"),
    ({"matrices": weights() | {"blk.0.ssm_a.weight": np.ones(4, np.float32)}}, UnknownArchitecture, "ssm_a"),
    ({"matrices": weights() | {"token_embd.weight": np.ones((4, 64), np.float32)}}, ModelCorrupt, "embedding"),
    ({"matrices": {"output_norm.weight": np.ones(64, np.float32)}}, ModelCorrupt, "embedding"),
    ({"matrices": weights() | {"blk.0.attn_q.weight": np.ones((63, 64), np.float32)}}, ModelCorrupt, "heads"),
    ({"matrices": weights() | {"output_norm.weight": np.ones((1, 1, 64), np.float32)}}, ModelCorrupt, "no matrix"),
])
def test_what_has_no_counterpart_is_refused_with_its_reason(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: type[AiosError],
        why: str) -> None:
    if why == "heads":   # the permutation of such rows would fail before the file is written
        monkeypatch.setattr(gguf_files, "permuted", lambda matrix, heads: matrix)
    write_gguf(tmp_path / "m.gguf", **options)
    with pytest.raises(error, match=why) as caught:
        ModelConverter.convert(tmp_path / "m.gguf")
    assert caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
