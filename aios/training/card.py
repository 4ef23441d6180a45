"""The model card of the embedded default: data, licences, compute, held-out bound and samples, none chosen."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from aios.contracts import SamplingDefaults
from aios.model.score_network import TextScoreNetwork
from aios.training.samples import write
from aios.training.sources import ELSEWHERE, MIXTURE
from aios.training.vocabulary import EOT_ID

SAMPLE_SEEDS = range(4)
CURVE_COLUMNS = 7
SAMPLE_PROMPTS = ("", "I would like to book a table", "Hi! How are you", "Tom has 5 apples.")

_CARD = """# text-default

A masked-diffusion language model of {parameters:,} parameters, trained from scratch on two processor cores.
It writes short English text in the manner of its data: task dialogues, small talk, word problems and old novels.
It knows no facts and follows no instructions; it is here so that `diffuse` and `infill` work at once, offline.

- Network: `SharedTransformer`, {layers} layers of width {width}, bidirectional; tied embeddings of {vocab:,} tokens.
- Process: absorbing (MDLM), log-linear schedule, no time conditioning; {never} reserved ids are never written.
- Window: {length_max} tokens. One line is one utterance or paragraph; `<|eot|>` ends a document.
- Default sampling: {sampler}, temperature {temperature:g}, denoising steps per new token: {steps_per_token:g}.
- Weights: moving average, float16, chosen by the held-out bound of the mixture.

## Data
| source | share | training tokens | origin | licence |
|---|---|---|---|---|
{data}
Modern dialogue weighs most because its short, regular sentences are what so small a model can learn to write
recognisably in little time; the novels widen vocabulary and grammar. Five documents of a hundred are held out.
The weights are derived from CC BY-SA 4.0 text (Schema-Guided Dialogue, Rastogi et al. 2020) and are shared under
CC BY-SA 4.0.

## Training
{steps:,} steps, {tokens:,} tokens, {hours:.2f} hours of wall time on 2 shared cores (AMD Zen 3, float32), seed {seed}:
`python -m aios.training.embedded --data DIR --steps {steps}`. The original run was annealed against wall time, so
that a rerun of as many steps comes close but not bit for bit.

## Held-out bound
Upper bound on -log p of held-out documents, measured on windows of 128 tokens with the weights as shipped
({rows} windows of each source at most, maskings of each: {draws}).

| source | nats per token | bits per byte |
|---|---|---|
{bounds}

During training (mixture, nats per token, moving average):

| {curve_steps} |
|{curve_rule}|
| {curve_values} |

## Samples
Seeds {first_seed} to {last_seed} of every prompt, {sample_length} new tokens, default sampling; all are shown.
{samples}
"""


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's loss log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def data_table(run: Path) -> str:
    """Return one row per training source."""
    sizes = json.loads((run / "data" / "corpus.json").read_text())["sizes"]
    rows = [
        f"| {s.name} ({s.file}) | {s.weight:.0%} | {sizes[s.name]['train_tokens']:,} | {s.origin} | {s.licence} |"
        for s in MIXTURE
    ]
    return "\n".join(rows) + "\n"


def bound_table(bounds: dict[str, float], run: Path) -> str:
    """Return one row per held-out source: nats per token and bits per byte."""
    sizes = json.loads((run / "data" / "corpus.json").read_text())["sizes"]
    rows = []
    for name, nats in bounds.items():
        tokens_per_byte = sizes[name]["held_out_tokens"] / sizes[name]["held_out_bytes"]
        label = f"{name} (never trained on)" if name == ELSEWHERE.name else name
        rows.append(f"| {label} | {nats:.3f} | {nats * tokens_per_byte / math.log(2):.3f} |")
    return "\n".join(rows)


def sample_section(network: TextScoreNetwork, tokenizer: Tokenizer, sampling: SamplingDefaults) -> str:
    """Return what the network writes behind every prompt with every seed."""
    lines = []
    for prompt in SAMPLE_PROMPTS:
        lines.append(f"\nPrompt: `{prompt}`\n" if prompt else "\nNo prompt:\n")
        given = torch.tensor([tokenizer.encode(prompt).ids], dtype=torch.long)
        for seed in SAMPLE_SEEDS:
            ids = write(network, given, sampling=sampling, seed=seed)[0][0].tolist()
            ids = ids[: ids.index(EOT_ID)] if EOT_ID in ids else ids
            text = tokenizer.decode(ids).strip("\n")
            lines.append("\n".join(f"> {line}".rstrip() for line in f"[{seed}] {text}".splitlines()) + "\n")
    return "\n".join(lines)


def model_card(
    network: TextScoreNetwork,
    tokenizer: Tokenizer,
    sampling: SamplingDefaults,
    *,
    run: Path,
    bounds: dict[str, float],
    step: int,
    **facts: Any,
) -> str:
    """Return README.md of a run's exported weights."""
    log = read_log(run)
    curve = [(row["step"], row["mixture"]) for row in log if "mixture" in row and row["step"] <= step]
    thinned = curve[:: -max(1, len(curve) // CURVE_COLUMNS)][::-1]
    now = next(row for row in reversed(log) if row["step"] <= step)
    config = network.backbone.config
    return _CARD.format(
        parameters=sum(p.numel() for p in network.parameters()),
        layers=config.num_layers,
        width=config.hidden_dim,
        vocab=network.head.vocab_size,
        never=int(network.get_buffer("excluded").sum()),
        sampler=sampling.sampler,
        steps_per_token=sampling.steps_per_token,
        temperature=sampling.temperature,
        data=data_table(run),
        bounds=bound_table(bounds, run),
        curve_steps=" | ".join(f"step {at:,}" for at, _ in thinned),
        curve_rule="|".join("---" for _ in thinned),
        curve_values=" | ".join(f"{value:.3f}" for _, value in thinned),
        first_seed=SAMPLE_SEEDS[0],
        last_seed=SAMPLE_SEEDS[-1],
        sample_length=sampling.length,
        steps=step,
        tokens=now["tokens"],
        hours=now["elapsed_s"] / 3600,
        samples=sample_section(network, tokenizer, sampling),
        **facts,
    )
