"""What the inputs of linear layers look like: X^T X over calibration texts, collected by hooks.

The matrices are the Hessians of the layers' squared output errors. Source: Frantar et al. 2022, "GPTQ".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aios.errors import BadInput

GRAM_BYTES_MAX = 1 << 29      # of a stage's matrices; more layers are collected in more passes
STAGES_MAX = 8                # passes over the texts: a later stage sees the layers before it as compressed
TEXT_BYTES_MAX = 64 << 20     # a calibration file larger than this is surely not meant
TEXTS_MAX = 4096              # more texts change the matrices little and cost minutes
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


class _Enough(Exception):
    """The last layer of a stage has seen its input."""


@cache
def default_texts() -> tuple[str, ...]:
    """The sentences inside the package: plain English of many registers, a little code, German and French."""
    lines = resources.files("aios.quantisation").joinpath("sentences.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line.strip())


def read_texts(path: Path) -> tuple[str, ...]:
    """One text a line from a file; BadInput when it cannot be read or holds none."""
    try:
        if path.stat().st_size > TEXT_BYTES_MAX:
            raise BadInput(f"{path} is larger than {TEXT_BYTES_MAX >> 20} MB", remedy="some thousand lines suffice")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read as text: {error}", remedy="a UTF-8 file, one text a line") from error
    texts = tuple(line.strip() for line in lines if line.strip())[:TEXTS_MAX]
    if not texts:
        raise BadInput(f"{path} holds no text", remedy="a UTF-8 file, one text a line")
    return texts


def linear_layers(network: nn.Module, wanted: Iterable[str]) -> list[str]:
    """Those of the modules called `wanted` that are linear maps, in the order in which the network runs them."""
    chosen = set(wanted)
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and name in chosen]


def stages(network: nn.Module, names: Sequence[str], *, passes: int = STAGES_MAX) -> list[list[str]]:
    """The linear layers in about `passes` stages: whole layers of the network together, bounded memory."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        found = _LAYER.search(name)
        blocks.setdefault(found[1] if found else name, []).append(name)
    at_once = -(-len(blocks) // passes)
    result: list[list[str]] = []
    held = counted = 0
    for members in blocks.values():
        size = sum(4 * network.get_parameter(f"{name}.weight").shape[1] ** 2 for name in members)
        if not result or counted == at_once or held + size > GRAM_BYTES_MAX:
            result.append([])
            held = counted = 0
        result[-1] += members
        held, counted = held + size, counted + 1
    return result


@torch.inference_mode()
def grams(network: nn.Module, names: Sequence[str], batches: Sequence[Int[Tensor, "b s"]],
          progress: Callable[[float], None] = lambda done: None) -> dict[str, Float[Tensor, "k k"]]:
    """X^T X of each linear layer's input rows X, divided by their number; layers that never run are left out.

    Layers that read the same tensor (query, key and value; gate and up) share one matrix.
    """
    matrices: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    owner: dict[str, str] = {}
    seen: dict[str, Tensor] = {}   # this batch's inputs, by the first layer that read them
    waiting: set[str] = set()

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def collect(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            owner[name] = next((first for first, tensor in seen.items() if tensor is inputs[0]), name)
            if owner[name] == name:
                seen[name] = inputs[0]
                rows = inputs[0].reshape(-1, inputs[0].shape[-1])
                counts[name] = counts.get(name, 0) + len(rows)
                if name in matrices:
                    matrices[name].addmm_(rows.T, rows)
                else:
                    matrices[name] = rows.T @ rows
            waiting.discard(name)
            if not waiting:
                raise _Enough
        return collect

    handles = [network.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        for index, batch in enumerate(batches):
            waiting.update(names)
            with suppress(_Enough):
                network.hidden(batch)   # type: ignore[operator]
            seen.clear()
            progress((index + 1) / len(batches))
    finally:
        for handle in handles:
            handle.remove()
    mean = {name: matrix / counts[name] for name, matrix in matrices.items()}
    return {name: mean[first] for name, first in owner.items()}
