"""Rows about what the text model writes: judged by SmolLM2 between an n-gram model and real text; variety; copying."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from aios.config import Places
from aios.lab.continuations import (
    ENTROPY_TOLERANCE_NATS,
    NEW_TOKENS,
    PROMPT_TOKENS,
    Ints,
    Judge,
    Write,
    by_document,
    diffusion,
    histogram_entropy,
    position,
    stretches,
    tuned,
)
from aios.lab.heldout import HeldOut, cuts, spelled
from aios.lab.ngram import KneserNey, Tokens, distinct_share, overlaps
from aios.lab.report import LabOptions, Row
from aios.lab.text_model import TextModel

JUDGE: Final = "smollm2"
SAMPLES: Final = 500
TUNING_SAMPLES: Final = 50
SAMPLE_SEED: Final = 0          # samples are chosen by seed, never by eye: batch i of 25 is drawn by seed i
TUNING_SEED: Final = 1_000_000
OVERLAP_N: Final = 8
METRICS: Final = ("nano_judge_position", "distinct_3", "train_overlap_8gram")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The built data: training streams by source, validation documents, and the n-gram model of the former."""

    train: Sequence[Tokens]
    validation: Mapping[str, Sequence[Sequence[int]]]
    weights: Mapping[str, float]
    ngram: KneserNey


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What one arm wrote behind the prompts of the test text, at which temperature."""

    name: str
    new: Ints
    temperature: float | None = None


def open_judge(places: Places) -> Judge:
    """SmolLM2 in f32; raises ModelMissing."""
    from aios.quantisation.subject import LanguageNetwork, Subject
    from aios.store import models
    from aios.store.record import TOKENIZER
    from aios.text.tokenizer import TextTokenizer

    record = models.find(JUDGE, places)
    subject, tokenizer = Subject.open(record), TextTokenizer.open(record.path / TOKENIZER)
    network = subject.network.eval()
    assert isinstance(network, LanguageNetwork)
    try:
        start = tokenizer.special("<|endoftext|>")      # stands between the documents that it was trained on
    except KeyError:
        start = int(subject.spec.get("bos_token_id", subject.spec["eos_token_id"]))
    return Judge(network, tokenizer.encode, start)


def rows(model: TextModel, documents: Sequence[HeldOut], trained: Trained, judge: Judge | None, folder: Path,
         options: LabOptions, shape: Callable[..., Row]) -> list[Row]:
    """All rows of samples; without a judge its position is null. Every text is written to `folder`."""
    arms, reference = _arms(model, documents, trained, options)
    entropies = {arm.name: histogram_entropy(arm.new) for arm in arms}
    prompts = reference[:, :PROMPT_TOKENS]
    texts = {arm.name: [(spelled(before.tolist(), model.tokenizer), spelled(new.tolist(), model.tokenizer))
                        for before, new in zip(prompts, arm.new, strict=True)] for arm in arms}
    file = _write(arms, texts, folder)
    told = (f"{len(prompts)} samples of {NEW_TOKENS} tokens behind {PROMPT_TOKENS} of held-out text; " + ", ".join(
        f"{arm.name}: entropy {entropies[arm.name]:.3f}" + (f" at temperature {arm.temperature:.3f}" if arm.temperature
                                                          else "") for arm in arms) + f"; all of them in {file.name}")
    found = []
    options.progress("what is copied", 0.7)
    for metric, measured in (("distinct_3", [distinct_share(arm.new, 3) for arm in arms]),
                             ("train_overlap_8gram", overlaps([arm.new for arm in arms], trained.train, OVERLAP_N))):
        values = {arm.name: value for arm, value in zip(arms, measured, strict=True)}
        beside = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        found.append(shape(metric, values["model"], n=len(prompts), reason=beside))
    if judge is None:
        return [shape("nano_judge_position", None, reason=f"no judge: aios models pull {JUDGE}"), *found]
    losses = {}
    for number, (name, pairs) in enumerate(texts.items()):
        options.progress(f"judging: {name}", 0.75 + 0.08 * number)
        losses[name] = judge.losses(pairs)
    value, interval = position(losses["model"], losses["5-gram"], losses["real"], options.seed)
    off = [name for name, entropy in entropies.items() if abs(entropy - entropies["real"]) > ENTROPY_TOLERANCE_NATS]
    told = ", ".join(f"{name} {one.per_byte:.4f}" for name, one in losses.items()) + " nats per byte; " + told
    if off:
        return [shape("nano_judge_position", None, reason=f"entropy not matched: {', '.join(off)}; {told}"), *found]
    return [shape("nano_judge_position", value, n=len(prompts), interval=interval, reason=told), *found]


def _arms(model: TextModel, documents: Sequence[HeldOut], trained: Trained,
          options: LabOptions) -> tuple[list[Arm], Ints]:
    """What the model and the n-grams write, the real text, and the stretches that all of them belong to."""
    told = {cut.source: by_document(cut.tokens, model.eot) for cut in cuts(documents, model.tokenizer, model.eot)}
    reference = stretches(told, trained.weights, SAMPLES)
    validation = stretches({name: trained.validation[name] for name in told if name in trained.validation},
                           trained.weights, TUNING_SAMPLES)
    entropy = histogram_entropy(validation[:, PROMPT_TOKENS:])
    arms = [Arm(name="real", new=reference[:, PROMPT_TOKENS:])]
    writers: list[tuple[str, Write, float]] = [
        ("5-gram", _ngram_writer(trained.ngram, model.eot), 1.0),
        ("model", diffusion(model.network, model.sampling, model.eot), model.sampling.temperature)]
    for number, (name, write, first) in enumerate(writers):
        options.progress(f"temperature: {name}", 0.1 + 0.3 * number)
        temperature = tuned(write, validation[:, :PROMPT_TOKENS], entropy, first, TUNING_SEED)
        options.progress(f"samples: {name}", 0.2 + 0.3 * number)
        arms.append(Arm(name=name, new=write(reference[:, :PROMPT_TOKENS], temperature, SAMPLE_SEED),
                        temperature=temperature))
    return arms, reference


def _ngram_writer(ngram: KneserNey, eot: int) -> Write:
    def write(prompts: Ints, temperature: float, seed: int) -> Ints:
        rng = np.random.default_rng(seed)
        return ngram.continued(prompts, NEW_TOKENS, temperature=temperature, never=(eot,), rng=rng)

    return write


def _write(arms: Sequence[Arm], texts: Mapping[str, Sequence[tuple[str, str]]], folder: Path) -> Path:
    """One JSON line a sample."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "eval-text-samples.jsonl"
    lines = [json.dumps({"arm": arm.name, "number": number, "temperature": arm.temperature, "prompt": before,
                         "text": text}, ensure_ascii=False)
             for arm in arms for number, (before, text) in enumerate(texts[arm.name])]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def open_trained(folder: Path, model: TextModel) -> Trained | str:
    """The built data in a folder, or why it does not fit the model."""
    from aios.training.data import load_stream, open_corpus

    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest["tokenizer_sha256"] != model.vocabulary_sha256:
        return f"{model.record.name} is cut by another tokenizer than the data in {folder.name}"
    corpus = open_corpus(folder)
    train = [stream.tokens for stream in corpus.train.values()]
    ngram = KneserNey.train(np.concatenate(train), int(model.spec["vocab_size"]), never=model.spec["tokens"]["never"])
    validation = {name: by_document(load_stream(folder / f"{name}.held_out.npz").tokens, model.eot)
                  for name in corpus.weights if name in corpus.held_out}
    return Trained(train=train, validation=validation, weights=corpus.weights, ngram=ngram)
