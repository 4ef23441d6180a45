"""Samplers and the bound against a Markov chain small enough to know everything about it.

A sampler joins these tests by being listed in SAMPLERS.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from aios.contracts import Canvas, Clean, Logits, Modality, Prediction, Sampler, Segment
from aios.diffusion.processes import hide, subs
from aios.diffusion.samplers import SAMPLERS, entropy
from aios.diffusion.schedules import SCHEDULES, LogLinear

LENGTH, VALUES = 3, 3
MASK = VALUES  # ids 0, 1 and 2 are data
START = torch.tensor([0.5, 0.3, 0.2])
MOVE = torch.tensor([[0.70, 0.25, 0.05], [0.10, 0.60, 0.30], [0.45, 0.05, 0.50]])
SEQUENCES = torch.tensor(list(itertools.product(range(VALUES), repeat=LENGTH)))
JOINT = START[SEQUENCES[:, 0]] * MOVE[SEQUENCES[:, :-1], SEQUENCES[:, 1:]].prod(dim=1)


def conditionals() -> torch.Tensor:
    """p(value at position | what is visible), indexed by the three visible ids, then position and value."""
    table = torch.zeros(*(VALUES + 1,) * LENGTH, LENGTH, VALUES + 1)
    for seen in itertools.product(range(VALUES + 1), repeat=LENGTH):
        visible = torch.tensor(seen)
        weights = JOINT * ((visible == SEQUENCES) | (visible == MASK)).all(dim=1)
        for position, value in itertools.product(range(LENGTH), range(VALUES)):
            table[seen][position, value] = weights[SEQUENCES[:, position] == value].sum() / weights.sum()
    return table


TABLE = conditionals()


def exact_logits(x: torch.Tensor) -> torch.Tensor:
    """The exact conditionals, with a high logit for the mask that everyone must ignore."""
    logits = TABLE[tuple(x.unbind(dim=1))].log()
    logits[..., MASK] = 9.0
    return logits


class Exact:
    """The chain's exact denoiser; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, canvas: Canvas) -> Prediction:
        self.calls += 1
        return Prediction(segments=tuple(Logits(values=exact_logits(s.x)) for s in canvas.segments))


def tokens(x: torch.Tensor, editable: torch.Tensor) -> Segment:
    positions = torch.arange(x.shape[1]).expand_as(x).unsqueeze(-1)
    return Segment(
        modality=Modality.TEXT, x=x, t=editable.float(), editable=editable, positions=positions, mask_id=MASK
    )


def masked(rows: int) -> Canvas:
    x = torch.full((rows, LENGTH), MASK)
    return Canvas(segments=(tokens(x, torch.ones_like(x, dtype=torch.bool)),))


def run(name: str, canvas: Canvas, *, steps: int, seed: int = 7, temperature: float = 1.0) -> list[Canvas]:
    rng = torch.Generator().manual_seed(seed)
    return list(SAMPLERS[name](Exact(), canvas, LogLinear(), steps, rng, temperature=temperature))


def total_variation(x: torch.Tensor) -> float:
    """Distance between the rows' empirical distribution and the chain's."""
    index = (x * torch.tensor([VALUES ** (LENGTH - 1 - i) for i in range(LENGTH)])).sum(dim=1)
    counts = torch.bincount(index, minlength=len(SEQUENCES))
    return float((counts / len(x) - JOINT).abs().sum() / 2)


# Ancestral sampling is exact in the limit of many steps, the others at one position a step.
EXACT_STEPS = {"ancestral": 100, "confidence": LENGTH, "entropy": LENGTH, "left_to_right": LENGTH}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_recovers_the_distribution_of_a_markov_chain(name: str) -> None:
    rng = torch.Generator().manual_seed(7)
    options = {"budget_nats": 0.0} if name == "entropy" else {}
    *_, last = SAMPLERS[name](Exact(), masked(20_000), LogLinear(), EXACT_STEPS[name], rng, **options)
    assert (
        total_variation(last.segments[0].x) < 0.025
    )  # 27 sequences, 20,000 rows: chance alone gives about 0.015


