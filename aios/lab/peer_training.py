"""A plain training loop of transformers over a network of the same sizes: the peer of our own loop."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, Final

import torch
from torch import Tensor

from aios.model.config import TransformerConfig
from aios.training.loop import LoopConfig
from aios.training.precision import Precision, autocast

PEER: Final = "transformers"
INSTALL: Final = "install the peer: pip install 'aios-daemon[bench]'"
CLIP_MAX_NORM: Final = 1.0      # the default of transformers' own trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTraining:
    """Qwen3 (Llama with norms on queries and keys) with tied embeddings, fused AdamW, clipping; next tokens."""

    version: str
    parameters: int
    step: Callable[[Tensor], float]

    @classmethod
    def open(cls, shape: TransformerConfig, vocab_size: int, loop: LoopConfig, precision: Precision, *,
             compiled: bool, rows: int = 0) -> PeerTraining | None:
        """The peer with random weights, in passes of so many rows (0: of all); None where it is not installed."""
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            transformers: Any = import_module(PEER)   # untyped, and slow to import
        except ImportError:
            return None
        transformers.logging.set_verbosity_error()
        config = transformers.Qwen3Config(
            vocab_size=vocab_size, hidden_size=shape.hidden_dim, intermediate_size=shape.ffn_dim,
            num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads, head_dim=shape.head_dim, tie_word_embeddings=True,
            use_cache=False, max_position_embeddings=max(loop.lengths), rms_norm_eps=shape.norm_eps)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
        count = sum(parameter.numel() for parameter in model.parameters())
        return cls(version=metadata.version(PEER), parameters=count, step=_step(
            model.train(), loop, precision, compiled=compiled, rows=rows))


def _step(model: Any, loop: LoopConfig, precision: Precision, *, compiled: bool,
          rows: int) -> Callable[[Tensor], float]:
    """One step on a batch of tokens, which returns its loss."""
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=loop.adam_lr, weight_decay=loop.weight_decay, fused=True)
    read = torch.compile(model, dynamic=False) if compiled else model

    def step(ids: Tensor) -> float:
        told = 0.0
        for piece in torch.split(ids, rows or len(ids)):
            with autocast(ids.device, precision):
                loss = read(input_ids=piece, labels=piece).loss * (len(piece) / len(ids))
            loss.backward()
            told += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_MAX_NORM)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return told

    return step
