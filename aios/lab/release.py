"""A trained run as a model to ship: matrices packed by ArrowQuant, the machine that trained it in its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from aios.contracts import PackedTensor, SamplingDefaults
from aios.lab.machine import machine_facts
from aios.ledger import Ledger
from aios.quantisation.formats import Format
from aios.quantisation.recipe import Progress, Recipe, compressed, plan
from aios.quantisation.subject import Subject
from aios.training.export import Exported, Pack, Trained, export, halved
from aios.training.vocabulary import file_sha256

HALF_BITS: Final = 16
GROUP_SIZE: Final = 32          # half a bit a weight more than 64, and a third of its loss


def release(trained: Trained, to: Path, *, bits: int, sampling: SamplingDefaults, progress: Progress) -> Exported:
    """Write the run's best weights as the model folder `to`; `bits` 16 keeps halves. Raises BadInput."""
    pack: Pack = halved if bits == HALF_BITS else packer(Format(bits=bits, group_size=GROUP_SIZE), progress)
    return export(trained, to, sampling=sampling, pack=pack, machine=machine(trained))


def packer(form: Format, progress: Progress) -> Pack:
    """What packs every matrix in `form`, those of linear layers by GPTQ, and halves the rest.

    Embeddings go along: on the model of 2.6M parameters four bits for them and for everything else cost 0.03 % of the
    bound, eight bits for them 0.06 %, sixteen 0.09 %, which is all within the noise of the calibration.
    """
    recipe = Recipe(form=form, method="gptq")

    def pack(spec: Mapping[str, Any], tensors: Mapping[str, Tensor],
             batches: Sequence[Tensor]) -> dict[str, Tensor | PackedTensor]:
        subject = Subject("diffusion", spec, tensors)
        formats = plan(subject, recipe, batches, progress)
        return {name: tensor for name, tensor, _ in compressed(subject, recipe, formats, batches, progress)}

    return pack


def machine(trained: Trained, ledger: Ledger | None = None) -> str:
    """The machine that finished the run, as the ledger knows it, else this one."""
    sha256 = file_sha256(trained.folder / "best.safetensors")
    facts: Mapping[str, Any] = machine_facts()
    for entry in (ledger or Ledger.here()).entries():
        if sha256 in entry.checkpoints.values() and entry.command.startswith("train "):
            facts = entry.machine
    words = [f"{facts['threads']} threads of {facts['cpu']} ({facts['isa']})", facts.get("gpu")]
    return " and ".join(word for word in words if word)
