"""The model card of an exported run: data, licences, compute, curve, held-out bounds and samples, none chosen."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer

from aios.contracts import SamplingDefaults
from aios.errors import BadInput
from aios.model.score_network import TextScoreNetwork
from aios.training.curves import PICTURE
from aios.training.objective import measured_by
from aios.training.runner import last_rows
from aios.training.samples import write
from aios.training.vocabulary import EOT_ID

SAMPLE_SEEDS = range(3)
CURVE_COLUMNS = 8
# Weakest first; a name of a card's table may stand in a longer one ("MIT, BSD-3-Clause or Apache-2.0").
LICENCES: Final[Mapping[str, str]] = {
    "public domain": "CC0-1.0", "CC0": "CC0-1.0", "MIT": "MIT", "BSD-3-Clause": "BSD-3-Clause",
    "WordNet 3.0": "LicenseRef-WordNet-3.0", "PSF-2.0": "PSF-2.0", "Apache-2.0": "Apache-2.0",
    "CC BY 3.0": "CC-BY-3.0", "CC BY 4.0": "CC-BY-4.0", "CC BY-SA 3.0": "CC-BY-SA-3.0", "CC BY-SA 4.0": "CC-BY-SA-4.0",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What is given, what follows the gap, and how many tokens are written; reserved tokens are spelled out."""

    title: str
    head: str
    tail: str = ""
    length: int = 0     # 0: the model's default
    code: bool = False


SAMPLES: Final = (
    Sample(title="Nothing given", head=""),
    Sample(title="A request", head="<|user|>Write a short story about a fox who finds a key.<|assistant|>"),
    Sample(title="A question", head="<|user|>How do I make a cup of tea?<|assistant|>"),
    Sample(title="A story continued", head="The old man opened the door and looked at the sea."),
    Sample(title="A gap in a text", head="She went to the market to buy",
           tail=" and then she walked home in the rain.", length=12),
    Sample(title="A function continued", head="<|code|>def count_words(text):\n    ", code=True),
    Sample(title="A gap in a function", length=16, code=True, tail="\n    return best\n",
           head="<|code|>def largest(values):\n    best = values[0]\n    for value in values:"),
)  # fmt: skip

_CARD = """# {name}

A masked-diffusion language model of {parameters:,} parameters for {modalities}, trained from scratch. It fills any
part of a text that is hidden: it continues, and it writes between a given head and a given tail.

- Network: `SharedTransformer`, {layers} layers of width {width}; tied embeddings of {vocab:,} tokens. It reads a text
  with a gap in both directions{blocks}.
- Process: absorbing (MDLM), log-linear schedule; {never} reserved ids are never written.
- Window: {length_max} tokens. `<|eot|>` ends a document.{code}
- Default sampling: {sampler}, temperature {temperature:g}, denoising steps per new token: {steps_per_token:g},
  {length} tokens.
- Weights: moving average, chosen by the bound on the validation split; {bytes:.1f} MB as {formats}.
- Licence: {licence}, the strictest of its sources.

## Limits
It is small. It knows few facts and invents names and numbers; it holds a thread for some sentences and does not
check what it says. It reads and writes English and Python only. Its code is a guess: read it before you run it.
Nothing was done to make it polite or safe beyond the choice of its sources.

## Data
| source | share | training tokens | origin | licence |
|---|---|---|---|---|
{data}

Documents were split by a hash of their names before training; validation and test documents were never trained on.
`aios train data build {recipe}` makes the data; its hash is `{data_sha256}`.

## Training
{steps:,} steps, {tokens:,} tokens, {hours:.2f} hours of wall time with pauses, on {machine}; seed {seed}, plan
`{plan}` ({objectives}): `aios train run {plan}`.

## Validation text
{measure} on windows of 128 tokens, in full precision (before) and with the weights as they lie here
(after), both in the same way.

| source | nats per token before | after | bits per byte before | after |
|---|---|---|---|---|
{bounds}

The figure of the training mixture changes by {increase:+.2f} %.

During training (mixture, nats per token, moving average):

| {curve_steps} |
|{curve_rule}|
| {curve_values} |
{picture}
## Samples
Seeds {first_seed} to {last_seed} of every prompt with the default sampling; all are shown. `[...]` is the gap.
{samples}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a card tells about."""

    name: str
    network: TextScoreNetwork
    tokenizer: Tokenizer
    sampling: SamplingDefaults
    run: Path
    settings: Mapping[str, Any]
    step: int
    data: Path
    before: Mapping[str, float]
    after: Mapping[str, float]
    formats: Mapping[str, int]
    bytes: int
    machine: str
    modalities: Sequence[str]


def strictest(licences: Sequence[str]) -> str:
    """Return the SPDX name of the strictest licence; BadInput for one whose strictness is not known."""
    order = list(LICENCES)
    found = [order.index(name) for licence in licences for name in _named(licence)]
    return LICENCES[order[max(found)]]