@pytest.mark.parametrize("name", SAMPLERS)
def test_drawing_everything_at_once_misses_the_dependence(name: str) -> None:
    *_, last = run(name, masked(40_000), steps=1)
    assert total_variation(last.segments[0].x) > 0.1


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_sampler_ends_without_masks_and_shows_every_call(sampler: Sampler, steps: int, schedule) -> None:
    denoise = Exact()
    states = list(sampler(denoise, masked(5), schedule, steps, torch.Generator().manual_seed(1)))
    assert len(states) == denoise.calls <= steps
    assert not states[-1].segments[0].masked.any()
    left = [int(state.segments[0].masked.sum()) for state in states]
    assert left == sorted(left, reverse=True)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_reproduces_every_state(name: str, temperature: float) -> None:
    first, again, other = (
        [state.segments[0].x for state in run(name, masked(64), steps=3, seed=seed, temperature=temperature)]
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    if temperature > 0:
        assert not torch.equal(first[-1], other[-1])


@pytest.mark.parametrize("name", SAMPLERS)
def test_given_positions_never_change_even_where_they_hold_the_mask(name: str) -> None:
    x = torch.tensor([[2, MASK, MASK], [MASK, MASK, 0]])
    editable = torch.tensor([[False, True, True], [False, True, False]])
    states = run(name, Canvas(segments=(tokens(x, editable),)), steps=3)
    assert all(torch.equal(state.segments[0].x[~editable], x[~editable]) for state in states)
    assert (states[-1].segments[0].x[editable] != MASK).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_canvas_without_masks_needs_no_call(name: str) -> None:
    x = torch.tensor([[0, 1, 2]])
    assert run(name, Canvas(segments=(tokens(x, torch.ones_like(x, dtype=torch.bool)),)), steps=4) == []


@pytest.mark.parametrize("name", SAMPLERS)
def test_temperature_zero_takes_the_most_likely_token(name: str) -> None:
    x = torch.tensor([[0, MASK, 0], [1, MASK, 2]])
    *_, last = run(name, Canvas(segments=(tokens(x, x == MASK),)), steps=1, temperature=0.0)
    assert torch.equal(last.segments[0].x[:, 1], exact_logits(x)[:, 1, :VALUES].argmax(dim=-1))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_serves_several_token_segments_and_leaves_latents_alone(name: str) -> None:
    text = masked(2).segments[0]
    latents = torch.randn(2, 5, 4)
    still = torch.zeros(2, 5, dtype=torch.bool)
    picture = Segment(
        modality=Modality.IMAGE, x=latents, t=still.float(), editable=still, positions=torch.zeros(2, 5, 2)
    )

    def denoise(canvas: Canvas) -> Prediction:
        first, middle, last = canvas.segments
        predicted = (Logits(values=exact_logits(s.x)) for s in (first, last))
        return Prediction(segments=(next(predicted), Clean(values=middle.x), next(predicted)))

    canvas = Canvas(segments=(text, picture, text))
    *_, end = SAMPLERS[name](denoise, canvas, LogLinear(), 3, torch.Generator().manual_seed(0))
    assert torch.equal(end.segments[1].x, latents)
    assert not any(bool(end.segments[index].masked.any()) for index in (0, 2))


def test_a_prediction_of_another_kind_is_refused() -> None:
    def denoise(canvas: Canvas) -> Prediction:
        return Prediction(segments=(Clean(values=canvas.segments[0].x.float()),))

    with pytest.raises(TypeError, match="logits"):
        list(entropy(denoise, masked(1), LogLinear(), 2, torch.Generator()))


def test_entropy_sampling_takes_what_is_certain_at_once() -> None:
    certain = torch.full((1, LENGTH, VALUES + 1), -torch.inf)
    certain[:, torch.arange(LENGTH), torch.tensor([2, 0, 1])] = 0.0
    sampled = entropy(
        lambda _: Prediction(segments=(Logits(values=certain),)),
        masked(1),
        LogLinear(),
        LENGTH,
        torch.Generator(),
    )
    states = list(sampled)
    assert len(states) == 1
    assert states[0].segments[0].x.tolist() == [[2, 0, 1]]


def test_the_bound_of_exact_conditionals_is_the_likelihood_itself() -> None:
    """Summed over every set of hidden positions: k uniform, then each set of k alike, losses times n / k."""
    for x, p in zip(SEQUENCES, JOINT, strict=True):
        bound = 0.0
        for size in range(1, LENGTH + 1):
            for positions in itertools.combinations(range(LENGTH), size):
                bound += set_loss(x, positions) / math.comb(LENGTH, size) / size
        assert bound == pytest.approx(-math.log(p), abs=1e-5)


def set_loss(x: torch.Tensor, positions: tuple[int, ...], *, spoil: float = 0.0) -> float:
    """Sum of -log p of the hidden positions; `spoil` flattens the conditionals to make them inexact."""
    seen = x.clone()
    seen[list(positions)] = MASK
    log_p = subs(exact_logits(seen[None]) * (1 - spoil), MASK)[0]
    return float(-log_p[list(positions), x[list(positions)]].sum())


@pytest.mark.parametrize("x", [[0, 0, 1], [1, 0, 2]])
def test_the_closed_form_equals_the_continuous_time_bound_of_inexact_conditionals(x: list[int]) -> None:
    """Brute force: the integral over t of E[(1 / t) * losses], each position hidden with probability t alone."""
    ids = torch.tensor(x)
    sets = [c for size in range(1, LENGTH + 1) for c in itertools.combinations(range(LENGTH), size)]
    losses = {positions: set_loss(ids, positions, spoil=0.4) for positions in sets}
    points = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    integral = sum(
        float((points ** (len(c) - 1) * (1 - points) ** (LENGTH - len(c))).mean()) * loss
        for c, loss in losses.items()
    )
    rows = ids.expand(60_000, LENGTH)
    hidden = hide(rows, torch.ones_like(rows, dtype=torch.bool), MASK, torch.Generator().manual_seed(3))
    log_p = subs(exact_logits(hidden.ids) * 0.6, MASK)
    nats = -log_p.gather(-1, rows[..., None])[..., 0][hidden.where]
    estimate = float((nats * hidden.weights).sum()) * LENGTH
    assert estimate == pytest.approx(integral, rel=0.01)
