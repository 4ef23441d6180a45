"""Teaching a frozen network to use memory: at a size at which it learns to copy in seconds."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from aios.errors import BadInput
from aios.lab import memory_release
from aios.lab.memory_release import Released
from aios.lab.memory_training import Example, Reader, Taught, examples, loss, teach
from aios.messages import Passage
from aios.model.config import TransformerConfig
from aios.model.memory_attention import MemoryOptions
from aios.model.score_network import TextScoreNetwork
from aios.store.record import TENSORS, read_record, seal
from aios.store.weights import WeightLoader, WeightWriter
from aios.text.tokenizer import TextTokenizer
from aios.training.vocabulary import EOT_ID, MASK_ID, RESERVED, UNWRITTEN, file_sha256, vocabulary_path

DIM = 6
TOKENIZER = TextTokenizer.open(vocabulary_path(2048))
SPEC: dict[str, Any] = {
    "vocab_size": 2048, "length_max": 192, "aios": {"sampling": {"block": 2}},
    "tokens": {"mask": MASK_ID, "eot": EOT_ID, "never": list(UNWRITTEN),
               "roles": {role: RESERVED.index(f"<|{role}|>") for role in ("user", "assistant", "memory")}}}


def encode(texts: Sequence[str]) -> NDArray[np.float32]:
    return np.stack([np.random.default_rng(sum(text.encode())).standard_normal(DIM) for text in texts]).astype("<f4")


def untaught() -> TextScoreNetwork:
    torch.manual_seed(5)
    network = TextScoreNetwork(TransformerConfig.of(32, 1, head_dim=16, time_conditioning=False), 2048, never=UNWRITTEN)
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def taught() -> tuple[TextScoreNetwork, Taught]:
    network = untaught()
    read = Reader(network, SPEC, TOKENIZER, encode).read(list(examples(1, 72)))
    return network, teach(network, read[12:], read[:12], MemoryOptions(dim=DIM, pointer=16), 1, epochs=6)


def test_examples_are_the_same_for_the_same_seed_and_their_first_passage_answers() -> None:
    some = list(examples(2, 40))
    assert some == list(examples(2, 40)) != list(examples(3, 40))
    for one in some:
        assert any(one.answer[:-1] in passage.text for passage in one.passages)
        scores = [passage.score or 0.0 for passage in one.passages]
        assert scores == sorted(scores, reverse=True)


def test_the_pointer_learns_to_copy_and_the_backbone_stays_as_it_was(taught: tuple[TextScoreNetwork, Taught]) -> None:
    network, found = taught
    assert found.losses["pointer"] < 0.7 * found.losses["none"]
    fresh = untaught().state_dict()
    state = network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in fresh.items())


def test_what_does_not_help_is_shut(taught: tuple[TextScoreNetwork, Taught]) -> None:
    network, found = taught
    assert network.backbone.memory is not None and network.pointer is not None
    assert found.attends == (found.losses["together"] < found.losses["pointer"])
    assert found.attends == bool(network.backbone.memory.gate)
    assert not network.pointer.shut


def test_examples_are_read_as_a_sampler_sees_its_canvas() -> None:
    """The states of the training's one forward are those of the denoiser, block by block."""
    from aios.model.denoiser import Past, TextDenoiser
    from aios.training.samples import text_canvas

    network = untaught()
    one = Example(passages=(Passage(text="Ola's seat is 431.", score=1.0),), question="Which seat?", answer=" 431.",
                  blind=False)
    [read] = Reader(network, SPEC, TOKENIZER, encode).read([one])
    given, answer = read.ids[:read.prompt], read.ids[read.prompt:]
    for index in range(len(answer)):
        block = index // 2 * 2
        canvas = text_canvas(torch.cat((given, answer[:block]))[None], 2, onward=True)
        segment = canvas.segments[0]
        x = segment.x.clone()
        x[0, read.prompt + block:read.prompt + index] = answer[block:index]
        canvas = canvas.put(0, dataclasses.replace(segment, x=x, memo=Past()))
        with torch.no_grad():
            [logits] = TextDenoiser(network, end_ids=[EOT_ID])(canvas).segments
            hidden = network.backbone.norm(read.asked[index])
        assert torch.allclose(logits.values[0, read.prompt + index], network.logits(hidden), atol=1e-4)


