"""Laws of the text score network as it is stored and opened."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aios.errors import ModelCorrupt, UnknownArchitecture
from aios.model.score_network import ARCHITECTURE, TextScoreNetwork
from aios.model.transformer import TransformerConfig

CONFIG = TransformerConfig.of(32, 2, head_dim=16, time_conditioning=False)


def spec(**change: Any) -> dict[str, Any]:
    return {
        "model_type": ARCHITECTURE,
        "transformer": CONFIG.to_dict(),
        "vocab_size": 40,
        "tokens": {"mask": 1, "eot": 2, "never": [0, 1, 3]},
    } | change


def test_a_stored_network_opens_to_the_same_function() -> None:
    network = TextScoreNetwork(CONFIG, 40, never=[0, 1, 3]).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    opened = TextScoreNetwork.open(spec(), network.state_dict())
    ids = torch.randint(0, 40, (2, 6))
    torch.testing.assert_close(opened(ids), network(ids))
    assert not any(parameter.requires_grad for parameter in opened.parameters())


def test_reserved_tokens_are_never_predicted() -> None:
    logits = TextScoreNetwork(CONFIG, 40, never=[0, 1, 3])(torch.randint(0, 40, (2, 6)))
    assert logits[..., [0, 1, 3]].isneginf().all()
    assert logits[..., 2].isfinite().all()


def test_half_precision_weights_are_computed_in_single() -> None:
    network = TextScoreNetwork(CONFIG, 40)
    opened = TextScoreNetwork.open(spec(), {name: t.half() for name, t in network.state_dict().items()})
    assert opened(torch.zeros(1, 3, dtype=torch.long)).dtype == torch.float32


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 41},
        {"vocab_size": "many"},
        {"transformer": {"hidden_dim": 32}},
        {"transformer": CONFIG.to_dict() | {"num_layers": 0}},
        {"transformer": CONFIG.to_dict() | {"colour": "red"}},
        {"tokens": {}},
        {"tokens": {"never": [40]}},
    ],
)
def test_a_config_that_does_not_fit_is_corrupt(change: dict[str, Any]) -> None:
    state = TextScoreNetwork(CONFIG, 40).state_dict()
    with pytest.raises(ModelCorrupt):
        TextScoreNetwork.open(spec(**change), state)


def test_another_architecture_is_refused() -> None:
    with pytest.raises(UnknownArchitecture):
        TextScoreNetwork.open(spec(model_type="llama"), {})
