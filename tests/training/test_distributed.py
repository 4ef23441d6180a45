"""Two processes give the gradients of one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aios.training.distributed import Group

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys, torch
from aios.model.config import TransformerConfig
from aios.model.score_network import TextScoreNetwork
from aios.training.distributed import joined
from aios.training.objective import objective, weighted_loss
torch.set_num_threads(1)
ids = torch.randint(3, 40, (7, 16), generator=torch.Generator().manual_seed(0))
told = {}
with joined() as group:
    for name in ("masked", "ar", "block"):
        torch.manual_seed(1)
        network = TextScoreNetwork(TransformerConfig.of(16, 1, head_dim=8, time_conditioning=False), 40)
        asked = objective(name)
        whole = asked.batch(ids, torch.Generator().manual_seed(2), training=True)
        batch = whole.rows(group.rank, group.size)
        read = asked.reader(network, 16, torch.device("cpu"))
        loss = weighted_loss(network, read, batch)
        loss.backward()
        group.sum_gradients(list(network.parameters()))
        told[name + "/loss"] = group.sum(loss.detach())
        told |= {name + "/" + key: p.grad for key, p in network.named_parameters() if p.grad is not None}
    assert group.agree(group.leads) is True
    if group.leads:
        torch.save(told, sys.argv[1])
"""


def run(path: Path, size: int) -> dict[str, torch.Tensor]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                   "PYTHONPATH": str(ROOT)}  # fmt: skip
    members = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)], env={**environment, "RANK": str(rank)})
               for rank in range(size)]  # fmt: skip
    assert [member.wait(timeout=120) for member in members] == [0] * size
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return found


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    one, two = run(tmp_path / "one.pt", 1), run(tmp_path / "two.pt", 2)
    assert set(one) == set(two) and len(one) > 20
    for name, gradient in one.items():
        assert torch.allclose(gradient, two[name], atol=1e-6), name


def test_a_process_alone_changes_nothing() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    (weight * torch.tensor([1.0, 2.0])).sum().backward()
    group = Group()
    group.sum_gradients([weight])
    group.wait()
    assert weight.grad is not None and weight.grad.tolist() == [1.0, 2.0]
    assert group.leads and group.agree(True) and float(group.sum(torch.tensor(3.0))) == 3.0
