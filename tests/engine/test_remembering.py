"""Requests with passages from memory: what models read of them, what denoisers attend to, what the verdict says."""

from __future__ import annotations

import json
from hashlib import sha256

import numpy as np
import pytest
import torch

from aios.config import Config, Places
from aios.contracts import Condition
from aios.engine.arrow import ArrowEngine
from aios.engine.assembly import Assembly
from aios.engine.remembering import conditioned
from aios.errors import BadInput
from aios.messages import ChatMessage, Diffuse, Generate, Infill, Passage
from aios.model.memory_attention import SOURCE, MemoryOptions
from aios.model.score_network import TextScoreNetwork
from aios.store import models
from aios.store.record import SPEC, TENSORS, TOKENIZER, read_spec, seal
from aios.store.weights import WeightWriter
from aios.text.passages import context

DIM = 4
PASSAGES = (Passage(text="the cat sat", id=7, score=0.75, vector=np.eye(DIM, dtype="<f4")[0].tobytes()),
            Passage(text="a dog ran", id=9, score=0.25, vector=np.eye(DIM, dtype="<f4")[1].tobytes()))
ROLES = {"user": 260, "assistant": 261, "memory": 262}


@pytest.fixture(scope="module")
def remembering(home: Places, settings: Config) -> ArrowEngine:
    """An engine with tiny-memory: the tiny text model, which knows turns and passages and has an open memory."""
    record, folder = models.find("tiny-text", home), home.models / "tiny-memory"
    spec = read_spec(record.path / SPEC)
    spec["tokens"]["roles"], spec["memory"] = ROLES, MemoryOptions(dim=DIM).to_dict()
    spec["aios"]["sampling"] = {"sampler": "left_to_right", "steps_per_token": 1.0, "temperature": 0.0, "length": 8,
                                "block": 2}
    torch.manual_seed(4)
    network = TextScoreNetwork.open({key: spec[key] for key in spec if key != "memory"}, models.open_tensors(record))
    network.remember(MemoryOptions(dim=DIM))
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    state["pointer.gate"].fill_(1.0)
    state["backbone.memory.gate"].fill_(0.5)
    folder.mkdir(mode=0o700)
    (folder / SPEC).write_text(json.dumps(spec))
    (folder / TOKENIZER).write_bytes((record.path / TOKENIZER).read_bytes())
    with WeightWriter(folder / TENSORS) as writer:
        for name, tensor in state.items():
            writer.add(name, tensor)
        writer.finish(spec=spec, card="", tokenizer_sha256=sha256((folder / TOKENIZER).read_bytes()).hexdigest())
    seal(folder, name="tiny-memory", source="a test", source_version="0", licence="none")
    return ArrowEngine.open(settings, places=home)


def prompt(home: Places, settings: Config, model: str, request: Generate) -> list[int]:
    return Assembly(settings, home).language(model).prompt(request)


@pytest.mark.parametrize(("system", "messages"), [
    (None, ()), ("Be kind", ()), (None, (ChatMessage(role="user", content="hi"),)),
    (None, (ChatMessage(role="system", content="Be kind"), ChatMessage(role="user", content="hi")))])
def test_a_chat_model_reads_passages_in_its_system_text(home: Places, settings: Config, system: str | None,
                                                        messages: tuple[ChatMessage, ...]) -> None:
    asked = Generate(prompt="" if messages else "hi", system=system, messages=messages, passages=PASSAGES[1:])
    said = "Be kind" if system or len(messages) == 2 else None
    same = Generate(system=context(PASSAGES[1:], said), messages=(ChatMessage(role="user", content="hi"),))
    assert prompt(home, settings, "tiny-chat", asked) == prompt(home, settings, "tiny-chat", same)


def test_a_model_without_template_reads_passages_before_its_prompt(home: Places, settings: Config) -> None:
    ids = prompt(home, settings, "tiny-raw", Generate(prompt="hi", passages=PASSAGES[:1]))
    told = Generate(prompt=f"{context(PASSAGES[:1], None)}\n\nhi")
    assert ids == prompt(home, settings, "tiny-raw", told)


def test_the_verdict_names_the_memories_that_were_in_sight(remembering: ArrowEngine) -> None:
    lent = (*PASSAGES[:1], Passage(text="never a memory", vector=PASSAGES[0].vector))
    response = remembering.generate("hi", max_tokens=2, temperature=0.0, model="tiny-raw", raw=True, passages=lent)
    assert response.verdict.memories == (7,)
    assert remembering.generate("hi", max_tokens=2, temperature=0.0).verdict.memories == ()


def test_a_diffusion_answers_with_passages_in_sight_and_others_change_it(remembering: ArrowEngine) -> None:
    def answer(*passages: Passage) -> tuple[str, tuple[int, ...]]:
        response = remembering.diffuse("we", model="tiny-memory", length=8, seed=1, passages=passages)
        return response.text, response.verdict.memories

    assert answer(*PASSAGES) == answer(*PASSAGES)
    assert answer(*PASSAGES)[1] == (7, 9)
    assert answer(*PASSAGES)[0] != answer(Passage(text="good morning", id=3))[0]


def test_a_model_that_never_learned_passages_says_so(remembering: ArrowEngine) -> None:
    with pytest.raises(BadInput, match="has not learned to read passages") as caught:
        remembering.diffuse("we", model="tiny-text", passages=PASSAGES)
    assert "generate" in (caught.value.remedy or "")


def test_vectors_that_a_model_never_learned_are_refused_and_its_plugin_lives_on(remembering: ArrowEngine) -> None:
    wide = Passage(text="the cat", vector=np.ones(DIM + 1, "<f4").tobytes())
    with pytest.raises(BadInput, match="dimensions"):
        remembering.diffuse("we", model="tiny-memory", passages=[wide])
    assert remembering.diffuse("we", model="tiny-memory", length=2, passages=PASSAGES).verdict.memories == (7, 9)


def test_a_condition_holds_the_retrieved_state_and_every_pattern_by_its_share() -> None:
    tokens = conditioned(Condition.none(), Diffuse(passages=PASSAGES)).tokens[SOURCE]
    assert torch.allclose(tokens[0], torch.tensor([[0.75, 0.25, 0, 0], [1.5, 0, 0, 0], [0, 0.5, 0, 0]]))


@pytest.mark.parametrize("request_", [Diffuse(), Infill(prefix="", suffix=""), Diffuse(passages=(Passage(text="x"),))])
def test_without_patterns_there_is_no_condition(request_: Diffuse | Infill) -> None:
    assert conditioned(Condition.none(), request_) == Condition.none()


def test_patterns_that_are_no_numbers_are_refused() -> None:
    broken = Passage(text="x", vector=np.full(DIM, np.nan, "<f4").tobytes())
    with pytest.raises(BadInput, match="not finite"):
        conditioned(Condition.none(), Diffuse(passages=(broken,)))
