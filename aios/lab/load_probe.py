"""One opening of one model in this process: what `aios bench load` starts anew for every repetition.

    python -m aios.lab.load_probe ours|safetensors|transformers|llamacpp FOLDER warm|cold

Everything is imported before the clock starts, ours and the peers'. Prints {"ms", "rss_bytes", "forward_ms"} of the
time until the first forward can start, what the process grew by then, and that forward itself.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

Forward = Callable[[], bool]   # of one token; whether numbers came out

WEIGHTS: Final = {"ours": "model.parquet", "safetensors": "model.safetensors", "transformers": "model.safetensors",
                  "llamacpp": "model.gguf"}


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def forget(file: Path) -> None:
    """Take a file out of the page cache."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def ours(folder: Path) -> Callable[[], Forward]:
    """Parquet V2: what the engine does to open a model."""
    import aios.store.record  # noqa: F401 - imported before the clock starts
    from aios.store.weights import WeightLoader

    def open_now() -> Forward:
        loader = WeightLoader.open(folder / WEIGHTS["ours"])
        forward = _network(loader.spec, loader)

        def checked() -> bool:
            numbers = forward()
            loader.intact(wait=True)
            return numbers
        return checked
    return open_now


def safetensors(folder: Path) -> Callable[[], Forward]:
    """safetensors' own loader, and torch's own way to put tensors into the same network."""
    import torch
    from safetensors.torch import load_file

    from aios.model.heads import TextHead
    from aios.model.imports import language_config, language_state
    from aios.model.loading import unfilled
    from aios.model.transformer import SharedTransformer

    def open_now() -> Forward:
        spec = json.loads((folder / "config.json").read_bytes())
        backbone_state, head_state = language_state(load_file(folder / WEIGHTS["safetensors"]))
        with unfilled():
            shape = language_config(spec)
            backbone, head = SharedTransformer.from_config(shape), TextHead(spec["vocab_size"], shape.hidden_dim)
        backbone.load_state_dict(backbone_state, assign=True)
        head.load_state_dict(head_state, assign=True)
        backbone.eval().requires_grad_(False)
        head.eval().requires_grad_(False)
        return lambda: bool(head.project(backbone(head.embed(torch.ones(1, 1, dtype=torch.long)))).isfinite().all())
    return open_now


def transformers(folder: Path) -> Callable[[], Forward]:
    """transformers' from_pretrained over the same safetensors file."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401 - imports the model's code now
    from transformers.utils import logging

    hush: Callable[[], None] = logging.disable_progress_bar
    hush()

    def open_now() -> Forward:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        return lambda: bool(model(torch.ones(1, 1, dtype=torch.long)).logits.isfinite().all())
    return open_now


def llamacpp(folder: Path) -> Callable[[], Forward]:
    """llama.cpp over the GGUF file, mapped as by default, with the smallest context."""
    import numpy as np
    from llama_cpp import Llama

    def open_now() -> Forward:
        model = Llama(model_path=str(folder / WEIGHTS["llamacpp"]), n_ctx=64, logits_all=True, verbose=False)

        def forward() -> bool:
            model.eval([1])
            return bool(np.isfinite(model.scores[0]).all())
        return forward
    return open_now


def _network(spec: Mapping[str, Any], tensors: Mapping[str, Any]) -> Forward:
    import torch

    from aios.model.language import LanguageModel
    from aios.model.score_network import ARCHITECTURE, TextScoreNetwork

    ids = torch.ones(1, 1, dtype=torch.long)
    if spec["model_type"] == ARCHITECTURE:
        network = TextScoreNetwork.open(spec, tensors)   # what it never writes is -inf
        return lambda: not network(ids, t=torch.ones(1, 1)).isnan().any()
    model = LanguageModel.open(spec, tensors)
    return lambda: bool(model.head.project(model.backbone(model.head.embed(ids))).isfinite().all())


KINDS: Final[Mapping[str, Callable[[Path], Callable[[], Forward]]]] = {
    "ours": ours, "safetensors": safetensors, "transformers": transformers, "llamacpp": llamacpp}


def main(kind: str, folder: Path, cache: str) -> dict[str, float]:
    """Open once; raises ValueError when the model says what is no number."""
    import torch

    import aios.model.language
    import aios.model.score_network  # noqa: F401 - imported before the clock starts

    open_now = KINDS[kind](folder)
    if cache == "cold":
        forget(folder / WEIGHTS[kind])
    with torch.inference_mode():
        before, began = rss_bytes(), time.perf_counter()
        forward = open_now()
        opened = time.perf_counter()
        grown = rss_bytes() - before
        numbers = forward()
    if not numbers:
        raise ValueError(f"{kind}: the first forward gave what is no number")
    return {"ms": (opened - began) * 1e3, "rss_bytes": grown, "forward_ms": (time.perf_counter() - opened) * 1e3}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])))
