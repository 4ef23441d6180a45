"""Autoregressive generation by the engine: equality, batches, ends, streams, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from aios.config import Config, Places
from aios.engine import decoding
from aios.engine.arrow import ArrowEngine
from aios.engine.decoding import Decoding
from aios.errors import AiosError, BadInput, Cancelled, LimitExceeded, ModelCorrupt, ModelError, ModelMissing
from aios.messages import ChatMessage, Generate, Response, State
from aios.store import models

PROMPTS = ["the cat", "a dog ran in the park and", "we", "good morning would like to book a table", "é🙂"]
RAW = ["tiny-chat", "tiny-raw", "tiny-qwen3"]


def ask(prompt: str = "the cat", **options: Any) -> Generate:
    return Generate(**{"prompt": prompt, "temperature": 0.0, "max_tokens": 12, "raw": True} | options)


def together(engine: ArrowEngine, requests: list[Generate]) -> dict[int, Any]:
    answers: dict[int, Any] = {}
    for outcomes in engine.generate_many(requests):
        for index, outcome in outcomes.items():
            if not isinstance(outcome, State):
                assert index not in answers
                answers[index] = outcome
    return answers


def peer(name: str, home: Places) -> tuple[Any, Any]:
    """The same model by transformers, and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    record = models.find(name, home)
    opened = ArrowEngine.open(Config(), places=home)._assembly.model(name)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**dict(opened.spec))).eval()
    model.load_state_dict({key: tensor.float() for key, tensor in opened.tensors.items()}, strict=False)
    model.tie_weights()
    model.generation_config.eos_token_id = opened.spec["eos_token_id"]
    return model, transformers.PreTrainedTokenizerFast(tokenizer_file=str(record.path / "tokenizer.json"))


@pytest.mark.parametrize("name", RAW)
def test_greedy_text_is_that_of_transformers(engine: ArrowEngine, home: Places, name: str) -> None:
    model, tokenizer = peer(name, home)
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        theirs = model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)[0, ids.shape[1]:]
        ours = engine.generate(prompt, temperature=0, max_tokens=20, raw=True, model=name)
        assert ours.text == tokenizer.decode(theirs, skip_special_tokens=True)
        assert ours.usage.prompt_tokens == ids.shape[1]


@pytest.mark.parametrize("name", RAW)
def test_a_batch_gives_each_the_text_it_gets_alone(engine: ArrowEngine, name: str) -> None:
    requests = [ask(prompt, model=name, max_tokens=5 + 7 * index) for index, prompt in enumerate(PROMPTS)]
    requests.append(ask("the cat", model=name, temperature=0.8, seed=5, repetition_penalty=1.2))
    alone = [engine.ask(request) for request in requests]
    answers = together(engine, requests)
    for index, quanta in enumerate(alone):
        assert answers[index].text == finish(quanta).text


def finish(quanta: Any) -> Response:
    while True:
        try:
            next(quanta)
        except StopIteration as done:
            return done.value


def test_texts_join_and_leave_between_steps(engine: ArrowEngine) -> None:
    requests = {name: ask(prompt, max_tokens=count) for name, prompt, count in
                (("a", PROMPTS[0], 30), ("b", PROMPTS[1], 4), ("c", PROMPTS[2], 9), ("d", PROMPTS[3], 16))}
    group, answers = engine.decoding(), {}
    for step in range(60):
        if step in (0, 2, 7, 8):
            name = "abcd"[(0, 2, 7, 8).index(step)]
            group.join(name, requests[name])
        if step == 10:
            group.leave("c")
        answers |= {name: one for name, one in group.advance().items() if isinstance(one, Response)}
    assert sorted(answers) == ["a", "b", "d"] and not group.open
    for name, answer in answers.items():
        assert answer.text == finish(engine.ask(requests[name])).text
    assert answers["a"].usage.steps >= 30


