"""`aios diffuse`, `infill` and `encode` against a daemon that is played by a dictionary."""

from __future__ import annotations

import base64
import io
import json
import sys
from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import pytest

from aios.cli import render
from aios.errors import BadInput, DaemonDown
from aios.messages import Part, Response, State, Usage, Verdict, to_wire

if TYPE_CHECKING:
    from tests.cli.conftest import Run

VERDICT = Verdict(model="text-default", release="r", instruction_set="avx2", threads=2, sampler="confidence")
WRITTEN = Response(parts=(Part(mime="text/plain", text=" there was\n"),), modality=frozenset({"text"}), seed=7,
                   usage=Usage(completion_tokens=4, steps=2, compute_ms=12.0), verdict=VERDICT)
VECTORS = Response(parts=(Part(mime="application/vnd.aios.tensor;dtype=float32;shape=2,2",
                               data=array("f", [1, 0, 0.6, 0.8]).tobytes()),),
                   modality=frozenset({"text"}), usage=Usage(), verdict=VERDICT)


class Daemon:
    """Remembers what it was asked and answers from a table."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers = {"diffuse": WRITTEN, "infill": WRITTEN, "encode": VECTORS}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def call(self, verb: str, /, **params: Any) -> Any:
        self.asked.append((verb, {name: value for name, value in params.items() if value is not None}))
        return to_wire(self.answers[verb])

    def stream(self, verb: str, /, **params: Any) -> Iterator[State | Response]:
        self.call(verb, **params)
        yield State(step=1, steps=2, pieces=("Once", None))
        yield State(step=2, steps=2, pieces=("Once", " there was"))
        yield self.answers[verb]


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    played = Daemon()
    monkeypatch.setattr("aios.ipc.client.connect", lambda: played)
    return played


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_pipe_receives_the_new_text_alone(run: Run, daemon: Daemon) -> None:
    done = run("diffuse", "Once", "--length", "4", "--steps", "2", "--sampler", "entropy", "--temperature", "0.5",
               "--seed", "7", "--model", "m")
    assert (done.code, done.out, done.err) == (0, " there was\n\n", "")
    assert daemon.asked == [("diffuse", {"prompt": "Once", "modality": "text", "length": 4, "steps": 2, "seed": 7,
                                         "sampler": "entropy", "temperature": 0.5, "model": "m"})]


def test_memory_is_asked_for_by_name_and_named_in_the_answer(run: Run, daemon: Daemon,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    run("diffuse", "Once", "--memory", "auto")
    assert daemon.asked[-1][1]["memory"] == "auto"
    assert run("diffuse", "Once", "--memory", "always").code == 64
    daemon.answers["diffuse"] = replace(WRITTEN, verdict=replace(VERDICT, memories=(3, 5)))
    monkeypatch.setattr(render, "is_terminal", lambda stream: stream is sys.stdout)
    assert "memories 3, 5" in run("diffuse", "Once").err


def test_what_is_not_said_is_left_to_the_daemon(run: Run, daemon: Daemon) -> None:
    run("infill", "a", "b")
    assert daemon.asked == [("infill", {"prefix": "a", "suffix": "b", "modality": "text"})]


def test_a_prompt_may_be_asked_as_a_message(run: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("diffuse", "What is a cat?", "--chat", "--system", "Be brief", "--seed", "7")
    assert (done.code, done.out) == (0, " there was\n\n")
    assert daemon.asked == [("diffuse", {"messages": [{"role": "user", "content": "What is a cat?"}],
                                         "system": "Be brief", "modality": "text", "seed": 7})]
    monkeypatch.setattr(render, "is_terminal", lambda stream: stream is sys.stdout)
    monkeypatch.setenv("NO_COLOR", "1")
    assert run("diffuse", "What is a cat?", "--chat").out == "What is a cat?\n there was\n\n"


def test_json_is_the_response(run: Run, daemon: Daemon) -> None:
    found = run("diffuse", "Once", "--json").json
    assert found == json.loads(json.dumps(WRITTEN.to_json(), default=list))
    assert {"text", "usage", "verdict", "seed"} <= set(found)


def test_a_person_sees_the_given_text_around_the_new_one(
        run: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "is_terminal", lambda stream: stream is sys.stdout)
    monkeypatch.setenv("NO_COLOR", "1")
    done = run("infill", "Once", "The end.")
    assert done.out == "Once there was\nThe end.\n"
    assert "4 tokens, 2 steps, 12 ms, text-default, seed 7" in done.err


def test_watching_shows_the_states_beside_the_answer(run: Run, daemon: Daemon) -> None:
    done = run("diffuse", "Once", "--watch")
    assert done.out == " there was\n\n"
    assert done.err == "1/2\tOnce░\n2/2\tOnce there was\n"
    assert run("diffuse", "Once", "--watch", "--json").json["seed"] == 7


def test_the_prompt_may_come_from_standard_input(run: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, "Es war einmal – ein König\n".encode())
    run("diffuse", "-")
    assert daemon.asked[0][1]["prompt"] == "Es war einmal – ein König\n"


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a" * ((1 << 20) + 1)], ids=["no text", "too long"])
def test_what_is_no_text_or_too_long_is_refused_here(
        run: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    feed(monkeypatch, data)
    done = run("diffuse", "-")
    assert done.code == BadInput.exit_code
    assert not daemon.asked


def test_an_argument_in_a_broken_encoding_is_refused(run: Run, daemon: Daemon) -> None:
    assert run("diffuse", "a\udcff").code == BadInput.exit_code
    assert run("diffuse", "a", "--chat", "--system", "a\udcff").code == BadInput.exit_code
    assert run("encode", "a\udcff").code == BadInput.exit_code


def test_vectors_are_numbers_in_json(run: Run, daemon: Daemon) -> None:
    found = run("encode", "a", "b", "--json").json
    assert found["vectors"] == [[1.0, 0.0], pytest.approx([0.6, 0.8])]
    assert base64.b64decode(found["parts"][0]["data"]) == VECTORS.parts[0].data
    assert daemon.asked == [("encode", {"texts": ["a", "b"]})]


def test_a_few_texts_are_compared(run: Run, daemon: Daemon) -> None:
    lines = run("encode", "first text", "second text").out.splitlines()
    assert lines[1].split() == ["1", "1.00", "0.60", "first", "text"]
    assert lines[2].split() == ["2", "0.60", "1.00", "second", "text"]


def test_texts_may_come_line_by_line(run: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, b"one\ntwo\n")
    run("encode", "-")
    assert daemon.asked == [("encode", {"texts": ["one", "two"]})]


@pytest.mark.parametrize("words", [("diffuse", "a"), ("infill", "a", "b"), ("encode", "a"), ("models", "ps"),
                                   ("token", "list"), ("plugins", "allow", "x"), ("reload",)])
def test_without_a_daemon_the_remedy_is_to_start_it(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.code == DaemonDown.exit_code
    assert done.err.splitlines()[0].startswith("error: no daemon answers at ")
    assert done.err.splitlines()[1] == "  aios start"
