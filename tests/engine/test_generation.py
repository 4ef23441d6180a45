"""Generating text by the engine: quanta, seeds, cancellation, what is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from aios.config import Places, parse
from aios.engine.arrow import ArrowEngine
from aios.errors import BadInput, Cancelled, ModelError, ModelMissing, NoHead, UnknownArchitecture
from aios.messages import Diffuse, Infill, Response, State

SAMPLERS = ["ancestral", "confidence", "entropy"]


def run(quanta) -> tuple[list[State], Response]:
    states = []
    while True:
        try:
            states.append(next(quanta))
        except StopIteration as done:
            return states, done.value


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_gives_the_same_text(engine: ArrowEngine, sampler: str) -> None:
    first = engine.diffuse("the cat", length=10, sampler=sampler, seed=5)
    assert engine.diffuse("the cat", length=10, sampler=sampler, seed=5).text == first.text
    assert len({engine.diffuse("the cat", length=10, sampler=sampler, seed=s).text for s in range(4)}) > 1
    assert first.verdict.sampler == sampler


def test_a_drawn_seed_is_reported_and_replays(engine: ArrowEngine) -> None:
    drawn = engine.diffuse("a dog")
    assert drawn.seed is not None
    assert engine.diffuse("a dog", seed=drawn.seed).parts == drawn.parts


def test_what_the_request_leaves_open_is_the_models_default(engine: ArrowEngine) -> None:
    response = engine.infill("the", "mat")
    assert response.usage.completion_tokens == 12
    assert response.usage.steps <= 6
    assert (response.verdict.sampler, response.verdict.temperature) == ("ancestral", 0.8)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_state_is_one_denoiser_call_and_nothing_revealed_changes(engine: ArrowEngine, sampler: str) -> None:
    states, response = run(engine.ask(Infill(prefix="the cat", suffix=" mat", length=16, steps=8, sampler=sampler,
                                             seed=1)))
    assert [state.step for state in states] == list(range(len(states)))
    assert response.usage.steps == states[-1].step <= 8
    assert states[0].rendered("").replace(" ", "") == "thecatmat"
    assert states[0].pieces.count(None) == 16
    assert None not in states[-1].pieces
    for before, after in pairwise(states):
        assert all(a == b for b, a in zip(before.pieces, after.pieces, strict=True) if b is not None)


def test_an_infill_keeps_its_length_and_never_ends_the_text(engine: ArrowEngine) -> None:
    for seed in range(8):
        response = engine.infill("the", " mat", length=9, temperature=3.0, seed=seed)
        assert (response.usage.completion_tokens, response.verdict.finish) == (9, "length")


def test_requests_taking_turns_answer_as_if_alone(engine: ArrowEngine) -> None:
    requests = [Diffuse(prompt="the cat", length=8, seed=1), Infill(prefix="a", suffix="park", length=8, seed=2)]
    alone = [run(engine.ask(request))[1].text for request in requests]
    running = [engine.ask(request) for request in requests]
    answers: dict[int, str] = {}
    while len(answers) < len(running):
        for index, quanta in enumerate(running):
            if index not in answers:
                try:
                    next(quanta)
                except StopIteration as done:
                    answers[index] = done.value.text
            assert not torch.is_inference_mode_enabled()
    assert [answers[0], answers[1]] == alone


def test_cancelling_takes_effect_within_one_step(engine: ArrowEngine) -> None:
    seen: list[State] = []
    with pytest.raises(Cancelled):
        engine.diffuse("the cat", length=32, steps=32, seed=1, on_state=seen.append, cancel=lambda: len(seen) == 3)
    assert len(seen) == 3


def test_closing_a_request_frees_the_engine(engine: ArrowEngine) -> None:
    quanta = engine.ask(Diffuse(prompt="the cat", seed=1))
    next(quanta)
    quanta.close()
    assert engine.diffuse("the cat", seed=1).text == engine.diffuse("the cat", seed=1).text


@pytest.mark.parametrize("prompt", ["", "\x00\x00", "\ud800 lone", "<|mask|><|eot|>", "wörld 😀", "a" * (1 << 20)])
def test_hostile_prompts_are_answered(engine: ArrowEngine, prompt: str) -> None:
    response = engine.diffuse(prompt, length=4, steps=2, seed=1)
    response.text.encode("utf-8")
    half = prompt[:1 << 19]
    assert engine.infill(half, half, length=4, steps=2, seed=1).usage.completion_tokens == 4


def test_a_long_prompt_loses_its_beginning(engine: ArrowEngine) -> None:
    response = engine.diffuse("the cat sat on the mat " * 100, length=16, steps=4, seed=1)
    assert response.usage.prompt_tokens == 64 - 16


@pytest.mark.parametrize(
    ("asked", "error", "hint"),
    [
        ({"length": 0}, BadInput, "length"),
        ({"length": 60}, BadInput, "at most 48"),
        ({"length": 4096}, BadInput, "at most 48"),
        ({"steps": 0}, BadInput, "steps"),
        ({"temperature": float("nan")}, BadInput, "temperature"),
        ({"seed": -1}, BadInput, "seed"),
        ({"sampler": "guess"}, BadInput, "ancestral, confidence, entropy"),
        ({"modality": "image"}, NoHead, "offered: code, text"),
        ({"modality": "smell"}, NoHead, "offered: code, text"),
        ({"modality": "code"}, ModelError, "writes text, no code"),
        ({"model": "absent"}, ModelMissing, "absent"),
        ({"model": "../tiny-text"}, BadInput, "name of a model"),
        ({"model": "tiny-encoder"}, UnknownArchitecture, ""),
    ],
)
def test_what_cannot_be_served_is_refused_with_its_reason(engine: ArrowEngine, asked, error, hint: str) -> None:
    prompt = "the cat sat on the mat and a dog ran in the park"
    with pytest.raises(error) as caught:
        engine.diffuse(prompt, **asked)
    assert hint in caught.value.message + caught.value.remedy
    assert caught.value.remedy


def test_a_length_that_fills_the_context_serves_an_empty_prompt(engine: ArrowEngine) -> None:
    assert engine.diffuse("", length=64, steps=2, seed=1).usage.prompt_tokens == 0


def test_loaded_models_are_listed_with_their_size(engine: ArrowEngine) -> None:
    engine.diffuse("a", length=1)
    [loaded] = [model for model in engine.loaded() if model.name == "tiny-text"]
    assert loaded.kind == "diffusion"
    assert loaded.bytes == 4 * loaded.parameters > 0


def test_one_model_writes_text_and_code(home: Places) -> None:
    both = ArrowEngine.open(parse(b'[model]\ntext = "tiny-both"\ncode = "tiny-both"\nthreads = 1\n'), places=home)
    text = both.diffuse("the cat sat", length=8, seed=1)
    code = both.diffuse("the cat sat", modality="code", length=8, seed=1)
    assert (text.modality, code.modality) == ({"text"}, {"code"})
    assert code.usage.prompt_tokens == text.usage.prompt_tokens + 1     # a file of code has a token before it
    filled = both.infill("the cat", "the mat", modality="code", length=6, seed=1)
    assert (filled.modality, filled.verdict.model, filled.usage.completion_tokens) == ({"code"}, "tiny-both", 6)
    assert len(both._assembly._heads) == 1                              # and one network


def test_the_model_for_code_is_one_of_its_own(home: Places) -> None:
    engine = ArrowEngine.open(parse(b'[model]\ntext = "tiny-text"\ncode = "tiny-both"\nthreads = 1\n'), places=home)
    assert engine.diffuse("the cat", length=4, seed=1).verdict.model == "tiny-text"
    assert engine.diffuse("the cat", modality="code", length=4, seed=1).verdict.model == "tiny-both"
