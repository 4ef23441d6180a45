"""transformers over the very tensors of an installed language model, dequantised, as the peer of our own."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, Final

import torch
from torch import Tensor

from aios.contracts import PackedTensor

PEER: Final = "transformers"
INSTALL: Final = "install the peer: pip install 'aios-daemon[bench]'"
CACHES: Final = (None, "static")     # its dynamic cache, and one whose memory is taken once


@dataclass(slots=True, kw_only=True)
class PeerLanguage:
    """The peer, its version, and the settings it runs fastest with here."""

    model: Any
    version: str
    cache: str | None = None

    @classmethod
    def open(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor | PackedTensor]) -> PeerLanguage | None:
        """The same network in float32 with scaled-dot-product attention; None where the peer is not installed."""
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            transformers: Any = import_module(PEER)   # untyped, and slow to import
        except ImportError:
            return None
        transformers.logging.set_verbosity_error()
        config = transformers.AutoConfig.for_model(**dict(spec))
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
        missing, unexpected = model.load_state_dict(
            {name: plain(tensor) for name, tensor in tensors.items()}, strict=False)
        if unexpected or set(missing) - {"lm_head.weight"}:
            raise ValueError(f"the peer's network differs: {missing[:3]} missing, {unexpected[:3]} unexpected")
        model.tie_weights()
        model.generation_config = transformers.GenerationConfig(pad_token_id=0)
        return cls(model=model.eval(), version=metadata.version(PEER))

    def tune(self, prompts: Sequence[Sequence[int]], count: int) -> None:
        """Keep the cache that writes fastest."""
        timings = {}
        for cache in CACHES:
            self.cache = cache
            self.write(prompts, 2)
            began = time.perf_counter()
            self.write(prompts, count)
            timings[time.perf_counter() - began] = cache
        self.cache = timings[min(timings)]

    def write(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """The `count` likeliest next tokens of every prompt, one after another."""
        ids, mask = _padded(prompts)
        with torch.inference_mode():
            out = self.model.generate(ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count,
                                      do_sample=False, cache_implementation=self.cache)
        written: list[list[int]] = out[:, ids.shape[1]:].tolist()
        return written

    def judged(self, prompt: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        """Its own next tokens after one prompt, and how far each of them was ahead of the second."""
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count,
                                      min_new_tokens=count, do_sample=False, output_logits=True,
                                      return_dict_in_generate=True)
        best = torch.cat(out.logits).topk(2, dim=-1).values
        tokens: list[int] = out.sequences[0, ids.shape[1]:].tolist()
        leads: list[float] = (best[:, 0] - best[:, 1]).tolist()
        return tokens, leads

    @property
    def settings(self) -> str:
        """The settings, for the row."""
        return f"peer at its fastest: float32, sdpa, {self.cache or 'dynamic'} cache, {torch.get_num_threads()} threads"


def plain(tensor: Tensor | PackedTensor) -> Tensor:
    """A tensor in float32, as the file stands for it."""
    if isinstance(tensor, PackedTensor):
        from aios.store.quant import ArrowQuant

        return ArrowQuant.dequantize(tensor)
    return tensor.float()


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt):] = torch.tensor(list(prompt))
        mask[row, width - len(prompt):] = 1
    return ids, mask
