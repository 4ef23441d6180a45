"""The laws every head keeps, whatever it writes. `aios plugins check` and authors' own tests hold heads to them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from aios.config import Config, ModelSection, Places
from aios.contracts import Canvas, Head, OpenHead, Segment
from aios.diffusion.samplers import SAMPLERS
from aios.engine.arrow import ArrowEngine
from aios.engine.assembly import Assembly
from aios.engine.blame import blame
from aios.errors import AiosError, ModelMissing
from aios.messages import Diffuse, Generation, Infill, Response
from aios.registry.registry import Registry
from aios.testing.fake import FakePlugin
from aios.testing.plugin import LoadedPlugin

LENGTH = 8      # new tokens of a trial: enough for several steps, little for a big head
STEPS = 3
CONFIG = Config(model=ModelSection(threads=1))   # several threads wait for each other on a busy machine
SEED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One law and how it went; `ok` is None where it could not be tried."""

    law: str
    ok: bool | None
    detail: str = ""


class BrokenLaw(AssertionError):
    """A head did not keep a law; the message says what it did instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One head under trial: opened, with the engine that would serve it."""

    head: OpenHead
    engine: ArrowEngine
    requests: tuple[Generation, ...]

    def canvases(self) -> Iterator[tuple[Generation, Canvas]]:
        """The canvas each request starts from."""
        for request in self.requests:
            yield request, self.head.encode(request, LENGTH)[0]


def hold(truth: bool, otherwise: str) -> None:
    """Raises BrokenLaw; an assert would not hold under `python -O`."""
    if not truth:
        raise BrokenLaw(otherwise)


def given_positions_are_clean_and_open_ones_are_noise(trial: Trial) -> None:
    """`encode` gives segments of one shape, noise exactly where something may be written."""
    for request, canvas in trial.canvases():
        hold(bool(canvas.segments), f"no segment for {type(request).__name__}")
        hold(any(bool(segment.editable.any()) for segment in canvas.segments), "nothing may be written")
        for segment in canvas.segments:
            _check_segment(segment)


def _check_segment(segment: Segment) -> None:
    shape = tuple(segment.x.shape[:2])
    for name in ("t", "editable", "positions"):
        found = tuple(getattr(segment, name).shape[:2])
        hold(found == shape, f"{name} is of shape {found}, x of shape {shape}")
    if segment.mask_id is not None:
        masked = segment.x == segment.mask_id
        hold(torch.equal(masked, segment.editable), "masks and editable positions are not the same")


def the_denoiser_predicts_numbers_and_changes_nothing(trial: Trial) -> None:
    """One prediction a segment, typed and shaped as the contract says, without touching the canvas."""
    for request in trial.requests:
        canvas, condition = trial.head.encode(request, LENGTH)
        before = [segment.x.clone() for segment in canvas.segments]
        prediction = trial.head.denoiser(canvas.at(1.0), condition, ())
        hold(len(prediction.segments) == len(canvas.segments), "not one prediction a segment")
        for predicted, segment, kept in zip(prediction.segments, canvas.segments, before, strict=True):
            hold(predicted.values.shape[:2] == segment.x.shape[:2], "a prediction of another shape than its segment")
            hold(not bool(predicted.values.isnan().any()), "a prediction that is no number")
            hold(torch.equal(segment.x, kept), "the denoiser wrote on the canvas")


def every_sampler_fills_the_canvas_and_leaves_given_positions_alone(trial: Trial) -> None:
    """With the engine's own samplers nothing stays masked and nothing given changes."""
    for request in trial.requests:
        canvas, condition = trial.head.encode(request, LENGTH)
        if any(segment.mask_id is None for segment in canvas.segments):
            continue    # the samplers for latents are not here yet
        for name, sample in SAMPLERS.items():
            *_, last = sample(lambda now, given=condition: trial.head.denoiser(now, given, ()), canvas,
                              trial.head.schedule, STEPS, torch.Generator().manual_seed(SEED), temperature=1.0)
            for before, after in zip(canvas.segments, last.segments, strict=True):
                hold(not bool(after.masked.any()), f"{name} left positions masked")
                hold(torch.equal(before.x[~before.editable], after.x[~before.editable]), f"{name} changed the given")
            hold(None not in trial.head.pieces(last), "a finished canvas shows open positions")


