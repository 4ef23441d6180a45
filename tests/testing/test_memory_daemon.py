from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aios.contracts import Adapter, Canvas, Condition, Modality, Prediction
from aios.errors import BadInput, ModelMissing, NoHead, PluginError, UnknownVerb
from aios.messages import Response, State
from aios.testing import FakeHead, FakePlugin, Finding, memory_daemon
from aios.testing.fake import OpenFakeHead
from aios.testing.laws import LAWS


class FaultyHead(FakeHead):
    """Raises in the middle of a generation."""

    def open(self, workbench: Any, model: str | None) -> OpenFakeHead:
        opened = OpenFakeHead(self.text, Modality.TEXT, "faulty")

        def fail(canvas: Canvas, condition: Condition, adapters: Sequence[Adapter] = ()) -> Prediction:
            raise SystemExit("over")

        opened.denoiser = fail
        return opened


def test_it_answers_what_the_fake_head_says() -> None:
    with memory_daemon(plugins=[FakePlugin(FakeHead("hello"))]) as daemon:
        answer = daemon.diffuse("say: ", length=8, seed=1)
    assert (answer.text, answer.seed, answer.verdict.finish) == ("hello", 1, "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 5)


def test_it_fills_in_between() -> None:
    with memory_daemon(plugins=[FakePlugin(FakeHead("XY"))]) as daemon:
        assert daemon.infill("a", "b", length=2).text == "XY"


def test_states_arrive_one_a_step_and_the_answer_last() -> None:
    with memory_daemon(plugins=[FakePlugin(FakeHead("abcd"))]) as daemon:
        *states, answer = daemon.stream("diffuse", prompt="> ", length=4, steps=4)
        seen: list[State] = []
        daemon.diffuse("> ", length=4, steps=4, on_state=seen.append)
    assert isinstance(answer, Response)
    assert states == seen
    assert [sum(piece is None for piece in state.pieces) for state in states] == [4, 3, 2, 1, 0]
    assert states[-1].rendered() == "> abcd"


def test_errors_travel_as_over_a_socket() -> None:
    with memory_daemon(plugins=[FakePlugin()]) as daemon:
        assert daemon.ping() == "pong"
        with pytest.raises(BadInput, match="steps is 0"):
            daemon.diffuse("x", steps=0)
        with pytest.raises(NoHead):
            daemon.diffuse("x", modality="audio")
        with pytest.raises(UnknownVerb):
            daemon.call("nonsense")
        with pytest.raises(BadInput, match="in memory does not know"):
            daemon.call("tokens.list")
        with pytest.raises(BadInput, match="prompt"):
            daemon.call("diffuse", prompt=7)
        with pytest.raises(BadInput, match="characters"):
            daemon.diffuse("x" * ((1 << 20) + 1))
        assert daemon.diffuse("x").text == "hello"


def test_a_head_that_raises_is_quarantined_and_the_others_answer() -> None:
    with memory_daemon(plugins=[FakePlugin(FaultyHead()), FakePlugin(FakeHead("fine"))]) as daemon:
        with pytest.raises(PluginError, match="SystemExit: over"):
            daemon.diffuse("x")
        assert daemon.diffuse("x").text == "fine"
        listed = {one["name"]: one for one in daemon.call("plugins.list")}
    assert listed["object-0"]["state"] == "quarantined"
    assert "SystemExit: over" in listed["object-0"]["reason"]
    assert listed["object-1"]["state"] == "active"


def test_a_stream_that_is_closed_early_leaves_the_daemon_usable() -> None:
    with memory_daemon(plugins=[FakePlugin(FakeHead("abcd"))]) as daemon:
        stream = daemon.stream("diffuse", prompt="", length=4, steps=4)
        next(stream)
        stream.close()
        assert daemon.diffuse("", length=4).text == "abcd"


def test_the_fake_head_keeps_every_law() -> None:
    from aios.config import Places
    from aios.testing.laws import _judge_head

    findings = list(_judge_head("fake", FakeHead(), Places.find()))
    assert [finding for finding in findings if not finding.ok] == []
    assert len(findings) == len(LAWS)
    assert isinstance(findings[0], Finding)


def test_texts_are_written_by_the_models_of_a_home(tmp_path: Path) -> None:
    from aios.config import Config, ModelSection, Places

    places = Places(**dict.fromkeys(("config", "data", "state", "cache", "runtime"), tmp_path))
    with memory_daemon(places=places, config=Config(model=ModelSection(language="absent"))) as daemon:
        with pytest.raises(ModelMissing, match="absent"):
            daemon.generate("x")
        with pytest.raises(BadInput, match="max_tokens"):
            daemon.generate("x", max_tokens=0)
