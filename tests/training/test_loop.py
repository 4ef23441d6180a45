"""Laws of objective, optimiser and loop."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
import torch

from aios.model.config import TransformerConfig
from aios.model.score_network import TextScoreNetwork
from aios.training import optimiser as optimisers
from aios.training.data import Corpus
from aios.training.distributed import Group
from aios.training.loop import LoopConfig, Training
from aios.training.objective import Masked, editable_spans, held_out_bound, masked_losses
from aios.training.optimiser import AdamW, MuonAdam, orthogonalise
from aios.training.precision import Precision, probe
from aios.training.vocabulary import EOT_ID, MASK_ID

CONFIG = TransformerConfig.of(32, 2, head_dim=16, time_conditioning=False)
VOCAB_SIZE = 320
NEVER_WRITTEN = tuple(index for index in range(32) if index != EOT_ID)


def network() -> TextScoreNetwork:
    torch.manual_seed(3)
    return TextScoreNetwork(CONFIG, VOCAB_SIZE, never=NEVER_WRITTEN)


def loop(steps: int) -> LoopConfig:
    return LoopConfig(seed=1, steps=steps, batch_tokens=256, lengths=(16, 32), warmup_steps=4, compile=False)


def test_every_row_has_something_to_predict() -> None:
    spans = editable_spans(400, 32, torch.Generator().manual_seed(0))
    assert spans.any(dim=1).all()
    assert (spans.all(dim=1).float().mean() > 0.5).item()
    assert (spans[:, -1] & ~spans[:, 0]).any(), "some rows continue a prefix"
    assert (~spans[:, -1] & ~spans[:, 0]).any(), "some rows fill between head and tail"
    assert ((spans[:, 1:].int() - spans[:, :-1].int()).abs().sum(dim=1) <= 2).all(), "spans are contiguous"


def test_a_network_that_knows_nothing_has_the_bound_of_the_uniform_distribution(corpus: Corpus) -> None:
    blank = network()
    with torch.no_grad():
        blank.head.embedding.weight.zero_()
    windows = corpus.held_out_windows("houses", rows=8, length=16)
    expected = math.log(VOCAB_SIZE - len(NEVER_WRITTEN))
    assert held_out_bound(blank, windows, MASK_ID, draws=2) == pytest.approx(expected, abs=1e-4)


def test_the_loss_looks_at_hidden_tokens_only(corpus: Corpus) -> None:
    ids = corpus.batch(seed=0, step=0, rows=4, length=16)
    batch = Masked().batch(ids, torch.Generator().manual_seed(0), training=True)
    states = torch.randn(4, 16, 32)
    other = torch.where(batch.where[..., None], states, torch.randn(4, 16, 32))
    net = network()
    assert torch.equal(masked_losses(net, states, batch), masked_losses(net, other, batch))


@pytest.mark.parametrize("shape", [(2, 16, 48), (2, 48, 16), (1, 24, 24)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.3 and values.max() < 1.5


def test_muon_takes_the_matrices_of_the_layers_and_adam_the_rest() -> None:
    optimiser = MuonAdam(network(), muon_lr=0.01, adam_lr=0.01)
    assert all(name.startswith("backbone.layers.") for name in optimiser.matrices)
    assert {"head.embedding.weight", "backbone.norm.weight", "backbone.modality.weight"} <= set(
        optimiser.others
    )


def test_learning_rates_warm_up_stay_and_fall_to_zero() -> None:
    config = LoopConfig(seed=0, steps=100, warmup_steps=10, decay_from=0.4)
    scales = [config.scale(step, config.progress(step, 0.0)) for step in range(101)]
    assert scales[0] == pytest.approx(0.1)
    assert scales[10:41] == pytest.approx([1.0] * 31)
    assert scales[70] == pytest.approx(0.5)
    assert scales[100] == 0.0
    timed = LoopConfig(seed=0, minutes=2.0)
    assert timed.progress(5, 60.0) == 0.5 and timed.progress(5, 600.0) == 1.0


def test_a_run_has_minutes_or_steps() -> None:
    for options in ({}, {"minutes": 1.0, "steps": 1}):
        with pytest.raises(ValueError, match="either"):
            LoopConfig(seed=0, **options)


def test_training_learns_and_logs_what_it_did(corpus: Corpus, tmp_path: Path) -> None:
    training = Training(network(), corpus, loop(60), tmp_path)
    losses = list(training.run())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 60 and rows[-1]["tokens"] == 60 * 256
    assert rows[-1]["mixture"] == pytest.approx(training.best_bound, abs=1e-3)
    assert training.best_bound < losses[0]
    assert (tmp_path / "best.safetensors").stat().st_mode & 0o077 == 0


def test_a_stopped_run_goes_on_exactly_as_if_it_had_not_stopped(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = list(Training(network(), corpus, loop(24), tmp_path / "whole").run())
    first = Training(network(), corpus, loop(24), tmp_path / "parts")
    steps = first.run()
    begun = [next(steps) for _ in range(10)]
    first.save()
    lost = [next(steps) for _ in range(11)]  # never saved: taken again after the stop
    again = Training(network(), corpus, loop(24), tmp_path / "parts")
    assert again.resume() and again.step == 10
    assert begun + list(again.run()) == whole
    assert lost == whole[10:21]
    logged = [
        json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()
    ]
    assert logged == sorted(logged)


def test_a_new_run_has_nothing_to_resume(corpus: Corpus, tmp_path: Path) -> None:
    assert not Training(network(), corpus, loop(4), tmp_path).resume()


def test_training_holds_while_the_pause_file_exists(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = tmp_path / "PAUSE"
    pause.touch()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            pause.unlink()

    monkeypatch.setattr("aios.training.checkpoints.time.sleep", sleep)
    folder = tmp_path / "run"
    folder.mkdir()
    next(Training(network(), corpus, loop(4), folder).run())
    assert len(waits) == 3


def test_adamw_is_that_of_torch() -> None:
    ours, theirs = network(), network()
    mine = AdamW(ours, lr=0.01, weight_decay=0.1)
    matrices = [p for p in theirs.parameters() if p.ndim >= 2]
    others = [p for p in theirs.parameters() if p.ndim < 2]
    reference = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                                  lr=0.01, betas=(0.9, 0.95), fused=True)  # fmt: skip
    for step in range(3):
        ids = torch.randint(40, 320, (4, 16), generator=torch.Generator().manual_seed(step))
        for one in (ours, theirs):
            torch.nn.functional.cross_entropy(one.head.project(one.hidden(ids)).flatten(0, 1), ids.flatten()).backward()
        mine.step(1.0)
        reference.step()
        reference.zero_grad()
    for name, parameter in ours.named_parameters():
        assert torch.allclose(parameter, theirs.get_parameter(name), atol=1e-6), name


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 24, 70), (2, 70, 24), (2, 30, 24)])
def test_one_matrix_after_another_is_orthogonalised_as_all_of_them_are(shape: tuple[int, ...]) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.01
    stack[0] *= torch.logspace(0, -5, shape[2])   # some directions hardly there
    torch.testing.assert_close(orthogonalise(stack), optimisers._together(stack), rtol=0, atol=3e-4)


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
@pytest.mark.parametrize("objectives", [{"masked": 0.5, "ar": 0.3, "block": 0.2}, {"entropic": 1.0}], ids=str)
def test_every_mixture_learns_and_goes_on_exactly(
    optimiser: Literal["muon", "adamw"], objectives: dict[str, float], corpus: Corpus, tmp_path: Path
) -> None:
    config = LoopConfig(seed=1, steps=40, objectives=objectives, optimiser=optimiser, batch_tokens=256, lengths=(16,),
                        adam_lr=0.01, weight_decay=0.1, clip=1.0, schedule="cosine", warmup_steps=4, compile=False,
                        precision="f32", rows_at_once=5, evaluations=2)  # fmt: skip
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = list(Training(network(), corpus, config, tmp_path / "whole").run())
    assert sum(whole[-10:]) < 0.9 * sum(whole[:10])
    begun = Training(network(), corpus, config, tmp_path / "parts")
    steps = begun.run()
    losses = [next(steps) for _ in range(12)]
    begun.stopping = True
    assert list(steps) == []
    again = Training(network(), corpus, config, tmp_path / "parts")
    assert again.resume() and again.step == 12
    assert losses + list(again.run()) == whole
    logged = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert sum("mixture" in row for row in logged) == 2
    assert ("others" in logged[-1]) == (len(objectives) > 1)


def test_objectives_are_drawn_by_their_shares(corpus: Corpus, tmp_path: Path) -> None:
    config = LoopConfig(seed=1, steps=9, objectives={"masked": 3.0, "ar": 1.0}, compile=False, precision="f32")
    training = Training(network(), corpus, config, tmp_path)
    drawn = [training.objective_of(step).name for step in range(400)]
    assert drawn.count("ar") / 400 == pytest.approx(0.25, abs=0.06)
    assert drawn == [training.objective_of(step).name for step in range(400)]


def test_rows_at_once_do_not_change_the_loss(corpus: Corpus, tmp_path: Path) -> None:
    def first_loss(rows: int) -> float:
        config = LoopConfig(seed=1, steps=2, batch_tokens=256, lengths=(16,), compile=False, rows_at_once=rows)
        return Training(network(), corpus, config, tmp_path).train_step(1.0)

    assert first_loss(0) == pytest.approx(first_loss(3), rel=1e-5)


def test_the_probe_answers_and_bf16_learns_too(corpus: Corpus, tmp_path: Path) -> None:
    assert probe(torch.device("cpu")) in ("f32", "bf16")
    config = LoopConfig(seed=1, steps=30, batch_tokens=256, lengths=(16,), compile=False, precision="bf16",
                        objectives={"ar": 1.0}, evaluations=1)  # fmt: skip
    losses = list(Training(network(), corpus, config, tmp_path).run())
    assert sum(losses[-5:]) < sum(losses[:5])


def test_integer_products_follow_the_curve_of_f32(corpus: Corpus, tmp_path: Path) -> None:
    curves = []
    precisions: tuple[Precision, ...] = ("f32", "int8")
    for precision in precisions:
        config = LoopConfig(seed=1, steps=30, batch_tokens=256, lengths=(16,), compile=False, precision=precision,
                            objectives={"ar": 1.0}, evaluations=1)  # fmt: skip
        curves.append(torch.tensor(list(Training(network(), corpus, config, tmp_path).run())))
    assert not torch.equal(curves[0], curves[1])
    assert torch.allclose(curves[0], curves[1], rtol=0.02)


def test_a_run_in_integers_goes_on_to_the_bit(corpus: Corpus, tmp_path: Path) -> None:
    config = LoopConfig(seed=1, steps=8, batch_tokens=256, lengths=(16,), compile=False, precision="int8")
    whole = list(Training(network(), corpus, config, tmp_path).run())
    (tmp_path / "parts").mkdir()
    first = Training(network(), corpus, config, tmp_path / "parts")
    losses = []
    for loss in first.run():
        losses.append(loss)
        first.stopping = len(losses) == 4
    again = Training(network(), corpus, config, tmp_path / "parts")
    assert again.resume() and losses + list(again.run()) == whole


def test_nothing_but_a_wish_makes_a_run_train_in_integers(corpus: Corpus, tmp_path: Path) -> None:
    config = LoopConfig(seed=1, steps=8, compile=False, device="cpu")
    assert config.precision == "auto" and Training(network(), corpus, config, tmp_path).precision in ("f32", "bf16")


def test_the_learning_rate_may_fall_like_a_cosine() -> None:
    config = LoopConfig(seed=0, steps=100, warmup_steps=1, schedule="cosine")
    assert [config.scale(step, step / 100) for step in (0, 50, 100)] == pytest.approx([1.0, 0.5, 0.0])


def test_several_processes_need_a_number_of_steps(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="number of steps"):
        Training(network(), corpus, LoopConfig(seed=0, minutes=1.0), tmp_path, Group(rank=0, size=2))


def test_a_run_without_objectives_is_refused() -> None:
    with pytest.raises(ValueError, match="objectives"):
        LoopConfig(seed=0, steps=1, objectives={})


def test_batches_made_ahead_are_the_same(corpus: Corpus, tmp_path: Path) -> None:
    plain, ahead = (Training(network(), corpus, loop(9), tmp_path) for _ in range(2))
    with ThreadPoolExecutor(1) as pool:
        ahead.ahead = pool
        assert [ahead.train_step(1.0) for _ in range(5)] == [plain.train_step(1.0) for _ in range(5)]