def answers_have_parts_and_honest_usage(trial: Trial) -> None:
    """Every part holds either text or bytes of its MIME type; tokens are counted."""
    for request in trial.requests:
        answer = _ask(trial, request)
        hold(bool(answer.parts), "an answer without parts")
        for part in answer.parts:
            hold((part.text is None) != (part.data is None), "a part holds either text or bytes")
            hold(part.mime.count("/") == 1, f"{part.mime!r} is no MIME type")
        hold(answer.usage.prompt_tokens >= 0, "a negative number of given tokens")
        hold(0 <= answer.usage.completion_tokens <= LENGTH, "more new tokens than were asked for")


def the_same_seed_gives_the_same_answer(trial: Trial) -> None:
    """Two runs with one seed agree in every part."""
    for request in trial.requests:
        hold(_ask(trial, request).parts == _ask(trial, request).parts, f"{type(request).__name__} differs")


def empty_and_strange_texts_are_answered_or_refused(trial: Trial) -> None:
    """No prompt makes the head raise anything but an error of aios."""
    for prompt in ("", "\0", "\ud800", "é漢🙂", "x" * 5000):
        for request in (Diffuse(prompt=prompt, modality=_modality(trial), length=2, steps=1, seed=SEED),
                        Infill(prefix=prompt, suffix=prompt, modality=_modality(trial), length=2, steps=1, seed=SEED)):
            try:
                _ask(trial, request)
            except AiosError as error:
                hold(error.code == "input.invalid", f"{prompt[:10]!r}: {error.message}")


LAWS: tuple[Callable[[Trial], None], ...] = (
    given_positions_are_clean_and_open_ones_are_noise,
    the_denoiser_predicts_numbers_and_changes_nothing,
    every_sampler_fills_the_canvas_and_leaves_given_positions_alone,
    answers_have_parts_and_honest_usage,
    the_same_seed_gives_the_same_answer,
    empty_and_strange_texts_are_answered_or_refused,
)


def judge(plugin: LoadedPlugin, places: Places | None = None) -> list[Finding]:
    """Load a plugin and hold each of its heads to every law; raises PluginError when it cannot be loaded.

    Models come from `places`, by default from a scratch home with those that ship with AIOS.
    """
    registry = plugin.registry()
    with tempfile.TemporaryDirectory(prefix="aios-") as scratch:
        home = places or Places(**dict.fromkeys(("config", "data", "state", "cache", "runtime"), Path(scratch)))
        return list(judge_heads(registry, home))


def judge_heads(registry: Registry, places: Places) -> Iterator[Finding]:
    """Hold every head of a registry to every law."""
    threads = torch.get_num_threads()
    try:
        for name, head in registry.heads():
            yield from _judge_head(name, head, places)
    finally:
        torch.set_num_threads(threads)


def broken_laws(plugin: LoadedPlugin, places: Places | None = None) -> list[Finding]:
    """The findings of `judge` that are not ok, for `assert broken_laws(plugin) == []`."""
    return [finding for finding in judge(plugin, places) if finding.ok is False]


def _judge_head(name: str, head: Head, places: Places) -> Iterator[Finding]:
    what = f"{head.modality} head"
    alone = Registry()
    alone.add(name, FakePlugin(head))
    try:
        opened = Assembly(CONFIG, places).head(name, head, None, head.modality)
    except ModelMissing as error:
        yield Finding(law=f"{what}: opens", ok=None, detail=f"{error.message}; {error.remedy}")
        return
    except AiosError as error:
        yield Finding(law=f"{what}: opens", ok=False, detail=error.message)
        return
    requests = (
        Diffuse(prompt="def first(items", modality=head.modality, length=LENGTH, steps=STEPS, seed=SEED),
        Infill(prefix="print(max([1, 2", suffix="))", modality=head.modality, length=LENGTH, steps=STEPS, seed=SEED))
    trial = Trial(head=opened, requests=requests,
                  engine=ArrowEngine.open(CONFIG, places=places, registry=alone))
    for law in LAWS:
        title = f"{what}: {law.__name__.replace('_', ' ')}"
        try:
            with torch.inference_mode(), blame(name, "being checked"):
                law(trial)
        except AiosError as error:
            broken = isinstance(error.__cause__, BrokenLaw)
            yield Finding(law=title, ok=False, detail=str(error.__cause__) if broken else error.message)
        else:
            yield Finding(law=title, ok=True)


def _ask(trial: Trial, request: Generation) -> Response:
    quanta = trial.engine.ask(request)
    while True:
        try:
            next(quanta)
        except StopIteration as done:
            response: Response = done.value
            return response


def _modality(trial: Trial) -> str:
    return trial.requests[0].modality
