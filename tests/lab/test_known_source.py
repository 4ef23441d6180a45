"""Bounds against a source of known entropy: right ones pass, one that looks ahead is caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aios.lab import known_source
from aios.lab.known_source import Chain, Judged, Knowing, judged, measures, trained
from aios.lab.report import LabOptions
from aios.model.cache import AttentionMask
from aios.training.objective import Autoregressive, objective


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_source, "STEPS_QUICK", 40)
    monkeypatch.setattr(known_source, "GROUPS_QUICK", 16)


def test_the_chain_writes_what_its_probabilities_say() -> None:
    chain = Chain.drawn(5)
    ids = chain.write(20_000, np.random.default_rng(0))
    states = ids - known_source.SPECIAL
    counts = np.zeros((known_source.STATES, known_source.STATES))
    np.add.at(counts, (states[:, :-1].ravel(), states[:, 1:].ravel()), 1)
    assert counts / counts.sum(axis=1, keepdims=True) == pytest.approx(chain.move, abs=0.02)
    assert chain.nats(ids).mean() < np.log(known_source.STATES)


def test_no_objective_reports_less_than_the_source_has() -> None:
    row, = known_source.rows(LabOptions(quick=True, seed=3))
    assert (row.metric, row.value, row.ok) == ("synthetic_bound_violation", 0.0, True)
    for name in (*known_source.OBJECTIVES, "block left to right"):
        assert f" {name} +" in (row.reason or ""), "tiny networks lie above the source"
        assert f" exact {name} " in (row.reason or "")


class Foreseeing(Autoregressive):
    """Autoregression with an attention that sees what comes: its loss is no likelihood."""

    def reader(self, network: Any, length: int, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda ids: network.hidden(ids, mask=AttentionMask())


def test_a_loss_that_looks_ahead_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aios.training import loop

    monkeypatch.setattr(loop, "objective", lambda name, **options: Foreseeing())
    chain, rng = Chain.drawn(3), np.random.default_rng(1)
    fresh = chain.write(16 * 64, rng)
    network, asked = trained("ar", chain.write(512, rng), tmp_path / "run", 150)
    (label, measure), = measures(network, asked, torch.from_numpy(fresh))
    assert judged(label, chain, fresh, measure, 16).violation > 0.05


@pytest.mark.parametrize(("name", "onward"), [("ar", 0.0), ("masked", 0.0), ("block", 0.0), ("block", 0.7)])
def test_every_bound_of_the_sources_own_posterior_is_its_entropy(name: str, onward: float) -> None:
    chain = Chain.drawn(8)
    fresh = chain.write(32 * 64, np.random.default_rng(2))
    asked = objective(name, block=known_source.BLOCK, onward=onward)
    for label, measure in measures(Knowing(chain), asked, torch.from_numpy(fresh)):
        found = judged(label, chain, fresh, measure, 32)
        assert abs(found.gap) < 4 * found.error + 1e-5
        assert found.error < 0.01


def test_a_bound_that_counts_too_little_is_caught_without_a_network() -> None:
    chain = Chain.drawn(8)
    fresh = chain.write(32 * 64, np.random.default_rng(2))
    (label, measure), = measures(Knowing(chain), objective("masked"), torch.from_numpy(fresh))
    assert judged(label, chain, fresh, lambda begin, end: 0.95 * measure(begin, end), 32).violation > 0.01


def test_a_violation_counts_beyond_chance_only() -> None:
    assert Judged(name="x", gap=-0.004, error=0.001).violation == 0.0
    assert Judged(name="x", gap=-0.006, error=0.001).violation == pytest.approx(0.002)
