"""Sequences that come and go are computed as if each were alone."""

from __future__ import annotations

import pytest
import torch

from aios.model import cache as caches
from aios.model.cache import KeyValueCache, PackedStep, Piece, RunningCache
from aios.model.transformer import SharedTransformer

WIDTH = 32


def network(kv_heads: int = 2) -> SharedTransformer:
    built = SharedTransformer(WIDTH, 2, head_dim=8, num_kv_heads=kv_heads, attention="causal", time_conditioning=False,
                              num_modalities=0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return built.eval()


class Sequences:
    """Random sequences whose every last hidden state is held against one full forward."""

    def __init__(self, net: SharedTransformer, length_max: int = 400) -> None:
        self.net = net
        self.running = RunningCache(net.config, length_max=length_max)
        self.x: dict[str, torch.Tensor] = {}
        self.done: dict[str, int] = {}
        self.prompts: dict[str, KeyValueCache] = {}

    def open(self, name: str, prompt: int, total: int) -> None:
        self.x[name], self.done[name] = torch.randn(total, WIDTH), 0
        self.prompts[name] = KeyValueCache(self.net.config, batch=1, length_max=prompt)

    def step(self, **pieces: int) -> None:
        """One token of each running sequence and so many tokens of these prompts; all hidden states must agree."""
        chosen = {name: Piece(cache=self.prompts[name], count=count) for name, count in pieces.items()}
        step = PackedStep(self.running, list(chosen.values()))
        order = [*step.names, *chosen]
        counts = [1] * len(step.names) + list(pieces.values())
        x = torch.cat([self.x[name][self.done[name]:self.done[name] + count]
                       for name, count in zip(order, counts, strict=True)])
        hidden = self.net.advance(x[None], step)
        for name, count, found in zip(order, counts, hidden, strict=True):
            self.done[name] += count
            expected = self.net(self.x[name][None, :self.done[name]])[0, -1]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        for name in pieces:
            if self.prompts[name].length == self.prompts[name].length_max:
                self.running.join(name, self.prompts.pop(name))


@torch.inference_mode()
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_sequences_that_join_and_leave_are_computed_as_if_alone(kv_heads: int) -> None:
    all_of = Sequences(network(kv_heads))
    all_of.open("a", prompt=5, total=40)
    all_of.step(a=2)
    all_of.step(a=3)
    all_of.step()
    all_of.open("b", prompt=1, total=40)
    all_of.open("c", prompt=9, total=40)
    all_of.step(b=1, c=4)
    all_of.step(c=5)
    all_of.step()
    all_of.running.leave("a")
    all_of.step()
    all_of.open("d", prompt=3, total=40)
    all_of.step(d=3)
    all_of.running.leave("c")
    all_of.step()
    assert sorted(all_of.running.names) == ["b", "d"]


@torch.inference_mode()
def test_a_sequence_that_outgrows_its_shelf_moves_to_a_larger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "CAPACITY_MIN", 4)
    all_of = Sequences(network())
    for name, prompt in {"a": 2, "b": 3, "c": 3, "d": 9}.items():
        all_of.open(name, prompt=prompt, total=60)
    all_of.step(a=2, b=3, c=3, d=9)
    for _ in range(30):
        all_of.step()
    assert [shelf.capacity for shelf in all_of.running.shelves()] == [32, 64]
    for name in "adcb":
        all_of.running.leave(name)
    assert all_of.running.names == [] and not list(all_of.running.shelves())
    with pytest.raises(KeyError):
        all_of.running.leave("a")


@torch.inference_mode()
def test_a_sequence_may_fill_the_context_and_no_more() -> None:
    all_of = Sequences(network(), length_max=6)
    all_of.open("a", prompt=4, total=9)
    all_of.step(a=4)
    all_of.step()
    all_of.step()
    with pytest.raises(ValueError, match="holds 6"):
        all_of.step()


def test_memory_is_told_before_it_is_taken() -> None:
    net = network()
    running = RunningCache(net.config, length_max=1000)
    token = 2 * 2 * 2 * 8 * 4
    assert [running.bytes_of(length) for length in (1, 128, 129, 900)] == [
        token * 128, token * 128, token * 256, token * 1000]


def test_only_causal_networks_run_token_by_token() -> None:
    net = SharedTransformer(WIDTH, 1, head_dim=8)
    with pytest.raises(ValueError, match="causal"):
        PackedStep(RunningCache(net.config, length_max=8))
