"""Tuning moves a packed network towards its source, and nothing but scales, zeros, biases and norms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aios.config import Places
from aios.contracts import PackedTensor
from aios.quantisation.formats import Format
from aios.quantisation.recipe import Recipe, compressed, plan
from aios.quantisation.release import compress
from aios.quantisation.subject import Subject
from aios.quantisation.tuning import Adjustable, Stored, tune
from aios.store import models
from aios.store.quant import ArrowQuant
from tests.quantisation.conftest import TEXTS

TWO = Recipe(form=Format(bits=2, group_size=32))


def packed(subject: Subject, recipe: Recipe = TWO) -> dict[str, Stored]:
    batches = subject.batches(TEXTS)
    formats = plan(subject, recipe, batches, lambda label, done: None)
    return {name: tensor for name, tensor, _ in
            compressed(subject, recipe, formats, batches, lambda label, done: None)}


def distance(subject: Subject, stored: dict[str, Stored]) -> float:
    teacher, student = (subject.build(tensors) for tensors in (
        {name: subject.plain(name) for name in subject.tensors},
        {name: ArrowQuant.dequantize(tensor) if isinstance(tensor, PackedTensor) else tensor.float()
         for name, tensor in stored.items()}))
    return sum(float((teacher.hidden(ids) - student.hidden(ids)).square().sum())   # type: ignore[operator]
               for ids in subject.batches(TEXTS))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("lookup", [False, True])
def test_an_adjustable_layer_begins_as_what_was_packed(symmetric: bool, lookup: bool) -> None:
    weights = torch.randn(96, 70)
    parts = [ArrowQuant.quantize(part, bits=4, group_size=32, symmetric=symmetric, rank=2)
             for part in weights.split([64, 32])]   # type: ignore[no-untyped-call]
    layer = Adjustable(parts, None, lookup=lookup)
    values = torch.cat([ArrowQuant.dequantize(part) for part in parts])
    torch.testing.assert_close(layer.weight, values)
    x = torch.tensor([[5, 95, 5]]) if lookup else torch.randn(3, 70)
    expected = nn.functional.embedding(x, values) if lookup else x @ values.T
    torch.testing.assert_close(layer(x), expected)
    for before, after in zip(parts, layer.packed(), strict=True):
        assert torch.equal(before.codes, after.codes) and torch.equal(before.scales, after.scales)


@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-chat", "tiny-untied", "tiny-text"])
def test_tuning_brings_the_hidden_states_closer_and_keeps_every_code(home: Places, name: str) -> None:
    subject = Subject.open(models.find(name, home))
    before = packed(subject)
    after = tune(subject, before, subject.batches(TEXTS), steps=40)
    assert distance(subject, after) < 0.8 * distance(subject, before)
    assert set(after) == set(before)
    for stored, tensor in before.items():
        now = after[stored]
        if isinstance(tensor, PackedTensor):
            assert isinstance(now, PackedTensor) and torch.equal(tensor.codes, now.codes)
        else:
            assert isinstance(now, torch.Tensor) and (now.dtype, now.shape) == (tensor.dtype, tensor.shape)


def test_a_tuned_model_has_the_size_of_the_packed_one_and_says_so(home: Places, scratch: Places) -> None:
    record = models.find("tiny-encoder", home)
    plain = compress(record, TWO, name="plain", texts=TEXTS, places=scratch)
    tuned = compress(record, Recipe(form=TWO.form, tune_steps=3), name="tuned", texts=TEXTS, places=scratch)
    assert sum(o.bytes for o in plain.outcomes) == sum(o.bytes for o in tuned.outcomes)
    assert plain.record.release != tuned.record.release
    assert "tuned for 3 steps" in models.open_tensors(tuned.record).card
