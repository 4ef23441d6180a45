"""The worker's loop with an engine made of counters, step by step and without a process."""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from aios.errors import AiosError, ModelMissing
from aios.ipc.stream import Framer, Notification, Request, Response, encode
from aios.messages import Encode, Generate, Part, State, Usage, Verdict
from aios.messages import Response as Answer
from aios.service.pulse import Pulse
from aios.service.worker import OWED_SECONDS_MAX, Worker


def answered(text: str) -> Answer:
    return Answer(parts=(Part(mime="text/plain", text=text),), modality=frozenset({"text"}), usage=Usage(),
                  verdict=Verdict(model="m", release="r", instruction_set="i", threads=1))


class CountingGroup:
    """Texts of as many tokens as their prompt says, each a letter; one that says "defect" ends them all."""

    def __init__(self, model: str, log: list[str]) -> None:
        self.language = SimpleNamespace(name=model)
        self.texts: dict[Any, list[int]] = {}
        self.log = log

    def join(self, key: Any, request: Generate) -> None:
        self.texts[key] = [0, -1 if request.prompt == "defect" else int(request.prompt)]

    def leave(self, key: Any) -> None:
        del self.texts[key]

    def advance(self) -> dict[Any, Any]:
        self.log.append(f"{self.language.name} " + ",".join(map(str, self.texts)))
        outcomes: dict[Any, Any] = {}
        for key, text in list(self.texts.items()):
            if text[1] < 0:
                raise ZeroDivisionError("told to")
            text[0] += 1
            outcomes[key] = State(step=text[0], steps=text[1], delta="x")
            if text[0] > text[1]:
                outcomes[key] = answered("x" * text[1])
                del self.texts[key]
        return outcomes


class CountingEngine:
    """Generations of as many steps as their prompt says; a batch takes as many quanta as it has texts."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.opened = 0

    def ask(self, request: Any) -> Generator[State, None, Answer]:
        self.opened = 1
        try:
            if request.prompt == "boom":
                raise ZeroDivisionError("told to")
            for step in range(int(request.prompt)):
                self.log.append(f"step {request.prompt}")
                yield State(step=step, steps=int(request.prompt), pieces=(None,))
        except GeneratorExit:
            self.log.append("closed")
            raise
        return answered(request.prompt)

    def encode_many(self, requests: Sequence[Encode]) -> Iterator[dict[int, Answer | AiosError]]:
        for index, request in enumerate(requests):
            if "missing" in request.texts:
                yield {index: ModelMissing("no encoder")}
                continue
            for _ in request.texts[1:]:
                self.log.append(f"encode {len(requests)}")
                yield {}
            self.log.append(f"encode {len(requests)}")
            yield {index: answered("vector")}

    def route(self, request: Generate) -> Generate:
        if request.prompt == "boom":
            raise ZeroDivisionError("told to")
        return request

    def decoding(self, model: str | None) -> CountingGroup:
        if model == "missing":
            raise ModelMissing("no such model")
        return CountingGroup(model or "default", self.log)

    def loaded(self) -> tuple[Any, ...]:
        return ()


class Bench:
    """A worker and the parent's end of its channel."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(5)
        self.engine = CountingEngine()
        self.pulse = Pulse.create()
        self.worker = Worker(theirs, self.pulse)
        self.worker.engine = self.engine            # type: ignore[assignment]
        self.framer = Framer()
        self.heard: list[Any] = []

    def ask(self, number: int, verb: str, alone: bool = False, stream: bool = False, **request: Any) -> None:
        self.ours.sendall(encode(Request(msgid=number, verb=verb, params=[
            {"request": request, "stream": stream, "alone": alone}])))

    def cancel(self, number: int) -> None:
        self.ours.sendall(encode(Notification(method="cancel", params=[number])))

    def turn(self, count: int = 1) -> None:
        """So many rounds of the loop: a quantum of each kind that waits."""
        for _ in range(count):
            assert self.worker._receive(block=False)
            for _ in range(bool(self.worker.waiting or self.worker.batches) + bool(self.worker.generations)):
                self.worker._advance()
            self.worker.owed_s = 0.0        # how long the fakes took differs from run to run

    def answers(self) -> dict[int, Response]:
        self.ours.setblocking(False)
        try:
            while True:
                self.heard += self.framer.feed(self.ours.recv(1 << 20))
        except BlockingIOError:
            pass
        return {message.msgid: message for message in self.heard if isinstance(message, Response)}


@pytest.fixture
def bench() -> Iterator[Bench]:
    one = Bench()
    yield one
    one.ours.close()
    one.worker.channel.close()
    one.pulse.close()


