"""Turn a training run's averaged weights into a model folder: half precision, config, tokenizer, model card."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from aios.contracts import SamplingDefaults
from aios.model.config import TransformerConfig
from aios.model.score_network import ARCHITECTURE, TextScoreNetwork
from aios.store.record import SPEC, TENSORS, TOKENIZER, seal
from aios.store.weights import WeightWriter
from aios.training.card import model_card
from aios.training.checkpoints import read_tensors
from aios.training.data import NEVER_WRITTEN, open_corpus
from aios.training.objective import held_out_bound
from aios.training.vocabulary import EOT_ID, MASK_ID

LENGTH_MAX = 256  # tokens: the longest windows of training
LICENCE = "CC-BY-SA-4.0"  # the strictest of the sources' licences
BOUND_ROWS, BOUND_DRAWS = 192, 1  # of each source: about 25,000 tokens, 15 seconds in all on one core


def specification(config: TransformerConfig, vocab_size: int, sampling: SamplingDefaults) -> dict[str, Any]:
    """Return config.json of a text score network."""
    return {
        "model_type": ARCHITECTURE,
        "aios": {
            "kind": "diffusion",
            "modality": "text",
            "process": "absorbing",
            "sampling": asdict(sampling),
        },
        "transformer": config.to_dict(),
        "vocab_size": vocab_size,
        "length_max": LENGTH_MAX,
        "tokens": {"mask": MASK_ID, "eot": EOT_ID, "never": list(NEVER_WRITTEN)},
    }


def export(
    weights: Path,
    folder: Path,
    *,
    run: Path,
    config: TransformerConfig,
    vocab_size: int,
    sampling: SamplingDefaults,
    seed: int,
) -> None:
    """Write the averaged weights in `weights` (a checkpoint or best.safetensors of `run`) as a model `folder`."""
    tensors, state = read_tensors(weights)
    averaged = {
        name.removeprefix("average/"): tensor
        for name, tensor in tensors.items()
        if name.startswith("average/") or "/" not in name
    }
    spec = specification(config, vocab_size, sampling)
    half = {name: tensor.to(torch.float16).contiguous() for name, tensor in averaged.items()}
    network = TextScoreNetwork.open(spec, half)
    corpus = open_corpus(run / "data")
    bounds = {
        name: held_out_bound(
            network, corpus.held_out_windows(name, rows=BOUND_ROWS, length=128), MASK_ID, draws=BOUND_DRAWS
        )
        for name in corpus.held_out
    }
    tokenizer = Tokenizer.from_file(str(run / "data" / "tokenizer.json"))
    card = model_card(
        network,
        tokenizer,
        sampling,
        run=run,
        bounds=bounds,
        rows=BOUND_ROWS,
        draws=BOUND_DRAWS,
        length_max=LENGTH_MAX,
        seed=seed,
        step=state["step"],
    )
    staged = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    (staged / SPEC).write_text(json.dumps(spec, indent=2) + "\n")
    shutil.copyfile(run / "data" / "tokenizer.json", staged / TOKENIZER)
    (staged / "README.md").write_text(card)
    with WeightWriter(staged / TENSORS) as writer:
        for name, tensor in half.items():
            writer.add(name, tensor)
        digest = hashlib.sha256((staged / TOKENIZER).read_bytes()).hexdigest()
        writer.finish(spec=spec, card=card, tokenizer_sha256=digest)
    seal(
        staged,
        name=folder.name,
        source="aios train embedded",
        source_version=f"step {state['step']}",
        licence=LICENCE,
        embedded=True,
    )
    shutil.rmtree(folder, ignore_errors=True)
    staged.rename(folder)