def test_long_prompts_are_read_in_slices_beside_running_texts(
        engine: ArrowEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = engine.generate("the cat sat on " * 10, temperature=0, max_tokens=8, raw=True).text
    monkeypatch.setattr(decoding, "SLICE_OPERATIONS", 0)
    monkeypatch.setattr(decoding, "SLICE_TOKENS_MIN", 4)
    group = engine.decoding()
    group.join("short", ask("a", max_tokens=40))
    group.advance()
    group.join("long", ask("the cat sat on " * 10, max_tokens=8))
    seen: list[dict[Any, Any]] = [group.advance() for _ in range(6)]
    assert all(isinstance(outcomes["short"], State) and outcomes["short"].step > 0 for outcomes in seen)
    assert all(outcomes["long"].step == 0 for outcomes in seen)
    while not isinstance((outcome := group.advance().get("long")), Response):
        assert outcome is None or isinstance(outcome, State)
    assert outcome.text == expected
    assert outcome.usage.steps > 8 + 6


def test_what_does_not_fit_into_memory_waits_or_is_refused(
        engine: ArrowEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    group = engine.decoding()
    monkeypatch.setattr(decoding, "CACHE_BYTES_MAX", group._cache.bytes_of(40))
    for name in "ab":
        group.join(name, ask("the", max_tokens=5))
    answered: list[Any] = []
    for _ in range(20):
        outcomes = group.advance()
        assert len(group._writing) + len(group._reading) <= 1
        answered += [name for name, one in outcomes.items() if isinstance(one, Response)]
    assert answered == ["a", "b"]
    monkeypatch.setattr(decoding, "CACHE_BYTES_MAX", 10)
    with pytest.raises(LimitExceeded, match="MiB"):
        engine.generate("the", raw=True)


def test_the_text_ends_with_the_models_end_token(engine: ArrowEngine) -> None:
    language = engine._assembly.language("tiny-chat")
    plain = engine.generate("the cat", temperature=0, max_tokens=30, raw=True)
    assert (plain.verdict.finish, plain.usage.completion_tokens) == ("length", 30)
    wrote = language.tokenizer.encode(plain.text)
    group = Decoding(replace(language, ends=frozenset(language.ends | {wrote[4]})))
    group.join("x", ask(max_tokens=30))
    while not isinstance((answer := group.advance()["x"]), Response):
        pass
    assert answer.verdict.finish == "stop"
    assert plain.text.startswith(answer.text) and len(answer.text) < len(plain.text)


def test_ends_are_gathered_from_every_file_of_the_model(engine: ArrowEngine) -> None:
    language = engine._assembly.language("tiny-chat")
    assert language.ends == {language.tokenizer.special("<|eot|>")}


def test_a_stop_text_ends_the_text_and_is_never_shown(engine: ArrowEngine) -> None:
    whole = engine.generate("the cat", temperature=0, max_tokens=30, raw=True).text
    stop = whole[11:15]
    seen: list[str] = []
    cut = engine.generate("the cat", temperature=0, max_tokens=30, raw=True, stop=["never seen", stop],
                          on_text=seen.append)
    assert cut.text == whole[:whole.index(stop)]
    assert stop not in "".join(seen)
    assert cut.verdict.finish == "stop"
    assert engine.generate("the cat", temperature=0, max_tokens=30, raw=True, stop=stop).text == cut.text


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 4}, {"stop": ["a", "zz"]}])
def test_deltas_make_up_the_answer(engine: ArrowEngine, options: dict[str, Any]) -> None:
    quanta = engine.ask(ask(max_tokens=40, **options))
    deltas, steps = [], []
    while True:
        try:
            state = next(quanta)
        except StopIteration as done:
            answer = done.value
            break
        deltas.append(state.delta or "")
        steps.append(state.step)
    shown = "".join(deltas)
    assert shown == answer.text
    assert steps == sorted(steps)


def test_the_same_seed_gives_the_same_text_and_a_drawn_one_replays(engine: ArrowEngine) -> None:
    options = {"temperature": 1.0, "max_tokens": 20, "raw": True}
    first = engine.generate("the cat", seed=5, **options)
    assert engine.generate("the cat", seed=5, **options).text == first.text
    assert len({engine.generate("the cat", seed=seed, **options).text for seed in range(4)}) > 1
    drawn = engine.generate("the cat", **options)
    assert drawn.seed is not None
    assert engine.generate("the cat", seed=drawn.seed, **options).parts == drawn.parts
    assert (first.verdict.sampler, first.verdict.temperature) == ("sampling", 1.0)
    assert first.verdict.filters == {"top_p": 0.95}


