"""A scratch home with two tiny models of random weights, and an engine over it with the first-party plugins."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from aios.config import Config, Places, parse
from aios.engine.arrow import ArrowEngine
from aios.model.score_network import TextScoreNetwork
from aios.model.transformer import TransformerConfig
from aios.store.record import TENSORS, seal
from aios.store.weights import WeightWriter

SENTENCES = ["the cat sat on the mat", "a dog ran in the park", "we would like to book a table", "good morning"]
SAMPLING = {"sampler": "ancestral", "steps_per_token": 0.5, "temperature": 0.8, "length": 12}
LENGTH_MAX = 64
RESERVED = ["<|pad|>", "<|mask|>", "<|eot|>"]


def byte_level_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=RESERVED, initial_alphabet=alphabet,
                                  show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def word_tokenizer() -> Tokenizer:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for line in SENTENCES for word in line.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def write_model(folder: Path, spec: dict[str, Any], tensors: dict[str, torch.Tensor], tokenizer: Tokenizer) -> None:
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(spec))
    tokenizer.save(str(folder / "tokenizer.json"))
    with WeightWriter(folder / TENSORS) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.finish(spec=spec, card="", tokenizer_sha256=sha256((folder / "tokenizer.json").read_bytes()).hexdigest())
    seal(folder, name=folder.name, source="a test", source_version="0", licence="none")


def write_text_model(folder: Path, *, modalities: tuple[str, ...] = ("text",)) -> None:
    torch.manual_seed(1)
    tokenizer = byte_level_tokenizer()
    config = TransformerConfig.of(32, 2, head_dim=16, time_conditioning=False)
    size = tokenizer.get_vocab_size()
    network = TextScoreNetwork(config, size, never=[0, 1])
    spec = {"model_type": "aios-score-network",
            "aios": {"kind": "diffusion", "sampling": SAMPLING, "modalities": list(modalities)},
            "transformer": config.to_dict(), "vocab_size": size, "length_max": LENGTH_MAX,
            "tokens": {"mask": 1, "eot": 2, "never": [0, 1], **({"code": 3} if "code" in modalities else {})}}
    state = {name: torch.randn_like(tensor) * 0.3 for name, tensor in network.state_dict().items()}
    write_model(folder, spec, state, tokenizer)


def write_encoder(folder: Path, width: int = 16, layers: int = 1) -> None:
    torch.manual_seed(2)
    tokenizer = word_tokenizer()
    size = tokenizer.get_vocab_size()
    spec = {"model_type": "bert", "vocab_size": size, "hidden_size": width, "num_hidden_layers": layers,
            "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 24, "type_vocab_size": 2,
            "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    shapes = {"embeddings.word_embeddings.weight": (size, width),
              "embeddings.position_embeddings.weight": (24, width),
              "embeddings.token_type_embeddings.weight": (2, width),
              "embeddings.LayerNorm.weight": (width,), "embeddings.LayerNorm.bias": (width,)}
    for layer in range(layers):
        parts = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
        parts |= {"attention.output.dense": (width, width), "attention.output.LayerNorm": (width,),
                  "intermediate.dense": (32, width), "output.dense": (width, 32), "output.LayerNorm": (width,)}
        for part, shape in parts.items():
            shapes[f"encoder.layer.{layer}.{part}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{part}.bias"] = shape[:1]
    write_model(folder, spec, {name: torch.randn(shape) * 0.5 for name, shape in shapes.items()}, tokenizer)


CHAT = ("{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
        "<|user|>{{ message.role[0] + ':' + message.content }}<|eot|>{% endfor %}<|user|>")


def write_language_model(folder: Path, *, kind: str = "llama", chat: bool = True, seed: int = 3) -> None:
    """A tiny Llama, Qwen2 or Qwen3 with random weights far enough apart that rounding decides nothing."""
    torch.manual_seed(seed)
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens(["<|user|>"])
    size, width, heads, kv_heads, head_dim, ffn = tokenizer.get_vocab_size(), 32, 4, 2, 8, 48
    spec: dict[str, Any] = {
        "model_type": kind, "vocab_size": size, "hidden_size": width, "num_hidden_layers": 2,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": ffn,
        "max_position_embeddings": 96, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": kind != "qwen2", "eos_token_id": tokenizer.token_to_id("<|eot|>")}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size, width), "model.norm.weight": (width,)}
    if kind == "qwen2":
        shapes["lm_head.weight"] = (size, width)
    for layer in range(2):
        parts: dict[str, tuple[int, ...]] = {
            "input_layernorm": (width,), "post_attention_layernorm": (width,),
            "self_attn.q_proj": (heads * head_dim, width), "self_attn.k_proj": (kv_heads * head_dim, width),
            "self_attn.v_proj": (kv_heads * head_dim, width), "self_attn.o_proj": (width, heads * head_dim),
            "mlp.gate_proj": (ffn, width), "mlp.up_proj": (ffn, width), "mlp.down_proj": (width, ffn)}
        if kind == "qwen3":
            parts |= {"self_attn.q_norm": (head_dim,), "self_attn.k_norm": (head_dim,)}
        shapes |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in parts.items()}
        if kind == "qwen2":
            shapes |= {f"model.layers.{layer}.self_attn.{part}_proj.bias": parts[f"self_attn.{part}_proj"][:1]
                       for part in "qkv"}
    tensors = {name: torch.randn(shape) * (0.4 if len(shape) > 1 else 1.0) for name, shape in shapes.items()}
    folder.mkdir(parents=True, mode=0o700)
    if chat:
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|eot|>", "chat_template": CHAT}))
    write_model(folder, spec, tensors, tokenizer)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Places:
    root = tmp_path_factory.mktemp("home")
    places = Places(config=root / "config", data=root / "data", state=root / "state", cache=root / "cache",
                    runtime=root / "run")
    places.create()
    write_text_model(places.models / "tiny-text")
    write_text_model(places.models / "tiny-both", modalities=("text", "code"))
    write_encoder(places.models / "tiny-encoder")
    write_language_model(places.models / "tiny-chat")
    write_language_model(places.models / "tiny-raw", kind="qwen2", chat=False)
    write_language_model(places.models / "tiny-qwen3", kind="qwen3", chat=False)
    return places


@pytest.fixture(scope="session")
def settings() -> Config:
    # One thread: on a busy machine two threads that wait for each other are ten times slower.
    return parse(b'[model]\ntext = "tiny-text"\ncode = "tiny-text"\nencoder = "tiny-encoder"\n'
                 b'language = "tiny-chat"\nthreads = 1\n')


@pytest.fixture(scope="session")
def engine(home: Places, settings: Config) -> ArrowEngine:
    return ArrowEngine.open(settings, places=home)
