"""Where stored matrices sit in the network, and how texts become batches."""

from __future__ import annotations

import pytest
import torch

from aios.config import Places
from aios.errors import BadInput
from aios.quantisation.subject import Place, Subject
from aios.store import models
from tests.quantisation.conftest import TEXTS

NAMES = ("tiny-encoder", "tiny-chat", "tiny-untied", "tiny-text")


@pytest.mark.parametrize("name", NAMES)
def test_every_place_holds_the_stored_matrix(home: Places, name: str) -> None:
    subject = Subject.open(models.find(name, home))
    assert subject.places
    for stored, place in subject.places.items():
        weight = subject.network.get_submodule(place.module).weight
        assert isinstance(weight, torch.Tensor)
        torch.testing.assert_close(weight[place.first:place.end], subject.plain(stored).float())


def test_queries_keys_and_values_are_rows_of_one_layer(home: Places) -> None:
    places = Subject.open(models.find("tiny-encoder", home)).places
    fused = [places[f"encoder.layer.1.attention.self.{part}.weight"] for part in ("query", "key", "value")]
    assert fused == [Place(module="layers.1.qkv", first=first, end=first + 32) for first in (0, 32, 64)]


def test_a_tied_embedding_has_one_place_and_an_untied_projection_its_own(home: Places) -> None:
    tied = Subject.open(models.find("tiny-chat", home)).places
    untied = Subject.open(models.find("tiny-untied", home)).places
    assert tied["model.embed_tokens.weight"].module == "head.embedding"
    assert untied["lm_head.weight"].module == "head.projection"


@pytest.mark.parametrize("name", NAMES)
def test_batches_hold_every_token_once_and_no_padding(home: Places, name: str) -> None:
    subject = Subject.open(models.find(name, home))
    batches = subject.batches(TEXTS)
    assert sum(batch.numel() for batch in batches) == sum(map(len, subject.token_rows(TEXTS)))
    for batch in batches:
        assert subject.network.hidden(batch).isfinite().all()   # type: ignore[operator]


def test_a_diffusion_model_sees_some_tokens_hidden(home: Places) -> None:
    subject = Subject.open(models.find("tiny-text", home))
    mask = subject.spec["tokens"]["mask"]
    hidden = torch.cat([batch.flatten() == mask for batch in subject.batches(TEXTS)])
    assert 0 < hidden.sum() < len(hidden)


def test_a_model_without_tokenizer_cannot_be_calibrated(home: Places) -> None:
    subject = Subject("encoder", {}, {})
    with pytest.raises(BadInput, match="no tokenizer"):
        subject.batches(TEXTS)
