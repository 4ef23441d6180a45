"""Conversations by diffusion: what reaches a head, and what is refused before it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aios.contracts import Canvas, Condition, Modality
from aios.engine.arrow import ArrowEngine
from aios.errors import BadInput
from aios.messages import (
    CHAT_MESSAGES_MAX,
    PROMPT_CHARS_MAX,
    ChatMessage,
    Diffuse,
    Infill,
    check,
    from_wire,
    to_wire,
)
from aios.testing import FakeHead, FakePlugin, memory_daemon
from aios.testing.fake import OpenFakeHead

ASKED = ChatMessage(role="user", content="What is a cat?")
EARLIER = (ChatMessage(role="user", content="Hi."), ChatMessage(role="assistant", content="Hello."))


class Listener(FakeHead):
    """Reads a conversation as "role:text|role:text|"."""

    converses = True

    def open(self, workbench: Any, model: str | None) -> OpenFakeHead:
        return OpenListener(self.text, Modality.TEXT, "listener")


class OpenListener(OpenFakeHead):
    """The same, at work."""

    def encode(self, request: Diffuse | Infill, length: int) -> tuple[Canvas, Condition]:
        if isinstance(request, Diffuse) and request.messages:
            told = "".join(f"{one.role}:{one.content}|" for one in request.conversation)
            request = replace(request, prompt=told, messages=(), system=None)
        return super().encode(request, length)


def test_a_head_that_converses_reads_the_system_text_and_every_turn() -> None:
    with memory_daemon(plugins=[FakePlugin(Listener("Meow"))]) as daemon:
        first, *_ = daemon.stream("diffuse", messages=to_wire([*EARLIER, ASKED]), system="Be brief", length=4)
        answer = daemon.diffuse(messages=[*EARLIER, {"role": "user", "content": "What?"}], length=8, seed=1)
        assert daemon.diffuse("plain ", length=8).text == "Meow"
    assert first.rendered("") == "system:Be brief|user:Hi.|assistant:Hello.|user:What is a cat?|"
    assert (answer.text, answer.verdict.finish) == ("Meow", "stop")


def test_a_head_that_knows_only_prompts_never_sees_a_conversation() -> None:
    with memory_daemon(plugins=[FakePlugin(FakeHead("Meow"))]) as daemon:
        with pytest.raises(BadInput, match="reads no conversations") as caught:
            daemon.diffuse(messages=[ASKED])
        assert caught.value.remedy == "give a prompt"
        assert daemon.diffuse("x").text == "Meow"


def test_messages_may_be_plain_tables(engine: ArrowEngine) -> None:
    with pytest.raises(BadInput, match="ChatMessage"):
        engine.diffuse(messages=[{"role": "god", "content": "x"}])


@pytest.mark.parametrize(("asked", "why"), [
    (Diffuse(prompt="x", messages=(ASKED,)), "both a prompt and messages"),
    (Diffuse(prompt="x", system="Be brief"), "has no system text"),
    (Diffuse(system="Be brief"), "has no system text"),
    (Diffuse(messages=(ChatMessage(role="system", content="a"), ASKED), system="b"), "two system texts"),
    (Diffuse(messages=(ASKED,) * (CHAT_MESSAGES_MAX + 1)), "number of messages"),
    (Diffuse(messages=(replace(ASKED, content="x" * PROMPT_CHARS_MAX), ASKED)), "characters"),
    (Diffuse(messages=(ASKED,), system="x" * PROMPT_CHARS_MAX), "characters"),
])
def test_a_conversation_keeps_its_limits(asked: Diffuse, why: str) -> None:
    with pytest.raises(BadInput, match=why) as caught:
        check(asked)
    assert caught.value.remedy


def test_requests_of_earlier_clients_mean_what_they_meant() -> None:
    old = {"prompt": "Once", "modality": "code", "model": None, "size": [64, 64], "voice_id": "default", "length": 8,
           "steps": None, "sampler": None, "temperature": None, "seed": 1}
    assert from_wire(old, Diffuse) == Diffuse(prompt="Once", modality="code", size=(64, 64), length=8, seed=1)
    asked = Diffuse(messages=(*EARLIER, ASKED), system="Be brief", seed=1)
    assert from_wire(to_wire(asked), Diffuse) == asked