def test_time_that_encodes_took_is_given_to_generations_before_the_next_batch(bench: Bench) -> None:
    bench.ask(1, "diffuse", prompt="9")
    bench.turn()
    bench.worker.owed_s = 60.0                     # as after a long batch
    bench.ask(2, "encode", texts=["a"])
    bench.turn()
    assert 2 not in bench.answers() and bench.worker.waiting
    bench.worker._advance()
    assert 2 in bench.answers()
    assert 0 < bench.worker.owed_s <= OWED_SECONDS_MAX


def test_generations_take_turns_step_by_step(bench: Bench) -> None:
    bench.ask(1, "diffuse", prompt="3")
    bench.ask(2, "diffuse", prompt="4")
    bench.turn(6)
    assert bench.engine.log == ["step 3", "step 4"] * 3
    bench.turn(4)
    assert sorted(bench.answers()) == [1, 2]


def test_an_encode_waits_for_no_more_than_one_step(bench: Bench) -> None:
    bench.ask(1, "diffuse", prompt="100")
    bench.turn(5)
    bench.ask(2, "encode", texts=["a"])
    bench.turn()
    assert bench.engine.log[5:] == ["encode 1", "step 100"]
    assert 2 in bench.answers()


def test_a_long_encode_delays_neither_steps_nor_short_encodes(bench: Bench) -> None:
    bench.ask(1, "diffuse", prompt="100")
    bench.ask(2, "encode", texts=["a"] * 50)
    bench.turn(3)
    bench.ask(3, "encode", texts=["a"])
    bench.turn(2)
    assert 3 in bench.answers() and 2 not in bench.answers()
    assert bench.engine.log.count("step 100") == 5


def test_short_encodes_that_keep_coming_do_not_starve_a_long_one(bench: Bench) -> None:
    bench.ask(1, "encode", texts=["a"] * 3)
    for number in range(2, 12):
        bench.turn()
        bench.ask(number, "encode", texts=["a"])
    assert 1 in bench.answers()


def test_encodes_that_wait_together_are_one_batch_but_a_suspect_is_alone(bench: Bench) -> None:
    for number in (1, 2, 3):
        bench.ask(number, "encode", texts=["a"])
    bench.ask(4, "encode", alone=True, texts=["a"])
    bench.turn()
    assert bench.engine.log == ["encode 3"]
    assert bench.pulse.read().label == "request:1,2,3"
    bench.turn()
    assert bench.pulse.read().label == "request:4"
    bench.turn(2)
    assert sorted(bench.answers()) == [1, 2, 3, 4]


def test_a_cancelled_generation_does_no_further_step(bench: Bench) -> None:
    bench.ask(1, "diffuse", prompt="100")
    bench.turn(3)
    bench.cancel(1)
    bench.turn()
    assert bench.engine.log == ["step 100"] * 3 + ["closed"]
    assert bench.answers()[1].error[0] == "request.cancelled"
    bench.cancel(1)
    bench.turn()
    assert len(bench.answers()) == 1, "a second cancellation is not answered"


def test_a_cancelled_encode_leaves_its_batch_and_the_others_are_answered(bench: Bench) -> None:
    bench.ask(1, "encode", texts=["a", "b"])
    bench.ask(2, "encode", texts=["a"])
    bench.turn()
    bench.cancel(1)
    bench.turn(3)
    assert bench.answers()[1].error[0] == "request.cancelled"
    assert bench.answers()[2].error is None


def test_one_failing_request_harms_no_other(bench: Bench) -> None:
    bench.ask(1, "encode", texts=["missing"])
    bench.ask(2, "encode", texts=["a"])
    bench.ask(3, "diffuse", prompt="boom")
    bench.ask(4, "diffuse", prompt="1")
    bench.ask(5, "diffuse", prompt=7)
    bench.ask(6, "no.such.verb")
    bench.turn(6)
    errors = {number: answer.error[0] if answer.error else None for number, answer in bench.answers().items()}
    assert errors == {1: "model.missing", 2: None, 3: "internal", 4: None, 5: "input.invalid",
                      6: "protocol.unknown_verb"}
    logged = [message.params[0] for message in bench.heard if isinstance(message, Notification)]
    assert "ZeroDivisionError" in logged[0]["trace"]


def test_states_are_sent_only_to_those_who_asked(bench: Bench) -> None:
    bench.ask(1, "diffuse", prompt="2", stream=True)
    bench.ask(2, "diffuse", prompt="2")
    bench.turn(6)
    bench.answers()
    states = [message.params for message in bench.heard if isinstance(message, Notification)]
    assert states == [[1, {"step": step, "steps": 2, "pieces": [None], "delta": None}] for step in (0, 1)]


