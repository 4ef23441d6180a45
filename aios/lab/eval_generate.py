"""`aios eval generate`: our language model beside transformers, on the same dequantised tensors and prompts.

Every position is judged after the peer's own tokens; speed side by side, alone and in a batch of sixteen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Final

from aios.config import Places
from aios.errors import AiosError
from aios.lab.machine import torch_threads
from aios.lab.report import LabOptions, Report, Row
from aios.lab.statistics import clopper_pearson
from aios.messages import Generate, Response

if TYPE_CHECKING:
    from aios.engine.chat import OpenLanguage
    from aios.lab.peer_language import PeerLanguage

MODEL: Final = "smollm2"
EQUAL: Final = Row(metric="greedy_equal", value=None, unit="", better="higher", must=1.0, reason="not run")
RATIO: Final = Row(metric="generate_vs_transformers", value=None, unit="x", better="higher", must=1.0, aim=3.0,
                   reason="not run")
TIE: Final = 1e-3               # logits closer than this are equally likely: rounding decides between them
TOKENS, TOKENS_QUICK = 64, 16
REPEATS, REPEATS_QUICK = 3, 2
BATCHES: Final = (1, 16)
PROMPTS: Final = (
    "What is the capital of France?", "Explain why the sky is blue.", "Write a short poem about autumn.",
    "List three uses of a paper clip.", "How do I boil an egg?", "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?", "Give me a recipe for pancakes.", "What is 17 times 23?",
    "Tell me a story about a dog that finds a key.", "Why do leaves change colour?", "What does an engineer do?",
    "Name the planets of the solar system.", "Describe the taste of a lemon.", "How does a bicycle stay upright?",
    "Write a Python function that reverses a list.", "What is the difference between weather and climate?",
    "Give advice to somebody who cannot sleep.", "What happened in 1969?", "Summarise the idea of gravity.")

Arm = Callable[[], object]


def run(options: LabOptions) -> Report:
    """Measure all rows; what cannot be measured here is null with the reason."""
    try:
        from aios.store import models

        record = models.find(MODEL, Places.find())
    except AiosError as error:
        reason = f"{error.message}: {error.remedy}"
        return Report.of("generate", [replace(EQUAL, reason=reason), replace(RATIO, reason=reason)], options)

    from aios.config import Config
    from aios.engine.assembly import Assembly
    from aios.engine.chat import OpenLanguage
    from aios.lab.peer_language import PeerLanguage
    from aios.model.quant_linear import FAST_BITS

    assembly = Assembly(Config(), Places.find())
    with torch_threads():
        language, opened = assembly.language(MODEL), assembly.model(MODEL)
        peer = PeerLanguage.open(opened.spec, opened.tensors)
        rows = rows_of(language, OpenLanguage.open(opened, FAST_BITS), peer, options)
    return Report.of("generate", rows, options, checkpoints={record.name: record.release})


def rows_of(language: OpenLanguage, fast: OpenLanguage, peer: PeerLanguage | None, options: LabOptions) -> list[Row]:
    """All rows of one opened model, of the same with activations of 8 bits, and of its peer."""
    prompts = [language.prompt(Generate(prompt=text)) for text in PROMPTS]
    return [*_equality(language, fast, peer, prompts, options), *_speed(language, peer, prompts, options)]


def _equality(language: OpenLanguage, fast: OpenLanguage, peer: PeerLanguage | None, prompts: Sequence[Sequence[int]],
              options: LabOptions) -> list[Row]:
    from aios.lab.peer_language import INSTALL, PEER

    if peer is None:
        return [replace(EQUAL, peer=PEER, reason=INSTALL)]
    count = TOKENS_QUICK if options.quick else TOKENS
    chosen = prompts[::3] if options.quick else prompts
    equal = equal_fast = judged = ties = 0
    for number, prompt in enumerate(chosen):
        options.progress("equality with the peer", 0.5 * number / len(chosen))
        tokens, leads = peer.judged(prompt, count)
        found = zip(followed(language, prompt, tokens), followed(fast, prompt, tokens), tokens, leads, strict=True)
        for ours, ours_fast, theirs, lead in found:
            if lead < TIE:
                ties += 1
                continue
            judged += 1
            equal += ours == theirs
            equal_fast += ours_fast == theirs
    row = replace(EQUAL, value=equal / judged, n=judged, peer=PEER, peer_version=peer.version,
                  reason=f"{len(chosen)} prompts of {count} tokens, {ties} of them ties of less than {TIE:g}")
    beside = replace(row, metric="greedy_equal_8bit", value=equal_fast / judged, must=None,
                     interval=clopper_pearson(equal_fast, judged), reason=(
                         "the same with activations of 8 bits: language_activations = 8 under [model]"))
    return [row, beside, Row(metric="greedy_ties", value=float(ties), unit="", better="lower", n=judged + ties)]


def followed(language: OpenLanguage, prompt: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """Our likeliest token at every position, each after the peer's own tokens: read and written as in service."""
    import torch

    from aios.model.cache import PackedStep, Piece

    network = language.network
    running, cache = network.running_cache(), network.prompt_cache(len(prompt))
    with torch.inference_mode():
        logits = network.advance(prompt, PackedStep(running, [Piece(cache=cache, count=len(prompt))]))
        running.join("x", cache)
        found = [int(logits[0].argmax())]
        for token in tokens[:-1]:
            found.append(int(network.advance([token], PackedStep(running))[0].argmax()))
    return found


