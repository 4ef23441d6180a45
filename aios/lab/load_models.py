"""Models of random weights, of the sizes that `aios bench load` opens, written into scratch folders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from aios.contracts import PackedTensor

PEER_GROUP_SIZE: Final = 32   # of GGUF's Q4_0
SCALE: Final = 0.004          # of random codes: weights of a few hundredths, so that a forward stays finite


def score_network(layers: int) -> dict[str, Any]:
    """config.json of a text score network, of 342M parameters with 24 layers."""
    from aios.model.config import TransformerConfig
    from aios.model.score_network import ARCHITECTURE

    config = TransformerConfig.of(1024, layers, ffn_dim=2816)
    return {"model_type": ARCHITECTURE, "transformer": config.to_dict(), "vocab_size": 32_768,
            "tokens": {"mask": 0, "eot": 2, "never": [0]}}


def qwen3(layers: int) -> dict[str, Any]:
    """config.json of Qwen3-0.6B, of 596M parameters with 28 layers."""
    return {"model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": layers, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151_936,
            "max_position_embeddings": 2048, "tie_word_embeddings": True}


def llama(layers: int) -> dict[str, Any]:
    """config.json of SmolLM2-135M, of 134.5M parameters with 30 layers."""
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576,
            "num_hidden_layers": layers, "num_attention_heads": 9, "num_key_value_heads": 3,
            "intermediate_size": 1536, "vocab_size": 49_152, "max_position_embeddings": 2048,
            "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 100_000.0}


def shapes(spec: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a model by their stored names."""
    if "transformer" in spec:
        return _score_network_shapes(spec)
    width, ffn, head = spec["hidden_size"], spec["intermediate_size"], spec.get("head_dim", 64)
    query, key = spec["num_attention_heads"] * head, spec["num_key_value_heads"] * head
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (width,), "self_attn.q_proj": (query, width), "self_attn.k_proj": (key, width),
        "self_attn.v_proj": (key, width), "self_attn.o_proj": (width, query), "post_attention_layernorm": (width,),
        "mlp.gate_proj": (ffn, width), "mlp.up_proj": (ffn, width), "mlp.down_proj": (width, ffn)}
    if spec["model_type"] == "qwen3":
        layer |= {"self_attn.q_norm": (head,), "self_attn.k_norm": (head,)}
    named = {"model.embed_tokens.weight": (spec["vocab_size"], width), "model.norm.weight": (width,)}
    return named | {f"model.layers.{index}.{name}.weight": shape for index in range(spec["num_hidden_layers"])
                    for name, shape in layer.items()}


def _score_network_shapes(spec: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    from aios.model.config import TransformerConfig
    from aios.model.loading import unfilled
    from aios.model.score_network import TextScoreNetwork

    with unfilled():
        network = TextScoreNetwork(TransformerConfig(**spec["transformer"]), spec["vocab_size"])
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters(remove_duplicate=False)}


def random_tensors(spec: Mapping[str, Any], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Every tensor, f32: matrices of small numbers, norms of ones."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes(spec).items():
        yield name, torch.randn(shape, generator=generator) * 0.02 if len(shape) == 2 else torch.ones(shape)


def random_codes(shape: tuple[int, ...], bits: int, group_size: int, generator: torch.Generator) -> PackedTensor:
    """A packed matrix of random codes around zero, made without quantising anything."""
    import torch

    from aios.contracts import PackedTensor

    rows, columns = shape
    panels, columns_padded = -(-rows // 32), -(-columns // 32) * 32
    codes = torch.randint(0, 256, (panels * 32 * columns_padded * bits // 8,), dtype=torch.uint8, generator=generator)
    scales = torch.full((panels, -(-columns // group_size), 32), SCALE, dtype=torch.float16)
    return PackedTensor(rows=rows, columns=columns, bits=bits, group_size=group_size, codes=codes, scales=scales)


def write_random_codes(folder: Path, spec: Mapping[str, Any], *, bits: int, group_size: int, seed: int) -> Path:
    """A model whose matrices are random codes; the file's path."""
    import torch

    from aios.store.weights import WeightWriter

    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    with WeightWriter(folder / "model.parquet") as writer:
        for name, shape in shapes(spec).items():
            packed = len(shape) == 2 and shape[0] >= 32
            writer.add(name, random_codes(shape, bits, group_size, generator) if packed else torch.ones(shape))
        writer.finish(spec=spec, card="random weights of a benchmark", tokenizer_sha256="")
    return writer.path


def write_plain(folder: Path, spec: Mapping[str, Any], seed: int) -> None:
    """The same random f32 tensors as model.parquet and as model.safetensors."""
    from safetensors.torch import save_file

    from aios.store.weights import WeightWriter

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(spec), encoding="utf-8")
    tensors = dict(random_tensors(spec, seed))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with WeightWriter(folder / "model.parquet") as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.finish(spec=spec, card="random weights of a benchmark", tokenizer_sha256="")


def write_int4(folder: Path, spec: Mapping[str, Any], seed: int, *, gguf: bool) -> None:
    """The same random weights in our INT4 and, if asked for, in GGUF's Q4_0, which has the same groups."""
    from aios.store.quant import ArrowQuant
    from aios.store.weights import WeightWriter

    folder.mkdir()
    with WeightWriter(folder / "model.parquet") as writer:
        for name, tensor in random_tensors(spec, seed):
            packs = tensor.ndim == 2
            writer.add(name, ArrowQuant.quantize(tensor, bits=4, group_size=PEER_GROUP_SIZE, symmetric=True)
                       if packs else tensor)
        writer.finish(spec=spec, card="random weights of a benchmark", tokenizer_sha256="")
    if gguf:
        write_gguf(folder / "model.gguf", spec, random_tensors(spec, seed), "Q4_0")


def write_gguf(path: Path, spec: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]], kind: str) -> None:
    """A Llama-style model as GGUF, its matrices as blocks of `kind`; without a vocabulary: no peer need read one."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(spec["num_hidden_layers"])
    writer.add_context_length(spec["max_position_embeddings"])
    writer.add_embedding_length(spec["hidden_size"])
    writer.add_feed_forward_length(spec["intermediate_size"])
    writer.add_head_count(spec["num_attention_heads"])
    writer.add_head_count_kv(spec["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(spec["rms_norm_eps"])
    writer.add_rope_freq_base(spec["rope_theta"])
    writer.add_vocab_size(spec["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, spec["num_hidden_layers"])
    blocks = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors:
        theirs = names.get_name(name, try_suffixes=(".weight",)) or name
        if tensor.ndim == 2:
            plain = _interleaved(tensor, name, spec).float().numpy()
            writer.add_tensor(theirs, gguf.quants.quantize(plain, blocks), raw_dtype=blocks)
        else:
            writer.add_tensor(theirs, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(tensor: Tensor, name: str, spec: Mapping[str, Any]) -> Tensor:
    """Queries and keys with the two halves of a rotary pair side by side, as GGUF's Llama has them."""
    kind = name.rpartition("self_attn.")[2]
    heads = {"q_proj.weight": spec["num_attention_heads"], "k_proj.weight": spec["num_key_value_heads"]}.get(kind)
    if heads is None:
        return tensor
    return tensor.reshape(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
