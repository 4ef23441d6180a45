"""Several processes that train one network: each takes its rows of the same batch, gradients are summed.

Weights of a batch add up over all of its rows, so that the sum of the parts' gradients is the gradient of the whole.
Started by `torchrun --nproc-per-node N -m aios train run ...`, which sets RANK and WORLD_SIZE.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes, in one exchange."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        at = 0
        for gradient in gradients:
            gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a number over all processes."""
        if self.size > 1:
            value = value.detach().clone()
            distributed.all_reduce(value)
        return value

    def agree(self, value: bool) -> bool:
        """Return what the leading process says, so that all of them stop at the same step."""
        if self.size == 1:
            return value
        told = torch.tensor([float(value)])
        distributed.broadcast(told, src=0)
        return bool(told.item())

    def wait(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def joined() -> Iterator[Group]:
    """Join the group that the environment names, or be alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    distributed.init_process_group("gloo")
    try:
        yield Group(rank=distributed.get_rank(), size=size)
    finally:
        distributed.destroy_process_group()
