"""`aios generate` against a daemon that is played by a table."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import pytest

from aios.cli import render
from aios.errors import BadInput, DaemonDown, ModelMissing
from aios.messages import Part, Response, State, Usage, Verdict, to_wire

if TYPE_CHECKING:
    from tests.cli.conftest import Run

VERDICT = Verdict(model="smollm2", release="r", instruction_set="avx2", threads=1, sampler="sampling")
ANSWER = Response(parts=(Part(mime="text/plain", text="Paris.\x1b[2J"),), modality=frozenset({"text"}), seed=7,
                  usage=Usage(completion_tokens=3, steps=4, compute_ms=12.0), verdict=VERDICT)


class Daemon:
    """Remembers what it was asked; the text comes in three pieces, the last with the answer only."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def call(self, verb: str, /, **params: Any) -> Any:
        self.asked.append((verb, {name: value for name, value in params.items() if value is not None}))
        if self.error:
            raise self.error
        return to_wire(ANSWER)

    def stream(self, verb: str, /, **params: Any) -> Iterator[State | Response]:
        self.call(verb, **params)
        yield State(step=0, steps=3)
        yield State(step=1, steps=3, delta="Pa")
        yield State(step=2, steps=3, delta="ris")
        yield ANSWER


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    played = Daemon()
    monkeypatch.setattr("aios.ipc.client.connect", lambda: played)
    return played


def test_a_pipe_receives_the_text_as_it_is(run: Run, daemon: Daemon) -> None:
    for words in ((), ("--no-stream",)):
        done = run("generate", "Capital?", *words)
        assert (done.code, done.out, done.err) == (0, "Paris.\x1b[2J\n", "")


def test_every_option_reaches_the_daemon(run: Run, daemon: Daemon) -> None:
    run("generate", "Hi", "--system", "Be brief", "--max-tokens", "9", "--temperature", "0.5", "--top-p", "0.9",
        "--top-k", "40", "--min-p", "0.1", "--repetition-penalty", "1.1", "--stop", "a", "--stop", "b", "--seed", "7",
        "--raw", "--model", "m")
    assert daemon.asked == [("generate", {
        "prompt": "Hi", "system": "Be brief", "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 40,
        "min_p": 0.1, "repetition_penalty": 1.1, "stop": ["a", "b"], "seed": 7, "raw": True, "model": "m"})]


def test_a_person_sees_the_cost_and_no_terminal_commands(
        run: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "is_terminal", lambda stream: stream is sys.stdout)
    monkeypatch.setenv("NO_COLOR", "1")
    done = run("generate", "Capital?")
    assert done.out == "Paris.[2J\n"
    assert "3 tokens, 4 steps, 12 ms, smollm2, seed 7" in done.err


def test_json_is_the_response(run: Run, daemon: Daemon) -> None:
    found = run("generate", "Capital?", "--json").json
    assert (found["text"], found["seed"], found["verdict"]["finish"]) == ("Paris.\x1b[2J", 7, "stop")


def test_the_prompt_may_come_from_standard_input(run: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Wer?\n")))
    run("generate", "-")
    assert daemon.asked[0][1]["prompt"] == "Wer?\n"


def test_errors_are_lines_with_their_remedy(run: Run, daemon: Daemon) -> None:
    daemon.error = ModelMissing("the model 'smollm2' is not installed", remedy="aios models pull smollm2")
    done = run("generate", "Hi")
    assert done.code == ModelMissing.exit_code
    assert done.err.splitlines() == ["error: the model 'smollm2' is not installed", "  aios models pull smollm2"]
    assert run("generate", "a\udcff").code == BadInput.exit_code


def test_without_a_daemon_the_remedy_is_to_start_it(run: Run) -> None:
    done = run("generate", "Hi")
    assert (done.code, done.err.splitlines()[1]) == (DaemonDown.exit_code, "  aios start")
