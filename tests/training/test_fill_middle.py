"""Filling in the middle: rows told in another order lose nothing but their end, and measure like the next token."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aios.model.config import TransformerConfig
from aios.model.score_network import TextScoreNetwork
from aios.training.data import Corpus
from aios.training.loop import LoopConfig, Training
from aios.training.objective import (
    END_ID,
    MIDDLE_ID,
    PREFIX_ID,
    SUFFIX_ID,
    Autoregressive,
    FillMiddle,
    bound,
    middle_last,
    objective,
)
from aios.training.plans import read_plan
from aios.training.vocabulary import RESERVED, UNWRITTEN

ROWS = torch.randint(300, 900, (512, 24), generator=torch.Generator().manual_seed(3))


def in_order(row: list[int]) -> list[int]:
    """The text of a row told as prefix, suffix, middle."""
    suffix, middle = row.index(SUFFIX_ID), row.index(MIDDLE_ID)
    assert row[0] == PREFIX_ID and row[-1] == END_ID
    return row[1:suffix] + row[middle + 1 : -1] + row[suffix + 1 : middle]


def test_a_rearranged_row_can_be_put_in_order_again_wherever_it_is_cut() -> None:
    cuts = torch.tensor([(a, b) for a, b in itertools.product(range(21), repeat=2) if a <= b])
    rows = ROWS[: len(cuts)]
    for told, row, (begin, end) in zip(middle_last(rows, cuts).tolist(), rows.tolist(), cuts.tolist(), strict=True):
        assert in_order(told) == row[:20], "all but the four tokens that made room"
        middle = told.index(MIDDLE_ID)
        assert told[middle + 1 : -1] == row[begin:end]


def test_half_of_the_training_rows_are_rearranged_and_the_others_are_the_next_token() -> None:
    batch = FillMiddle().batch(ROWS, torch.Generator().manual_seed(1), training=True)
    plain = Autoregressive().batch(ROWS, torch.Generator(), training=True)
    told = batch.targets[:, 0] == PREFIX_ID
    assert 0.4 < float(told.float().mean()) < 0.6
    for name in ("inputs", "targets", "where", "weights"):
        assert torch.equal(getattr(batch, name)[~told], getattr(plain, name)[~told])
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1]), "every token is asked from those before it"
    assert bool(batch.where.all()) and float(batch.weights.sum()) == pytest.approx(1.0)
    again = FillMiddle().batch(ROWS, torch.Generator().manual_seed(1), training=True)
    assert torch.equal(batch.inputs, again.inputs)


def test_without_rearranged_rows_and_in_measuring_it_is_autoregression() -> None:
    plain = Autoregressive().batch(ROWS, torch.Generator(), training=True)
    for asked, training in ((FillMiddle(share=0.0), True), (FillMiddle(), False)):
        found = asked.batch(ROWS, torch.Generator().manual_seed(1), training=training)
        assert torch.equal(found.inputs, plain.inputs) and torch.equal(found.weights, plain.weights)
    torch.manual_seed(0)
    network = TextScoreNetwork(TransformerConfig.of(16, 1, head_dim=8, time_conditioning=False), 900).eval()
    assert FillMiddle().exact
    assert bound(network, FillMiddle(), ROWS[:8]) == bound(network, Autoregressive(), ROWS[:8])


def test_the_sentinels_are_reserved_for_this_and_may_be_written() -> None:
    names = [RESERVED[index] for index in (PREFIX_ID, SUFFIX_ID, MIDDLE_ID, END_ID)]
    assert names == ["<|prefix|>", "<|suffix|>", "<|middle|>", "<|end|>"]
    assert not {PREFIX_ID, SUFFIX_ID, MIDDLE_ID, END_ID} & set(UNWRITTEN)


def test_it_trains_by_name(corpus: Corpus, tmp_path: Path) -> None:
    assert isinstance(objective("fim"), FillMiddle)
    config = LoopConfig(seed=1, steps=30, batch_tokens=256, lengths=(32,), objectives={"fim": 1.0}, compile=False,
                        warmup_steps=3, precision="f32", device="cpu", evaluations=1, evaluate_rows=4,
                        evaluate_length=32)  # fmt: skip
    shape = TransformerConfig.of(32, 1, head_dim=16, time_conditioning=False)
    losses = list(Training(TextScoreNetwork(shape, 320), corpus, config, tmp_path).run())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_twin_differs_from_nano_in_its_objective_alone() -> None:
    nano, twin = read_plan("nano-cpu"), read_plan("nano-twin")
    assert set(nano.arms) == {"nano"} and set(nano.arms["nano"]["objectives"]) == {"block", "spans"}
    assert twin.arms == {"twin": {"objectives": {"fim": 1.0}}}
    assert replace(twin, name=nano.name, description=nano.description, arms=nano.arms) == nano
