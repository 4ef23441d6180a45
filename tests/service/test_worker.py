"""The worker's loop with an engine made of counters, step by step and without a process."""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import pytest

from aios.errors import AiosError, ModelMissing
from aios.ipc.stream import Framer, Notification, Request, Response, encode
from aios.messages import Encode, Part, State, Usage, Verdict
from aios.messages import Response as Answer
from aios.service.pulse import Pulse
from aios.service.worker import OWED_SECONDS_MAX, Worker


def answered(text: str) -> Answer:
    return Answer(parts=(Part(mime="text/plain", text=text),), modality=frozenset({"text"}), usage=Usage(),
                  verdict=Verdict(model="m", release="r", instruction_set="i", threads=1))


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
    assert states == [[1, {"step": step, "steps": 2, "pieces": [None]}] for step in (0, 1)]


def test_the_pulse_names_the_request_and_counts_denoiser_calls(bench: Bench) -> None:
    bench.ask(7, "diffuse", prompt="5")
    bench.turn(4)
    beat = bench.pulse.read()
    assert (beat.label, beat.steps) == ("request:7", 3), "the first quantum only opens the canvas"


def test_the_loop_ends_with_the_channel(bench: Bench) -> None:
    bench.ask(1, "diffuse", prompt="2")
    bench.ours.shutdown(socket.SHUT_WR)
    bench.worker.run()