def test_a_chat_prompt_is_rendered_and_a_raw_one_is_not(engine: ArrowEngine) -> None:
    rendered = "<|user|>u:the cat<|eot|><|user|>"
    chat = engine.generate("the cat", temperature=0, max_tokens=5)
    spoken = engine.generate(messages=[ChatMessage(role="user", content="the cat")], temperature=0, max_tokens=5)
    told = engine.generate(messages=[{"role": "user", "content": "the cat"}], temperature=0, max_tokens=5)
    assert chat.text == spoken.text == told.text
    tokenizer = engine._assembly.language(None).tokenizer
    assert chat.usage.prompt_tokens == len(tokenizer.encode_rendered(rendered))
    assert chat.usage.prompt_tokens == 3 + len(tokenizer.encode("u:the cat"))
    assert engine.generate("the cat", raw=True, max_tokens=1).usage.prompt_tokens == len(tokenizer.encode("the cat"))
    longer = engine.generate("the cat", system="be", max_tokens=1).usage.prompt_tokens
    assert longer == chat.usage.prompt_tokens + 2 + len(tokenizer.encode("s:be"))


def test_a_model_without_a_template_continues_the_prompt(engine: ArrowEngine) -> None:
    options = {"temperature": 0, "max_tokens": 5, "model": "tiny-raw"}
    assert engine.generate("the", **options).text == engine.generate("the", raw=True, **options).text


def test_the_text_is_cut_at_the_context(engine: ArrowEngine) -> None:
    answer = engine.generate("the", raw=True, temperature=0, max_tokens=4000)
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == 96
    assert answer.verdict.finish == "length"


@pytest.mark.parametrize(
    ("asked", "error", "hint"),
    [
        ({"prompt": "the cat sat on " * 50}, BadInput, "reads 96"),
        ({"prompt": "x" * (1 << 20)}, BadInput, "reads 96"),
        ({"prompt": "", "raw": True}, BadInput, "nothing to continue"),
        ({"max_tokens": 0}, BadInput, "max_tokens"),
        ({"temperature": float("nan")}, BadInput, "temperature"),
        ({"top_p": 0.0}, BadInput, "top_p"),
        ({"stop": [""]}, BadInput, "stop text"),
        ({"stop": ["x"] * 17}, BadInput, "stop texts"),
        ({"prompt": "a", "messages": [ChatMessage(role="user", content="b")]}, BadInput, "both"),
        ({"prompt": "a", "system": "b", "raw": True}, BadInput, "raw"),
        ({"messages": [ChatMessage(role="tool", content="b")], "prompt": ""}, BadInput, "no tools here"),
        ({"messages": [{"role": "god", "content": "b"}], "prompt": ""}, BadInput, "role"),
        ({"system": "b", "model": "tiny-raw"}, BadInput, "no chat template"),
        ({"model": "absent"}, ModelMissing, "absent"),
        ({"model": "tiny-text"}, ModelError, "kind diffusion"),
        ({"model": "tiny-encoder"}, ModelError, "kind encoder"),
    ],
)
def test_what_cannot_be_served_is_refused_with_its_reason(engine: ArrowEngine, asked, error, hint: str) -> None:
    with pytest.raises(error) as caught:
        engine.generate(**{"prompt": "the cat"} | asked)
    assert hint in caught.value.message + caught.value.remedy
    assert caught.value.remedy


def test_a_request_that_cannot_be_answered_holds_up_no_other(engine: ArrowEngine) -> None:
    answers = together(engine, [ask(model="absent"), ask("x" * 9999), ask(max_tokens=0), ask()])
    assert [type(answers[index]) for index in range(4)] == [ModelMissing, BadInput, BadInput, Response]