def test_the_pulse_names_the_request_and_counts_denoiser_calls(bench: Bench) -> None:
    bench.ask(7, "diffuse", prompt="5")
    bench.turn(4)
    beat = bench.pulse.read()
    assert (beat.label, beat.steps) == ("request:7", 3), "the first quantum only opens the canvas"


def test_the_loop_ends_with_the_channel(bench: Bench) -> None:
    bench.ask(1, "diffuse", prompt="2")
    bench.ours.shutdown(socket.SHUT_WR)
    bench.worker.run()


def test_texts_of_one_model_are_written_together_and_join_between_steps(bench: Bench) -> None:
    bench.ask(1, "generate", prompt="5")
    bench.turn(3)
    bench.ask(2, "generate", prompt="3")
    bench.ask(3, "generate", prompt="9", model="other")
    bench.turn(12)
    shared = [line for line in bench.engine.log if line.startswith("default")]
    assert shared[0] == "default 1" and "default 1,2" in shared and "default 3" not in shared
    assert next(line for line in bench.engine.log if line.startswith("other")) == "other 3"
    bench.turn(12)
    assert sorted(bench.answers()) == [1, 2, 3]


def test_texts_diffusions_and_encodes_take_turns(bench: Bench) -> None:
    bench.ask(1, "generate", prompt="50")
    bench.ask(2, "generate", prompt="50")
    bench.ask(3, "diffuse", prompt="50")
    bench.turn(13)
    bench.ask(4, "encode", texts=["a"])
    bench.turn(1)
    assert 4 in bench.answers()
    steps = bench.engine.log.count("step 50")
    assert abs(steps - bench.engine.log.count("default 1,2")) <= 2, "a group has one turn, however many it writes"


def test_the_text_is_streamed_to_those_who_asked(bench: Bench) -> None:
    bench.ask(1, "generate", prompt="2", stream=True)
    bench.ask(2, "generate", prompt="2")
    bench.turn(6)
    assert bench.answers()[1].result["parts"][0]["text"] == "xx"
    states = [message.params for message in bench.heard if isinstance(message, Notification)]
    assert [(number, state["delta"]) for number, state in states] == [(1, "x"), (1, "x")]


def test_a_cancelled_text_leaves_its_group_and_the_others_go_on(bench: Bench) -> None:
    for number in (1, 2):
        bench.ask(number, "generate", prompt="4")
    bench.turn(4)
    bench.cancel(1)
    bench.turn(6)
    assert bench.answers()[1].error[0] == "request.cancelled"
    assert bench.answers()[2].error is None
    bench.ask(3, "generate", prompt="400")
    bench.cancel(3)
    bench.turn(2)
    assert bench.answers()[3].error[0] == "request.cancelled"
    assert not bench.worker.generations


def test_a_suspect_text_is_written_alone(bench: Bench) -> None:
    bench.ask(1, "generate", prompt="9")
    bench.ask(2, "generate", prompt="9", alone=True)
    bench.ask(3, "generate", prompt="9")
    bench.turn(40)
    assert {line for line in bench.engine.log if "2" in line} == {"default 2"}
    assert "default 1,3" in bench.engine.log
    assert sorted(bench.answers()) == [1, 2, 3]


def test_a_text_that_cannot_begin_harms_no_other_and_a_defect_is_told(bench: Bench) -> None:
    bench.ask(1, "generate", prompt="3")
    bench.ask(2, "generate", prompt="3", model="missing")
    bench.ask(3, "generate", prompt="boom")
    bench.ask(4, "generate", prompt=5)
    bench.turn(9)
    codes = {number: answer.error[0] if answer.error else None for number, answer in bench.answers().items()}
    assert codes == {1: None, 2: "model.missing", 3: "internal", 4: "input.invalid"}
    bench.ask(5, "generate", prompt="3")
    bench.ask(6, "generate", prompt="defect")
    bench.turn(9)
    assert {bench.answers()[number].error[0] for number in (5, 6)} == {"internal"}
    assert not bench.worker.generations and not bench.worker.streams
    bench.ask(7, "generate", prompt="1")
    bench.turn(5)
    assert bench.answers()[7].error is None


def test_the_pulse_names_every_text_that_is_written(bench: Bench) -> None:
    for number in (1, 2):
        bench.ask(number, "generate", prompt="9")
    bench.turn(6)
    assert bench.pulse.read().label == "request:1,2"
    assert bench.pulse.read().steps > 0