def test_an_untaught_memory_costs_no_likelihood() -> None:
    network = untaught()
    [read] = Reader(network, SPEC, TOKENIZER, encode).read(list(examples(4, 1)))
    network.remember(MemoryOptions(dim=DIM, pointer=16))
    with torch.no_grad():
        with_memory, _ = loss(network, read)
        without, _ = loss(network, read, attend=False, point=False)
    assert float(with_memory) == pytest.approx(float(without), abs=1e-6)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Released]:
    """A tiny model that reads passages, and what teaching made of it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    network = untaught()
    spec = {**SPEC, "model_type": "aios-score-network", "transformer": network.backbone.config.to_dict()}
    folder.mkdir(mode=0o700)
    (folder / "config.json").write_text(json.dumps(spec))
    (folder / "tokenizer.json").write_bytes(vocabulary_path(2048).read_bytes())
    with WeightWriter(folder / TENSORS) as writer:
        for name, tensor in network.state_dict().items():
            writer.add(name, tensor)
        writer.finish(spec=spec, card="# tiny\n", tokenizer_sha256=file_sha256(folder / "tokenizer.json"))
    seal(folder, name="tiny", source="a test", source_version="0", licence="none")
    to = folder.with_name("tiny-remembers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_release, "HELD_OUT", 6)
        patch.setattr(memory_release, "DIM", DIM)
        done = memory_release.release(folder, to, encode, seed=1, count=12, epochs=1, progress=lambda share, text: None)
    return folder, done


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in WeightLoader.open(folder / TENSORS).items() if isinstance(tensor, Tensor)}


def test_a_taught_model_is_the_same_weights_and_a_memory_that_opens(released: tuple[Path, Released]) -> None:
    folder, done = released
    before, weights = tensors(folder), WeightLoader.open(done.record.path / TENSORS)
    after = tensors(done.record.path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name.split(".")[0] for name in set(after) - set(before)} == {"pointer", "backbone"}
    opened = TextScoreNetwork.open(weights.spec, after)
    assert opened.pointer is not None and opened.backbone.memory is not None
    assert done.parameters == sum(after[name].numel() for name in set(after) - set(before))
    assert done.record.release != read_record(folder).release and "## Memory" in weights.card


def test_teaching_again_begins_from_the_model_without_its_memory(released: tuple[Path, Released]) -> None:
    _, done = released
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_release, "HELD_OUT", 6)
        patch.setattr(memory_release, "DIM", DIM)
        again = memory_release.release(done.record.path, done.record.path, encode, seed=1, count=12, epochs=1,
                                       progress=lambda share, text: None)
    assert again.record.release == done.record.release
    assert WeightLoader.open(again.record.path / TENSORS).card.count("## Memory") == 1


def test_a_model_that_reads_no_passages_cannot_be_taught(released: tuple[Path, Released], tmp_path: Path) -> None:
    folder, _ = released
    copy = tmp_path / "tiny"
    shutil.copytree(folder, copy)
    spec = json.loads((copy / "config.json").read_text())
    del spec["tokens"]["roles"]["memory"]
    (copy / "config.json").write_text(json.dumps(spec))
    weights = dict(WeightLoader.open(folder / TENSORS))
    with WeightWriter(copy / TENSORS) as writer:
        for name, tensor in weights.items():
            writer.add(name, tensor)
        writer.finish(spec=spec, card="", tokenizer_sha256=file_sha256(copy / "tokenizer.json"))
    seal(copy, name="tiny", source="a test", source_version="0", licence="none")
    with pytest.raises(BadInput, match="has not learned to read passages"):
        memory_release.release(copy, tmp_path / "to", encode, seed=1, count=2, epochs=1,
                               progress=lambda share, text: None)
