"""The score network as samplers see it: what it reads once, and that reading once changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aios.contracts import Canvas, Logits, SamplingDefaults
from aios.diffusion.samplers import SAMPLERS, in_blocks
from aios.diffusion.schedules import LogLinear
from aios.model.config import TransformerConfig
from aios.model.denoiser import Past, TextDenoiser
from aios.model.score_network import TextScoreNetwork
from aios.training.objective import BlockDiffusion
from aios.training.samples import text_canvas, write
from aios.training.vocabulary import EOT_ID, MASK_ID

GIVEN = torch.tensor([[7, 5, 9, 4, 6], [8, 8, 3, 5, 9]])


@pytest.fixture(scope="module")
def network() -> TextScoreNetwork:
    rng = torch.Generator().manual_seed(3)
    made = TextScoreNetwork(TransformerConfig.of(16, 2, head_dim=8, time_conditioning=False), 12, never=(0, 1))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.5, generator=rng)
    return made.eval()


def values(network: TextScoreNetwork, canvas: Canvas) -> torch.Tensor:
    with torch.inference_mode():
        (told,) = TextDenoiser(network, end_ids=(EOT_ID,))(canvas).segments
    assert isinstance(told, Logits)
    return told.values


def test_a_canvas_written_onward_is_read_as_block_diffusion_was_trained(network: TextScoreNetwork) -> None:
    """The last block of a row, behind the clean blocks before it."""
    canvas = text_canvas(GIVEN[:, :4], 2, onward=True)
    ids = torch.cat((GIVEN[:, :4], torch.full((2, 2), 3)), dim=1)
    noisy = ids.clone()
    noisy[:, 4:] = MASK_ID
    read = BlockDiffusion(block=2).reader(network, 6, torch.device("cpu"))
    with torch.inference_mode():
        expected = network.logits(read(torch.cat((noisy, ids), dim=1))[:, 4:6])
    assert torch.allclose(values(network, canvas)[:, 4:], expected, atol=1e-5)


def test_what_stands_before_is_read_once_and_the_predictions_are_the_same(network: TextScoreNetwork) -> None:
    canvas = text_canvas(GIVEN, 4, onward=True)
    (segment,) = canvas.segments
    for begin, end, token in ((5, 7, 4), (7, 9, 10)):
        inside = torch.zeros_like(segment.editable)
        inside[:, begin:end] = True
        kept = replace(segment, editable=segment.editable & inside)
        fresh = replace(kept, memo=None)
        told = [values(network, Canvas(segments=(one,)))[:, begin:end] for one in (kept, fresh)]
        assert torch.allclose(*told, atol=1e-5)
        segment = replace(segment, x=segment.x.masked_fill(inside, token))
    memo = segment.memo
    assert isinstance(memo, Past) and memo.cache is not None
    assert memo.cache.length == 7, "the clean beginning is kept, what may change is not"


def test_another_beginning_is_read_anew(network: TextScoreNetwork) -> None:
    canvas = text_canvas(GIVEN, 2, onward=True)
    (segment,) = canvas.segments
    values(network, canvas)
    changed = replace(segment, x=segment.x.clone())
    changed.x[:, 1] = 10
    told = values(network, Canvas(segments=(changed,)))
    assert torch.allclose(told, values(network, Canvas(segments=(replace(changed, memo=None),))), atol=1e-5)
    assert not torch.allclose(told, values(network, canvas))


def test_nothing_behind_what_is_editable_is_seen_onward(network: TextScoreNetwork) -> None:
    canvas = text_canvas(GIVEN, 4, onward=True)
    (segment,) = canvas.segments
    first = replace(segment, editable=segment.editable & (torch.arange(9) < 7), memo=None)
    other = replace(first, x=first.x.clone())
    other.x[:, 7:] = 6
    assert torch.equal(*(values(network, Canvas(segments=(one,)))[:, 5:7] for one in (first, other)))


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_blocks_are_finished_one_after_another(network: TextScoreNetwork, sampler: str) -> None:
    canvas = text_canvas(GIVEN, 6, onward=True)
    sample = in_blocks(SAMPLERS[sampler], 2)
    masked = []
    denoise = TextDenoiser(network, end_ids=(EOT_ID,))
    with torch.inference_mode():
        for state in sample(denoise, canvas, LogLinear(), 6, torch.Generator().manual_seed(1), temperature=1.0):
            (segment,) = state.segments
            assert bool(segment.editable[:, 5:].all()), "all of it may still be shown as new"
            masked.append(segment.masked[:, 5:].view(2, 3, 2).sum(dim=2))
    for left in masked:
        begun = left < 2
        for row in range(2):
            open_blocks = [block for block in range(3) if begun[row, block] and left[row, block]]
            assert not open_blocks or not any(begun[row, open_blocks[0] + 1:])
    assert not masked[-1].any() or bool((segment.x == EOT_ID).any(dim=1).all())


def test_a_text_that_has_ended_is_not_written_on(network: TextScoreNetwork) -> None:
    calls = []

    def ending(canvas: Canvas) -> object:
        calls.append(canvas)
        told = TextDenoiser(network, end_ids=(EOT_ID,))(canvas)
        told.segments[0].values[..., EOT_ID] = 100.0
        return told

    canvas = text_canvas(GIVEN, 64, onward=True)
    sample = in_blocks(SAMPLERS["left_to_right"], 2)
    with torch.inference_mode():
        list(sample(ending, canvas, LogLinear(), 64, torch.Generator().manual_seed(1), temperature=1.0))
    assert len(calls) == 2


def test_settings_with_blocks_write_what_was_asked_for(network: TextScoreNetwork) -> None:
    sampling = SamplingDefaults(sampler="left_to_right", steps_per_token=1.0, temperature=1.0, length=8, block=2,
                                infill_sampler="confidence")
    once, calls = write(network, GIVEN, sampling=sampling, seed=4)
    again, _ = write(network, GIVEN, sampling=sampling, seed=4)
    assert torch.equal(once, again) and once.shape == (2, 8)
    assert calls == 8 or bool((once == EOT_ID).any(dim=1).all())
    between, _ = write(network, GIVEN, sampling=sampling, seed=4, tail=GIVEN[:, :2])
    assert not (between == MASK_ID).any() and not (between == EOT_ID).any()
