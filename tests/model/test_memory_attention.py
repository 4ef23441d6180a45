"""Memory behind the last layer: nothing changes without it or before it has learned; words that are pointed at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from aios.contracts import Canvas, Condition, Modality, Segment
from aios.errors import BadInput, ModelCorrupt
from aios.model.config import TransformerConfig
from aios.model.denoiser import Past, TextDenoiser
from aios.model.memory_attention import SOURCE, TRAITS, MemoryOptions, PassagePointer
from aios.model.score_network import TextScoreNetwork

VOCAB, MASK, END, DIM = 40, 1, 2, 8
OPTIONS = MemoryOptions(dim=DIM, heads=2, traits=8, pointer=8)
PASSAGE = [30, 31, 32, 33, 34, 35]


def network(*, memory: bool) -> TextScoreNetwork:
    torch.manual_seed(3)
    made = TextScoreNetwork(TransformerConfig.of(32, 2, head_dim=16, time_conditioning=False), VOCAB, never=[0, MASK])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    if memory:
        made.remember(OPTIONS)
    return made.requires_grad_(False)


def canvas(*, onward: bool = True) -> Canvas:
    ids = torch.tensor([[*PASSAGE, 10, 11, MASK, MASK]])
    editable = torch.zeros_like(ids, dtype=torch.bool)
    editable[:, -2:] = True
    return Canvas(segments=(Segment(
        modality=Modality.TEXT, x=ids, t=editable.float(), editable=editable, mask_id=MASK, onward=onward, memo=Past(),
        positions=torch.arange(ids.shape[1]).expand_as(ids).unsqueeze(-1), end_ids=(END,)),))


def traits(weight: float = 1.0) -> Tensor:
    rows = torch.zeros(1, len(PASSAGE), OPTIONS.traits)
    rows[:, 1:, 0], rows[:, 1:, 1] = 1.0, weight
    return rows


def condition(dim: int = DIM) -> Condition:
    return Condition(tokens={SOURCE: torch.randn(1, 3, dim, generator=torch.Generator().manual_seed(1)),
                             TRAITS: traits()})


def predicted(net: TextScoreNetwork, *given: Any, onward: bool = True) -> Tensor:
    with torch.inference_mode():
        [logits] = TextDenoiser(net, end_ids=[END])(canvas(onward=onward), *given).segments
    return logits.values


@pytest.mark.parametrize("onward", [True, False])
def test_an_untaught_memory_changes_no_bit(onward: bool) -> None:
    plain = predicted(network(memory=False), onward=onward)
    assert torch.equal(plain, predicted(network(memory=True), condition(), onward=onward))


@pytest.mark.parametrize("onward", [True, False])
def test_a_taught_memory_changes_no_bit_where_nothing_is_remembered(onward: bool) -> None:
    taught = network(memory=True)
    assert taught.backbone.memory is not None and taught.pointer is not None
    taught.backbone.memory.gate.fill_(0.7)
    taught.pointer.gate.fill_(0.7)
    plain = predicted(network(memory=False), onward=onward)
    assert torch.equal(plain, predicted(taught, onward=onward))
    assert torch.equal(plain, predicted(taught, Condition.none(), onward=onward))


def test_an_open_gate_attends_to_patterns_in_every_call() -> None:
    taught = network(memory=True)
    assert taught.backbone.memory is not None
    taught.backbone.memory.gate.fill_(0.7)
    given = Condition(tokens={SOURCE: condition().tokens[SOURCE]})
    assert not torch.equal(predicted(taught, given), predicted(taught))
    assert not torch.equal(predicted(taught, given, onward=False), predicted(taught, onward=False))


def test_pointing_gives_probabilities_and_only_words_of_passages_gain() -> None:
    taught = network(memory=True)
    assert taught.pointer is not None
    taught.pointer.gate.fill_(1.0)
    before = predicted(taught)[0, -2:].softmax(dim=1)
    after = predicted(taught, Condition(tokens={TRAITS: traits()}))[0, -2:].exp()
    assert torch.allclose(after.sum(dim=1), torch.ones(2), atol=1e-5)
    gained = {int(token) for token in (after > before + 1e-9).any(dim=0).nonzero()}
    assert gained and gained <= set(PASSAGE[1:]), "the token with which a passage begins is not pointed at"


def test_a_passage_of_more_weight_is_pointed_at_more() -> None:
    pointer = PassagePointer(4, OPTIONS).requires_grad_(False)
    pointer.gate.fill_(1.0)
    for name, part in pointer.named_parameters():
        if name.startswith("traits.2"):
            part.zero_()
    rows = torch.zeros(2, OPTIONS.traits)
    rows[:, 0], rows[:, 1] = 1.0, torch.tensor([0.9, 0.1])
    seen = pointer.passages(torch.tensor([7, 8]), rows)
    chances = pointer(torch.zeros(1, VOCAB), torch.ones(1, 4), torch.tensor([[3, 3, 3]]), torch.ones(1, 4), seen)
    own = (1.0 - float(chances[0, 3]) * VOCAB)      # the share of what is pointed at
    assert float(chances[0, 7] - chances[0, 3]) == pytest.approx(0.9 * own, abs=1e-5)
    assert float(chances[0, 8] - chances[0, 3]) == pytest.approx(0.1 * own, abs=1e-5)


def test_what_stood_behind_the_last_word_is_pointed_at() -> None:
    pointer = PassagePointer(4, OPTIONS).requires_grad_(False)
    pointer.gate.fill_(1.0)
    pointer.follows.fill_(50.0)
    ids = torch.tensor([5, 6, 7, 5, 8])
    rows = torch.ones(5, OPTIONS.traits)
    seen = pointer.passages(ids, rows)
    last = torch.tensor([[5, 7, 9]])
    asked = pointer(torch.zeros(1, VOCAB), torch.zeros(1, 4), last, torch.ones(1, 4), seen)
    assert int(asked.argmax()) == 8, "behind 7 5 stood 8, behind 5 alone 6 as well"


def test_patterns_of_another_width_are_refused() -> None:
    with pytest.raises(BadInput, match="dimensions"):
        predicted(network(memory=True), condition(dim=DIM + 1))


@pytest.mark.parametrize("told", [{"dim": 0}, {"dim": "8"}, {"dim": 8, "heads": -1}, {"dim": 8, "more": 1}, [8], {}])
def test_a_memory_that_cannot_be_is_refused(told: Any) -> None:
    plain = network(memory=False)
    spec = {"model_type": "aios-score-network", "transformer": plain.backbone.config.to_dict(), "vocab_size": VOCAB,
            "tokens": {"never": [0, MASK]}, "memory": told}
    with pytest.raises(ModelCorrupt):
        TextScoreNetwork.open(spec, plain.state_dict())


def test_a_memory_is_stored_and_opened_with_its_network() -> None:
    taught = network(memory=True)
    assert taught.pointer is not None
    taught.pointer.gate.fill_(0.5)
    spec = {"model_type": "aios-score-network", "transformer": taught.backbone.config.to_dict(), "vocab_size": VOCAB,
            "tokens": {"never": [0, MASK]}, "memory": OPTIONS.to_dict()}
    state = {name: tensor for name, tensor in taught.state_dict().items() if name != "excluded"}
    opened = TextScoreNetwork.open(spec, state)
    assert torch.equal(predicted(opened, condition()), predicted(taught, condition()))
