"""`aios bench train`: what is timed takes turns, ratios are of medians, a killed run goes on to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aios.lab import bench_train, killed_training, train_products
from aios.lab.bench_train import Setting, interleaved, ratio
from aios.lab.catalogue import BENCHES, entry_point
from aios.lab.killed_training import Told, equal_after_kills
from aios.lab.report import LabOptions
from aios.lab.train_products import CHAINS, GAP, SUCCESSORS, VOCABULARY, Size, chain, curve
from aios.training.vocabulary import RESERVED


def test_it_is_in_the_catalogue() -> None:
    assert entry_point("bench", "train") is bench_train.run
    assert "train" in BENCHES


def test_arms_take_turns_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []

    def arm(name: str) -> float:
        order.append(name)
        return 1.0

    seconds = interleaved({"a": lambda: arm("a"), "b": lambda: arm("b")}, 3, lambda name, done: None)
    assert order == ["a", "b"] * (3 + bench_train.WARM_UP)
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}
    with pytest.raises(ValueError, match="the loss is nan"):
        interleaved({"a": lambda: float("nan")}, 1, lambda name, done: None)


def test_a_ratio_is_one_of_medians_within_its_interval() -> None:
    value, (low, high) = ratio([3.0, 3.0, 30.0, 3.0, 3.0], [2.0, 2.0, 2.0, 2.0, 2.0], seed=1)
    assert value == 1.5 and low <= value <= high


def tiny() -> Setting:
    setting = Setting.of(LabOptions(quick=True, seed=1))
    loop = replace(setting.loop, batch_tokens=256, compile=False, device="cpu", precision="f32")
    shape = replace(setting.shape, hidden_dim=32, num_layers=1, head_dim=16, num_heads=2, num_kv_heads=2, ffn_dim=64)
    return replace(setting, loop=loop, shape=shape, threads=1)


def test_both_loops_train_networks_of_one_size(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    setting = tiny()
    ours = setting.ours(tmp_path, objectives={"ar": 1.0}, optimiser="adamw")
    peer = bench_train._peer(setting, ours, compiled=False)
    assert peer is not None
    modalities = ours.network.backbone.modality
    assert modalities is not None
    # Ours has a row for each modality besides.
    assert peer.parameters == sum(p.numel() for p in ours.network.parameters()) - modalities.weight.numel()
    rows = bench_train._beside({"ar": [1.0], "masked": [0.5], "peer": [2.0]}, {"peer": peer}, 256, "", 1)
    assert [(row.metric, row.value) for row in rows] == [
        ("train_vs_plain_loop", 2.0), ("train_masked_vs_plain_loop", 4.0)]
    step = bench_train._peer_stepping(peer, ours)
    assert abs(step() - ours.train_step(1.0)) < 1.0   # fresh networks know nothing: log of the vocabulary's size


def test_without_the_peer_the_row_says_how_to_install_it() -> None:
    [row] = bench_train._beside({"ar": [1.0]}, {"peer": None}, 256, "", 1)
    assert (row.metric, row.value, row.must) == ("train_vs_plain_loop", None, 1.0)
    assert row.reason and "pip install" in row.reason


def test_a_killed_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    differs, compared = equal_after_kills(tmp_path, kills=1, seed=7)
    assert differs is None
    assert compared >= killed_training.STEPS


def test_a_difference_in_one_bit_is_found(tmp_path: Path) -> None:
    from aios.training.checkpoints import write_tensors

    def told(*losses: tuple[int, str], killed: bool = False) -> Told:
        return Told(losses=losses, killed=killed)

    steps = killed_training.STEPS
    one, last = (1, (1.5).hex()), (steps, (0.5).hex())
    for name, value in (("whole", 1.0), ("killed", 1.0)):
        (tmp_path / name).mkdir()
        write_tensors({"w": torch.tensor([value])}, tmp_path / name / "checkpoint.safetensors", {})
    whole = told(one, last)
    assert killed_training._difference(whole, [told(one, killed=True), told(last)], tmp_path) is None
    for parts, why in (
        ([told(one), told(last)], "was not killed"),
        ([told(one, killed=True), told(one, last)], "began anew"),
        ([told(one, killed=True), told((steps, (0.5 + 2**-53).hex()))], f"loss of step {steps}"),
    ):
        assert why in (killed_training._difference(whole, parts, tmp_path) or "")
    negative_zero = torch.tensor([-0.0])
    write_tensors({"w": negative_zero}, tmp_path / "killed" / "checkpoint.safetensors", {})
    write_tensors({"w": -negative_zero}, tmp_path / "whole" / "checkpoint.safetensors", {})
    assert killed_training._difference(whole, [told(one, killed=True), told(last)], tmp_path) == "w differs at the end"


def test_the_chain_is_as_long_as_asked_and_every_token_has_few_successors() -> None:
    tokens = chain(5, 200_000).train["chain"].tokens
    assert len(tokens) >= 200_000 and tokens.min() >= len(RESERVED) and tokens.max() < VOCABULARY
    rows = tokens.reshape(CHAINS, -1)
    follows = rows[:, 1:][rows[:, :-1] == rows[0, 0]]
    assert 1 <= len(set(follows.tolist())) <= SUCCESSORS


def small(steps: int) -> Size:
    return Size(width=64, layers=1, batch_tokens=256, steps=steps)


def test_a_curve_that_was_cut_is_whole_when_the_run_goes_on(tmp_path: Path) -> None:
    corpus = chain(1, 10_000)
    whole = curve(small(6).ours(tmp_path / "whole", corpus, 1, compile=False, precision="int8"), lambda done: None)
    first = small(6).ours(tmp_path / "parts", corpus, 1, compile=False, precision="int8")

    def stop(done: float) -> None:
        first.stopping = done >= 0.5

    assert len(curve(first, stop)) == 3
    assert np.array_equal(curve(small(6).ours(tmp_path / "parts", corpus, 1, compile=False, precision="int8"),
                                lambda done: None), whole)


def test_a_gap_compares_the_last_losses_of_the_same_batches(tmp_path: Path) -> None:
    row = train_products._gap(GAP, small(20), LabOptions(seed=1), tmp_path)
    assert row.metric == "train_loss_gap_percent" and row.value is not None and 0 < row.value < 1.0
    assert row.n == 2 and row.interval is not None and (row.must, row.aim) == (0.5, 0.2)


def test_the_long_gap_comes_from_the_ledger_and_a_short_one_stands_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_EXPERIMENTS", str(tmp_path))
    monkeypatch.setattr(train_products, "LOSS_QUICK", small(4))
    stored, live = train_products.gap_rows(LabOptions(quick=True, seed=1), tmp_path)
    assert (stored.value, live.kind) == (None, "live") and stored.missed and not live.missed
