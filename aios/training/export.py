"""Turn a run's best weights into a model folder: packed weights, config, tokenizer, curve, model card.

How matrices are packed is not this room's business: whoever calls `export` brings a `Pack`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from aios.contracts import PackedTensor, SamplingDefaults
from aios.diffusion.processes import hide
from aios.errors import BadInput
from aios.model.score_network import ARCHITECTURE, TextScoreNetwork
from aios.security import private_file
from aios.store.record import SPEC, TENSORS, TOKENIZER, ModelRecord, seal
from aios.store.weights import WeightWriter
from aios.training.build import data_sha256
from aios.training.card import Facts, model_card, strictest
from aios.training.checkpoints import read_tensors
from aios.training.curves import PICTURE, draw_curves
from aios.training.data import Corpus, open_corpus
from aios.training.objective import Objective, bound, measured_by
from aios.training.vocabulary import EOT_ID, MASK_ID, UNWRITTEN

CARD: Final = "README.md"
CODE_BEGINS: Final = "<|code|>"         # the token before every file of code
# The tokens with which turns begin.
ROLES: Final[Mapping[str, str]] = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>",
                                   "tool": "<|result|>", "memory": "<|memory|>"}
BOUND_ROWS, BOUND_DRAWS = 192, 2        # of each source: about 25,000 tokens, and maskings of each window
BOUND_LENGTH: Final = 128
CALIBRATION_SEED, CALIBRATION_ROWS = 20_021, 128    # of training windows, which the finest matrix sees 16,000 tokens of
CALIBRATION_BATCH_ROWS: Final = 16
PICTURE_BYTES_MAX: Final = 256 << 10    # a larger one has no place in a package
PLAIN: Final = SamplingDefaults(sampler="ancestral", steps_per_token=1.0, temperature=0.8, length=64)

# config.json, averaged weights, token batches as the network sees them in training -> the weights to store
Pack = Callable[[Mapping[str, Any], Mapping[str, Tensor], Sequence[Tensor]], Mapping[str, Tensor | PackedTensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A run of a plan, finished or not: its best averaged weights, and the data they learned from."""

    folder: Path
    settings: Mapping[str, Any]     # what config.json of the run says
    tensors: Mapping[str, Tensor]
    step: int
    data: Path
    corpus: Corpus

    @classmethod
    def open(cls, folder: Path, data: Path | None = None) -> Trained:
        """Read a run's folder; BadInput when it cannot become a diffusion model, or `data` is not what it read."""
        settings = _settings(folder)
        if not (folder / "best.safetensors").is_file():
            raise BadInput(f"{folder} has no weights yet", remedy="they come with the first evaluation of the run")
        data = data or Path("runs/data") / settings["data"]
        if not (data / "manifest.json").is_file():
            raise BadInput(f"no data in {data}", remedy=f"aios train data build {settings['data']} --out {data}")
        if data_sha256(data) != settings["data_sha256"]:
            raise BadInput(f"{data} is not what {folder.name} learned from", remedy="name its data with --data")
        tensors, state = read_tensors(folder / "best.safetensors")
        return cls(folder=folder, settings=settings, tensors=tensors, step=state["step"], data=data,
                   corpus=open_corpus(data))

    @property
    def tokenizer(self) -> Path:
        """The vocabulary it learned with."""
        return self.data / TOKENIZER

    @property
    def modalities(self) -> tuple[str, ...]:
        """Text, and code where a source's documents begin with the token for it."""
        code = self.token(CODE_BEGINS)
        coded = any(len(stream.tokens) and int(stream.tokens[0]) == code for stream in self.corpus.train.values())
        return ("text", "code") if coded else ("text",)

    @property
    def block(self) -> int:
        """Tokens of the blocks that it learned to write one after another; 0 if it did not."""
        loop = self.settings["loop"]
        return int(loop["block"]) if "block" in loop["objectives"] else 0

    @property
    def roles(self) -> dict[str, int]:
        """The ids of the tokens with which turns begin, by role, where a source has conversations; else none."""
        ids = {role: self.token(name) for role, name in ROLES.items()}
        streams = [stream.tokens for stream in self.corpus.train.values()]
        used = {role: token for role, token in ids.items()
                if token is not None and any(bool((tokens == token).any()) for tokens in streams)}
        return used if {"user", "assistant"} <= used.keys() else {}

    def token(self, name: str) -> int | None:
        """The id of a reserved token, None where the vocabulary lacks it."""
        found: int | None = Tokenizer.from_file(str(self.tokenizer)).token_to_id(name)
        return found

    def specification(self, sampling: SamplingDefaults) -> dict[str, Any]:
        """config.json of the model."""
        tokens: dict[str, Any] = {"mask": MASK_ID, "eot": EOT_ID, "never": list(UNWRITTEN)}
        if "code" in self.modalities:
            tokens["code"] = self.token(CODE_BEGINS)
        if roles := self.roles:
            tokens["roles"] = roles
        return {
            "model_type": ARCHITECTURE,
            "aios": {"kind": "diffusion", "modalities": list(self.modalities), "process": "absorbing",
                     "sampling": asdict(sampling)},
            "transformer": dict(self.settings["network"]),
            "vocab_size": self.settings["vocab_size"],
            "length_max": max(self.settings["loop"]["lengths"]),
            "tokens": tokens,
        }

    def network(self, sampling: SamplingDefaults = PLAIN) -> TextScoreNetwork:
        """The network as it was trained, in f32, for inference."""
        return TextScoreNetwork.open(self.specification(sampling), self.tensors)

    def bounds(self, network: TextScoreNetwork, asked: Objective) -> dict[str, float]:
        """-log p of every validation source in nats per token, as `asked` measures it, the same every time."""
        return {source: bound(network, asked, self.corpus.held_out_windows(
            source, rows=BOUND_ROWS, length=BOUND_LENGTH), draws=BOUND_DRAWS) for source in self.corpus.held_out}

    def mixture(self, bounds: Mapping[str, float]) -> float:
        """The bound of the mixture of its training."""
        return sum(weight * bounds[source] for source, weight in self.corpus.weights.items())

    def calibration(self) -> list[Int[Tensor, "b s"]]:
        """Training windows with tokens hidden as in training, in batches."""
        ids = self.corpus.batch(seed=CALIBRATION_SEED, step=0, rows=CALIBRATION_ROWS, length=BOUND_LENGTH)
        rng = torch.Generator().manual_seed(CALIBRATION_SEED)
        hidden = hide(ids, torch.ones_like(ids, dtype=torch.bool), MASK_ID, rng).ids
        return list(hidden.view(-1, CALIBRATION_BATCH_ROWS, BOUND_LENGTH))


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The model that was written, and its bound on every validation source in nats per token before and after."""

    record: ModelRecord
    before: Mapping[str, float]
    after: Mapping[str, float]
    bytes: int


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no run of a plan in {folder}", remedy="`aios train status` shows the runs there are") from None
    if not {"masked", "spans", "entropic"} & set(settings["loop"]["objectives"]):
        raise BadInput(f"{folder.name} did not learn masked diffusion over whole rows",
                       remedy="only runs with the objective masked, spans or entropic become models")
    return settings


def halved(_: Mapping[str, Any], tensors: Mapping[str, Tensor], __: Sequence[Tensor]) -> dict[str, Tensor]:
    """The weights in half precision: the plainest `Pack`."""
    return {name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items()}


def export(trained: Trained, folder: Path, *, sampling: SamplingDefaults, pack: Pack, machine: str) -> Exported:
    """Write the model `folder`, whole or not at all; one that is there is replaced."""
    spec = trained.specification(sampling)
    stored = pack(spec, trained.tensors, trained.calibration())
    network = TextScoreNetwork.open(spec, stored)
    asked = measured_by(sampling)
    before, after = trained.bounds(trained.network(sampling), asked), trained.bounds(network, asked)
    bytes_stored = sum(tensor.nbytes for tensor in stored.values())
    card = model_card(Facts(
        name=folder.name, network=network, tokenizer=Tokenizer.from_file(str(trained.tokenizer)), sampling=sampling,
        run=trained.folder, settings=trained.settings, step=trained.step, data=trained.data, before=before,
        after=after, formats=formats(stored), bytes=bytes_stored, machine=machine, modalities=trained.modalities))
    staged = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    _write_files(trained, staged, spec, card)
    with WeightWriter(staged / TENSORS) as writer:
        for name, tensor in stored.items():
            writer.add(name, tensor)
        digest = hashlib.sha256((staged / TOKENIZER).read_bytes()).hexdigest()
        writer.finish(spec=spec, card=card, tokenizer_sha256=digest)
    manifest = json.loads((trained.data / "manifest.json").read_text(encoding="utf-8"))
    licences = [told["licence"] for name, told in manifest["sources"].items() if name in trained.corpus.weights]
    source = f"aios train export {trained.settings['plan']}/{trained.folder.name}"
    record = seal(staged, name=folder.name, source=source,
                  source_version=f"step {trained.step}", licence=strictest(licences), embedded=True)
    publish(staged, folder)
    return Exported(record=record, before=before, after=after, bytes=bytes_stored)


def formats(stored: Mapping[str, Tensor | PackedTensor]) -> dict[str, int]:
    """How many tensors there are of each format."""
    counts: dict[str, int] = {}
    for tensor in stored.values():
        name = f"int{tensor.bits} in groups of {tensor.group_size}" if isinstance(tensor, PackedTensor) else \
            str(tensor.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + 1
    return counts


def _write_files(trained: Trained, staged: Path, spec: Mapping[str, Any], card: str) -> None:
    """Everything but the weights and the record."""
    private_file.write(staged / SPEC, json.dumps(spec, indent=2).encode() + b"\n")
    private_file.write(staged / TOKENIZER, trained.tokenizer.read_bytes())
    private_file.write(staged / CARD, card.encode())
    picture = draw_curves(trained.folder)
    if picture is not None and picture.stat().st_size <= PICTURE_BYTES_MAX:
        private_file.write(staged / PICTURE, picture.read_bytes())


def publish(staged: Path, folder: Path) -> None:
    """Put a finished folder in the place of an earlier one; a crash leaves either, if under its staging name."""
    earlier = folder.with_name(f".{folder.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if folder.exists():
        folder.rename(earlier)
    staged.rename(folder)
    parent = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    shutil.rmtree(earlier, ignore_errors=True)