def _speed(language: OpenLanguage, peer: PeerLanguage | None, prompts: Sequence[Sequence[int]],
           options: LabOptions) -> list[Row]:
    """The same prompts, each continued by as many tokens, in the order A B A B; medians after a warm-up."""
    from aios.lab.peer_language import INSTALL, PEER

    count = TOKENS_QUICK if options.quick else TOKENS
    repeats = REPEATS_QUICK if options.quick else REPEATS
    rows, ratios = [], []
    for batch in BATCHES:
        options.progress(f"speed of {batch} at a time", 0.5 + 0.25 * BATCHES.index(batch))
        arms: list[Arm] = [partial(write, language, PROMPTS[:batch], count)]
        if peer is not None:
            peer.tune(prompts[:batch], count // 4)
            arms.append(partial(peer.write, prompts[:batch], count))
        speeds = [batch * count / seconds for seconds in _interleaved(arms, repeats)]
        theirs = speeds[1] if peer is not None else None
        version, reason = (peer.version, peer.settings) if peer is not None else (None, INSTALL)
        note = f"{count} new tokens each, prompts read included; {reason}"
        rows.append(Row(metric=f"tokens_per_s_b{batch}", value=speeds[0], unit="/s", better="higher", n=repeats,
                        peer=PEER, peer_version=version, peer_value=theirs, reason=note))
        if theirs is not None:
            ratios.append(speeds[0] / theirs)
            rows.append(Row(metric=f"generate_vs_transformers_b{batch}", value=ratios[-1], unit="x", better="higher",
                            must=RATIO.must, aim=RATIO.aim, n=repeats, peer=PEER, peer_version=version, reason=note))
    if not ratios:
        return [*rows, replace(RATIO, peer=PEER, reason=INSTALL)]
    return [*rows, replace(RATIO, value=min(ratios), n=repeats, peer=PEER, reason="the smaller of the two batches")]


def write(language: OpenLanguage, texts: Sequence[str], count: int) -> None:
    """`count` likeliest tokens after every text, together, by the engine's own decoding."""
    from aios.engine.decoding import Decoding

    group = Decoding(replace(language, ends=frozenset()))
    for index, text in enumerate(texts):
        group.join(index, Generate(prompt=text, max_tokens=count, temperature=0.0))
    written = 0
    while group.open:
        for outcome in group.advance().values():
            if isinstance(outcome, AiosError):
                raise outcome
            if isinstance(outcome, Response):
                written += outcome.usage.completion_tokens
    if written != count * len(texts):
        raise ValueError(f"{written} tokens were written, not {count} for each of {len(texts)} texts")


def _interleaved(arms: Sequence[Arm], repeats: int) -> list[float]:
    """Median seconds of each arm, which take turns after a warm-up."""
    for arm in arms:
        arm()
    seconds: list[list[float]] = [[] for _ in arms]
    for _ in range(repeats):
        for arm, taken in zip(arms, seconds, strict=True):
            began = time.perf_counter()
            arm()
            taken.append(time.perf_counter() - began)
    return [median(taken) for taken in seconds]
