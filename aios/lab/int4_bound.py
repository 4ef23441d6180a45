"""What four bits a weight cost a text model: its bound before and after, on the same windows and maskings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from aios.contracts import PackedTensor
from aios.lab.text_model import TextModel, Windows, nats, network_of_run, rate
from aios.lab.training_roots import TrainingRoots, config_of
from aios.model.score_network import TextScoreNetwork
from aios.quantisation.calibration import default_texts
from aios.quantisation.formats import Format
from aios.quantisation.recipe import Recipe, compressed, plan
from aios.quantisation.subject import Subject
from aios.store.quant import ArrowQuant

if TYPE_CHECKING:
    from pathlib import Path

    from aios.training.objective import Objective

RECIPE: Final = Recipe(form=Format(bits=4, group_size=64), method="gptq")     # of `aios models quantize`
PLANS: Final = ("nano-cpu", "nano")
ERROR_MAX: Final = 0.4      # ||W - Q|| / ||W|| of a matrix and its own INT4 is about 0.1, of unrelated ones 1.4


def pair(model: TextModel, roots: TrainingRoots) -> tuple[TextScoreNetwork, TextScoreNetwork, str] | None:
    """The network with all its bits and with four, and how they were come by.

    None where a model that is stored in four bits has no training run at hand that it was made from.
    """
    if not model.packed:
        subject = Subject.open(model.record)
        network = quantised(subject)
        return model.network, network, f"matrices by {RECIPE}, embeddings and all; activations as in service"
    run = source(model, roots)
    if run is None:
        return None
    return network_of_run(run), model.network, f"as shipped, beside the weights of the run {run.name} in f32"


def quantised(subject: Subject) -> TextScoreNetwork:
    """The subject's network in INT4, opened as it would be from a file; the subject is of no other use afterwards."""
    batches = subject.batches(default_texts())
    formats = plan(subject, RECIPE, batches, lambda label, done: None)
    tensors: dict[str, Tensor | PackedTensor] = {
        name: tensor for name, tensor, _ in compressed(subject, RECIPE, formats, batches, lambda label, done: None)}
    return TextScoreNetwork.open(subject.spec, tensors).eval()


def source(model: TextModel, roots: TrainingRoots) -> Path | None:
    """The training run whose weights are those of the model, but for rounding."""
    for folder in (folder for name in PLANS for folder in roots.runs(name)):
        if config_of(folder)["network"] == dict(model.spec["transformer"]) and _same(model, folder):
            return folder
    return None


def _same(model: TextModel, folder: Path) -> bool:
    exact = network_of_run(folder).state_dict()
    for name, tensor in model.tensors.items():
        if isinstance(tensor, PackedTensor):
            there = exact.get(name)
            if there is None or there.shape != torch.Size(tensor.shape):
                return False
            if float((ArrowQuant.dequantize(tensor) - there).norm() / there.norm()) > ERROR_MAX:
                return False
    return True


def increase(exact: TextScoreNetwork, packed: TextScoreNetwork, windows: Sequence[Windows], seed: int,
             asked: Objective) -> tuple[float, tuple[float, float]]:
    """By how many percent the bound of the mixture is higher, and a 95 % interval over windows."""
    before, after = (rate(windows, [nats(network, one, seed, asked) for one in windows])
                     for network in (exact, packed))
    low, high = after.interval(seed, over=before)
    return 100 * (after.value / before.value - 1), (100 * (low - 1), 100 * (high - 1))
