"""Plan -> Response: encode, denoise step by step, write anew what breaks its grammar, decode."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator

import torch

from aios.contracts import Canvas, Condition, Logits, Prediction
from aios.diffusion.samplers import in_blocks
from aios.engine import remembering
from aios.engine.blame import blame
from aios.engine.repairing import Repairing
from aios.engine.router import Plan
from aios.errors import ModelError
from aios.messages import Response, State, Usage, Verdict


class Denoising:
    """A plan's denoiser with its condition bound: what the sampler calls. Counts its calls."""

    def __init__(self, plan: Plan, condition: Condition) -> None:
        self._plan = plan
        self._condition = condition
        self.calls = 0

    def __call__(self, canvas: Canvas) -> Prediction:
        self.calls += 1
        with blame(self._plan.plugin, "denoising"):
            prediction = self._plan.head.denoiser(canvas, self._condition, ())
            _check_shapes(prediction, canvas)
        if any(bool(segment.values.isnan().any()) for segment in prediction.segments):
            name = self._plan.head.model.name
            raise ModelError(f"model {name} predicted values that are no numbers",
                             remedy=f"check its files: aios models verify {name}")
        return prediction


def generate(plan: Plan) -> Generator[State, None, Response]:
    """Denoise; yields the empty canvas and then every state, one denoiser call each, and returns the answer.

    To cancel, close the generator. Same plan, instruction set and number of threads: same answer.
    """
    compute_s = 0.0
    began = time.perf_counter()
    with torch.inference_mode(), blame(plan.plugin, "encoding the request"):
        canvas, condition = plan.head.encode(plan.request, plan.length)
        condition = remembering.conditioned(condition, plan.request)
    denoising = Denoising(plan, condition)
    rng = torch.Generator().manual_seed(plan.seed)
    onward = plan.block and len(canvas.segments) == 1 and canvas.segments[0].onward
    sample = in_blocks(plan.sample, plan.block) if onward else plan.sample
    canvases = sample(denoising, canvas, plan.head.schedule, plan.steps, rng, temperature=plan.temperature)
    repairing = Repairing(plan)
    repairs: Iterator[Canvas] | None = None
    while True:
        state = _state(plan, canvas, denoising.calls)
        compute_s += time.perf_counter() - began
        yield state
        began = time.perf_counter()
        # Entered anew for every step: a suspended generator must not leave its caller in inference mode.
        with torch.inference_mode():
            following = next(canvases, None)
            if following is None and repairs is None:
                canvases = repairs = repairing.canvases(denoising, canvas, rng)
                following = next(canvases, None)
        with blame(plan.plugin, "checking its model"):
            plan.head.model.intact(False)
        if following is None:
            break
        canvas = following
    return _response(plan, canvas, denoising.calls, repairing, compute_s, began)


def _state(plan: Plan, canvas: Canvas, calls: int) -> State:
    with torch.inference_mode(), blame(plan.plugin, "showing the canvas"):
        pieces = tuple(plan.head.pieces(canvas))
    return State(step=calls, steps=max(plan.steps, calls), pieces=pieces)


def _response(plan: Plan, canvas: Canvas, calls: int, repairing: Repairing, compute_s: float,
              began: float) -> Response:
    head = plan.head
    with torch.inference_mode(), blame(plan.plugin, "decoding the canvas"):
        parts = tuple(head.decode(canvas))
        given, written = head.usage(canvas)
    with blame(plan.plugin, "checking its model"):
        head.model.intact(True)    # no answer from weights that were not checked
    compute_s += time.perf_counter() - began
    return Response(
        parts=parts, modality=frozenset({plan.request.modality}), seed=plan.seed,
        usage=Usage(prompt_tokens=given, completion_tokens=written, steps=calls, compute_ms=compute_s * 1e3),
        verdict=Verdict(
            model=head.model.name, release=head.model.release, plugin=plan.plugin, sampler=plan.sampler,
            temperature=plan.temperature, finish="stop" if written < plan.length else "length",
            memories=remembering.memories(plan.request), repairs=repairing.count, flawed=repairing.flawed,
            threads=torch.get_num_threads(), instruction_set=torch.backends.cpu.get_cpu_capability()))


def _check_shapes(prediction: Prediction, canvas: Canvas) -> None:
    """Hold a plugin's prediction against the contract before the sampler relies on it."""
    if len(prediction.segments) != len(canvas.segments):
        raise TypeError(f"{len(prediction.segments)} predictions for {len(canvas.segments)} segments")
    for predicted, segment in zip(prediction.segments, canvas.segments, strict=True):
        if segment.mask_id is not None and not isinstance(predicted, Logits):
            raise TypeError(f"{type(predicted).__name__} predicted for a token segment; Logits are needed")
        if predicted.values.shape[:2] != segment.x.shape[:2] or predicted.values.ndim != 3:
            raise TypeError(f"prediction of shape {tuple(predicted.values.shape)} for a segment of shape "
                            f"{tuple(segment.x.shape)}")