def _named(licence: str) -> list[str]:
    known = [name for name in LICENCES if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", licence)]
    if not known:
        raise BadInput(f"how strict is the licence {licence!r}?", remedy="add it to LICENCES in aios/training/card.py")
    return known


def data_table(data: Path) -> str:
    """Return one row per training source."""
    sources = json.loads((data / "manifest.json").read_text(encoding="utf-8"))["sources"]
    weights = json.loads((data / "corpus.json").read_text(encoding="utf-8"))["weights"]
    return "\n".join(
        f"| {name} | {share:.1%} | {sources[name]['train_tokens']:,} | {sources[name]['origin']} "
        f"| {sources[name]['licence']} |" for name, share in weights.items())


def bound_table(facts: Facts) -> str:
    """Return one row per validation source: nats per token and bits per byte, before and after packing."""
    index = json.loads((facts.data / "corpus.json").read_text(encoding="utf-8"))
    rows = []
    for source, before in facts.before.items():
        sizes, after = index["sizes"][source], facts.after[source]
        bits = sizes["held_out_tokens"] / sizes["held_out_bytes"] / math.log(2)
        label = source if source in index["weights"] else f"{source} (never trained on)"
        rows.append(f"| {label} | {before:.3f} | {after:.3f} | {before * bits:.3f} | {after * bits:.3f} |")
    return "\n".join(rows)


def sample_section(facts: Facts) -> str:
    """Return what the network writes behind, or into, every prompt with every seed."""
    lines = []
    for sample in SAMPLES:
        if sample.code and "code" not in facts.modalities:
            continue
        shown = f"{sample.head}[...]{sample.tail}" if sample.tail else sample.head
        lines.append(f"\n### {sample.title}\n" + (f"\n```\n{shown}\n```\n" if shown else ""))
        head, tail = (torch.tensor([facts.tokenizer.encode(text).ids], dtype=torch.long)
                      for text in (sample.head, sample.tail))
        sampling = replace(facts.sampling, length=sample.length or facts.sampling.length)
        for seed in SAMPLE_SEEDS:
            ids = write(facts.network, head, sampling=sampling, seed=seed, tail=tail)[0][0].tolist()
            ids = ids[: ids.index(EOT_ID)] if EOT_ID in ids else ids
            text = facts.tokenizer.decode(ids, skip_special_tokens=False).strip("\n").replace("```", "` ` `")
            lines.append(f"Seed {seed}:\n```\n{text}\n```\n")
    return "\n".join(lines)


def model_card(facts: Facts) -> str:
    """Return README.md of a run's exported weights; `facts` are measured, nothing in it is chosen by eye."""
    config, sampling = facts.network.backbone.config, facts.sampling
    manifest = json.loads((facts.data / "manifest.json").read_text(encoding="utf-8"))
    weights = json.loads((facts.data / "corpus.json").read_text(encoding="utf-8"))["weights"]
    before, after = (sum(share * bounds[name] for name, share in weights.items())
                     for bounds in (facts.before, facts.after))
    loop = facts.settings["loop"]
    return _CARD.format(
        name=facts.name,
        parameters=sum(math.prod(shape) for shape in _shapes(facts.network)),
        modalities=" and ".join(facts.modalities),
        layers=config.num_layers,
        width=config.hidden_dim,
        vocab=facts.network.head.vocab_size,
        never=int(facts.network.get_buffer("excluded").sum()),
        length_max=max(loop["lengths"]),
        code=" `<|code|>` begins a file of code." if "code" in facts.modalities else "",
        blocks=f", and writes on in blocks of {sampling.block}, each behind its clean past" if sampling.block else "",
        measure=("-log p of the text in the order of its blocks, a likelihood," if measured_by(sampling).exact
                 else "Upper bound on -log p,"),
        sampler=sampling.sampler,
        temperature=sampling.temperature,
        steps_per_token=sampling.steps_per_token,
        length=sampling.length,
        bytes=facts.bytes / 1e6,
        formats=", ".join(f"{form} ({count} tensors)" for form, count in facts.formats.items()),
        licence=strictest([manifest["sources"][name]["licence"] for name in weights]),
        data=data_table(facts.data),
        recipe=facts.settings["data"],
        data_sha256=facts.settings["data_sha256"],
        machine=facts.machine,
        seed=loop["seed"],
        plan=facts.settings["plan"],
        objectives=", ".join(f"{name} {share:g}" for name, share in loop["objectives"].items()),
        bounds=bound_table(facts),
        increase=100 * (after / before - 1),
        first_seed=SAMPLE_SEEDS[0],
        last_seed=SAMPLE_SEEDS[-1],
        samples=sample_section(facts),
        **_curve(facts),
    )


def _curve(facts: Facts) -> dict[str, Any]:
    """What the run's log says up to the step of the weights."""
    log = [row for row in last_rows(facts.run) if row["step"] <= facts.step]
    if not log:
        raise BadInput(f"{facts.run} has no log", remedy="export from the folder in which the run was trained")
    curve = [(row["step"], row["mixture"]) for row in log if "mixture" in row]
    thinned = curve[:: -max(1, -(-len(curve) // CURVE_COLUMNS))][::-1]
    return {
        "steps": facts.step, "tokens": log[-1]["tokens"], "hours": log[-1]["elapsed_s"] / 3600,
        "curve_steps": " | ".join(f"step {at:,}" for at, _ in thinned),
        "curve_rule": "|".join("---" for _ in thinned),
        "curve_values": " | ".join(f"{value:.3f}" for _, value in thinned),
        "picture": f"\n![loss and bounds]({PICTURE})\n" if (facts.run / PICTURE).exists() else "",
    }


def _shapes(network: TextScoreNetwork) -> list[tuple[int, ...]]:
    """The shapes of the network as `config.json` describes it, whatever its matrices are packed into."""
    config = network.backbone.config
    whole = TextScoreNetwork(config, network.head.vocab_size)
    return [tuple(parameter.shape) for parameter in whole.parameters()]
