"""A text diffusion model with a memory beside it: the same weights, what was learned of memory, and its card."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec
import torch

from aios.errors import BadInput
from aios.lab.memory_training import HELD_OUT, Reader, Taught, examples, teach
from aios.lab.relevance_training import Encode
from aios.memory.vector_memory import DIM
from aios.model.memory_attention import MemoryOptions
from aios.model.score_network import ARCHITECTURE, TextScoreNetwork
from aios.security import private_file
from aios.store.record import RECORD, SPEC, TENSORS, TOKENIZER, ModelRecord, open_weights, read_record, seal
from aios.store.weights import WeightWriter
from aios.text.passages import ROLE, TRAITS
from aios.text.tokenizer import TextTokenizer
from aios.text.turns import Roles
from aios.training.export import CARD, publish

PARTS: Final = ("pointer.", "backbone.memory.")
READING_SHARE: Final = 0.7       # of the time, for the bar
SECTION: Final = """
## Memory
It reads passages from memory behind `<|memory|>` and points at their words by a pointer of its own{attends}.
That was learned from {count} made-up questions, {epochs} times, seed {seed}, with everything else frozen:
`aios train memory`. On {held_out} questions that it did not learn from, nats a token of the answer, and answers whose
every token is the likeliest: {arms}.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The model that was written, what it learned, and how many parameters that took."""

    record: ModelRecord
    taught: Taught
    parameters: int


def release(model: Path, to: Path, encode: Encode, *, seed: int, count: int, epochs: int,
            progress: Callable[[float, str], None]) -> Released:
    """Teach the model in a folder to use memory, and write it to another one or in its place, whole or not at all.

    What an earlier teaching left is dropped. BadInput for a model that has not learned to read passages.
    """
    record = read_record(model)
    with closing(open_weights(record)) as weights:
        spec = dict(msgspec.json.decode((model / SPEC).read_bytes(), type=dict[str, Any]))
        if spec.get("model_type") != ARCHITECTURE or ROLE not in Roles.read(spec).ids:
            raise BadInput(f"{record.name} has not learned to read passages from memory",
                           remedy="train it on facts first: docs/data.md")
        spec.pop("memory", None)
        stored = {name: weights[name] for name in weights if not name.startswith(PARTS)}
        network = TextScoreNetwork.open(spec, stored)
        reader = Reader(network, spec, TextTokenizer.open(model / TOKENIZER), encode)
        chosen, read = list(examples(seed, count + HELD_OUT)), []
        for done, one in enumerate(chosen):
            read += reader.read([one])
            progress(READING_SHARE * done / len(chosen), "reading")
        options = MemoryOptions(dim=DIM, traits=len(TRAITS))
        taught = teach(network, read[HELD_OUT:], read[:HELD_OUT], options, seed, epochs=epochs, progress=(
            lambda share, text: progress(READING_SHARE + (1 - READING_SHARE) * share, text)))
        learned = {name: tensor.detach().to(torch.float16).contiguous()
                   for name, tensor in network.state_dict().items() if name.startswith(PARTS)}
        card = weights.card.partition("\n## Memory\n")[0] + _section(taught, count, epochs, seed)
        written = _write(record, to, {**spec, "memory": options.to_dict()}, {**stored, **learned}, card)
    return Released(record=written, taught=taught, parameters=sum(tensor.numel() for tensor in learned.values()))


def _write(record: ModelRecord, to: Path, spec: dict[str, Any], tensors: dict[str, Any], card: str) -> ModelRecord:
    staged = to.with_name(f".{to.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True, mode=0o700)
    for file in record.files:
        if file.name not in (SPEC, TENSORS, RECORD, CARD):
            private_file.write(staged / file.name, (record.path / file.name).read_bytes())
    private_file.write(staged / SPEC, msgspec.json.format(msgspec.json.encode(spec)) + b"\n")
    private_file.write(staged / CARD, card.encode())
    with WeightWriter(staged / TENSORS) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.finish(spec=spec, card=card, derived_from=record.derived_from or None,
                      tokenizer_sha256=sha256((staged / TOKENIZER).read_bytes()).hexdigest())
    shipped = bool((record.path / RECORD).stat().st_mode & 0o004)     # as part of a package is, for whoever imports it
    seal(staged, name=to.name, source=record.source, source_version=record.source_version, licence=record.licence,
         embedded=shipped)
    publish(staged, to)
    return read_record(to)


def _section(taught: Taught, count: int, epochs: int, seed: int) -> str:
    """What the card says of it."""
    arms = ", ".join(f"{arm} {nats:.3f} and {taught.exact_percent[arm]:.0f} %" for arm, nats in taught.losses.items())
    attends = ", and attends to their patterns" if taught.attends else "; attention to patterns gave nothing beside it"
    return SECTION.format(attends=attends, count=count, epochs=epochs, seed=seed, held_out=HELD_OUT, arms=arms)