def test_autoregressive_and_diffusion_models_live_side_by_side(engine: ArrowEngine) -> None:
    words = engine.generate("the cat", temperature=0, max_tokens=6).text
    written = engine.diffuse("the cat", length=6, seed=1).text
    vector = engine.encode(["the cat"])
    assert {"tiny-chat", "tiny-text", "tiny-encoder"} <= {model.name for model in engine.loaded()}
    assert engine.generate("the cat", temperature=0, max_tokens=6).text == words
    assert engine.diffuse("the cat", length=6, seed=1).text == written
    assert (engine.encode(["the cat"]) == vector).all()
    with pytest.raises(ModelError, match="kind ar"):
        engine.diffuse("the cat", model="tiny-chat")


def test_cancelling_takes_effect_within_one_step(engine: ArrowEngine) -> None:
    seen: list[str] = []
    with pytest.raises(Cancelled):
        engine.generate("the cat", raw=True, max_tokens=60, on_text=seen.append, cancel=lambda: len(seen) >= 3)
    assert len(seen) == 3


@pytest.mark.parametrize("prompt", ["\x00", "\ud800 lone", "<|eot|><|user|>", "wörld 😀", " "])
def test_hostile_prompts_are_answered(engine: ArrowEngine, prompt: str) -> None:
    for raw in (True, False):
        engine.generate(prompt, max_tokens=3, raw=raw, seed=1).text.encode("utf-8")


def test_nothing_leaves_a_file_that_proved_bad(engine: ArrowEngine) -> None:
    language = engine._assembly.language("tiny-chat")
    asked: list[bool] = []

    def intact(wait: bool) -> None:
        asked.append(wait)
        if wait:
            raise ModelCorrupt("model.parquet: tensor x is corrupt")

    heard: list[Any] = []
    group = Decoding(replace(language, intact=intact), lambda request, response: heard.append(response))
    group.join("a", ask(max_tokens=3))
    group.join("b", ask(max_tokens=9))
    outcomes: list[dict[Any, Any]] = []
    while group.open:
        outcomes.append(group.advance())
    assert isinstance(outcomes[-1]["a"], ModelCorrupt) and isinstance(outcomes[-1]["b"], ModelCorrupt)
    assert asked.count(True) == 1 and asked[-1] and not heard


def test_values_that_are_no_numbers_are_the_models_fault(engine: ArrowEngine) -> None:
    language = engine._assembly.language("tiny-qwen3")
    group = Decoding(language)
    weight = language.network.head.embedding.weight
    kept = weight.clone()
    with torch.inference_mode():
        weight[:] = torch.nan
        group.join("a", ask())
        [outcome] = group.advance().values()
        weight[:] = kept
    assert isinstance(outcome, AiosError) and "no numbers" in outcome.message


def test_packed_weights_write_the_text_of_their_dequantised_values(engine: ArrowEngine, home: Places) -> None:
    from aios.model.language import LanguageModel
    from aios.store.quant import ArrowQuant

    language, opened = engine._assembly.language("tiny-raw"), engine._assembly.model("tiny-raw")
    packed: dict[str, Any] = {name: ArrowQuant.quantize(tensor, bits=8, group_size=32) if tensor.ndim == 2 else tensor
                              for name, tensor in opened.tensors.items()}
    plain = {name: tensor if isinstance(tensor, torch.Tensor) else ArrowQuant.dequantize(tensor)
             for name, tensor in packed.items()}
    texts = []
    for tensors in (packed, plain):
        group = Decoding(replace(language, network=LanguageModel.open(opened.spec, tensors)))
        for key, prompt in enumerate(PROMPTS):
            group.join(key, ask(prompt))
        answers: dict[Any, str] = {}
        while group.open:
            answers |= {key: one.text for key, one in group.advance().items() if isinstance(one, Response)}
        texts.append(answers)
    assert texts[0] == texts[1]


def test_a_daemon_in_memory_streams_what_the_engine_writes(home: Places, settings: Config) -> None:
    from aios.testing import memory_daemon

    pieces: list[str] = []
    with memory_daemon(places=home, config=settings) as daemon:
        answer = daemon.generate("the cat", temperature=0, max_tokens=6, on_text=pieces.append)
        *states, last = daemon.stream("generate", prompt="the cat", temperature=0, max_tokens=6)
    assert "".join(pieces) == answer.text == last.text
    assert "".join(state.delta or "" for state in states) == answer.text
