"""The mathematics of the objectives, against enumeration of everything on a tiny vocabulary."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from aios.diffusion.processes import hide
from aios.diffusion.schedules import MaskingProfile
from aios.model.cache import AttentionMask
from aios.model.config import TransformerConfig
from aios.model.score_network import TextScoreNetwork
from aios.training.data import Corpus, Stream
from aios.training.loop import LoopConfig, Training
from aios.training.objective import (
    Autoregressive,
    BlockDiffusion,
    LeftToRight,
    Masked,
    Objective,
    block_table,
    bound,
    objective,
    weighted_loss,
)
from aios.training.vocabulary import MASK_ID

NEVER = (0, 1, 2)
VALUES = (3, 4, 5)
LENGTH = 3
SEQUENCES = torch.tensor(list(itertools.product(VALUES, repeat=LENGTH)))
CONFIG = TransformerConfig.of(16, 2, head_dim=8, time_conditioning=False)
EVERY = (Masked(), Autoregressive(), BlockDiffusion(block=1), BlockDiffusion(block=3),
         BlockDiffusion(block=3, onward=0.6, beside=0.5))  # fmt: skip


@pytest.fixture(scope="module")
def network() -> TextScoreNetwork:
    """Random weights, large enough that every token depends on every other."""
    rng = torch.Generator().manual_seed(5)
    made = TextScoreNetwork(CONFIG, 6, never=NEVER)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.6, generator=rng)
    return made.eval()


@torch.inference_mode()
def log_p(network: TextScoreNetwork, seen: torch.Tensor, **order: AttentionMask) -> torch.Tensor:
    return network.logits(network.hidden(seen, **order)).log_softmax(dim=-1)


def any_order_log_p(network: TextScoreNetwork, order: tuple[int, ...]) -> torch.Tensor:
    """log p of every sequence when its tokens are revealed one after another in this order."""
    seen, total = torch.full_like(SEQUENCES, MASK_ID), torch.zeros(len(SEQUENCES))
    for position in order:
        told = log_p(network, seen)[:, position]
        total += told.gather(1, SEQUENCES[:, position : position + 1])[:, 0]
        seen[:, position] = SEQUENCES[:, position]
    return total


def test_the_masked_bound_is_the_mean_over_all_orders_and_lies_above_the_likelihood(network: TextScoreNetwork) -> None:
    orders = torch.stack([any_order_log_p(network, one) for one in itertools.permutations(range(LENGTH))])
    assert orders.exp().sum(dim=1) == pytest.approx([1.0] * len(orders), abs=1e-4)
    exact = -orders.mean(dim=0)
    likelihood = -(orders.logsumexp(dim=0) - math.log(len(orders)))   # of the mixture of orders
    for index in (0, 7, 13, 26):
        rows = SEQUENCES[index].expand(6_000, LENGTH)
        estimate = bound(network, Masked(), rows, draws=2, rows=6_000) * LENGTH
        assert estimate == pytest.approx(float(exact[index]), rel=0.02)
        assert exact[index] >= likelihood[index] - 1e-6


def test_every_objective_agrees_with_enumerating_its_masks(network: TextScoreNetwork) -> None:
    """Block diffusion: the sum over blocks of the masked bound given the clean blocks before."""
    asked, row = BlockDiffusion(block=2), torch.tensor([[3, 5, 4, 4]])
    read = asked.reader(network, 4, torch.device("cpu"))
    expected = 0.0
    for begin in (0, 2):
        for size in (1, 2):
            for hidden in itertools.combinations((begin, begin + 1), size):
                noisy = row.clone()
                noisy[0, list(hidden)] = MASK_ID
                with torch.inference_mode():
                    told = network.logits(read(torch.cat((noisy, row), dim=1))[:, :4]).log_softmax(dim=-1)
                losses = -told[0, list(hidden), row[0, list(hidden)]].sum()
                expected += float(losses) / size / math.comb(2, size)
    estimate = bound(network, asked, row.expand(8_000, 4), draws=2, rows=8_000) * 4
    assert estimate == pytest.approx(expected, rel=0.02)


def test_blocks_of_one_token_are_autoregression(network: TextScoreNetwork) -> None:
    """No noise is left in the bound, and the probabilities of all sequences add up to one: a likelihood."""
    nats = torch.tensor([bound(network, BlockDiffusion(block=1), row[None], seed=s) * LENGTH
                         for s, row in enumerate(SEQUENCES)])  # fmt: skip
    assert float((-nats).exp().sum()) == pytest.approx(1.0, abs=1e-4)
    again = torch.tensor([bound(network, BlockDiffusion(block=1), row[None], seed=99) * LENGTH for row in SEQUENCES])
    assert torch.allclose(nats, again, atol=1e-5)


def test_autoregression_is_the_chain_rule(network: TextScoreNetwork) -> None:
    nats = torch.tensor([bound(network, Autoregressive(), row[None]) * LENGTH for row in SEQUENCES])
    assert float((-nats).exp().sum()) == pytest.approx(1.0, abs=1e-4)
    longer = torch.cat((SEQUENCES, SEQUENCES.roll(1, dims=0)), dim=1)
    beginnings = torch.tensor([bound(network, Autoregressive(), row[None, :LENGTH]) * LENGTH for row in longer])
    assert torch.allclose(nats, beginnings, atol=1e-5), "what follows does not matter"


def test_a_block_as_long_as_the_row_is_masked_diffusion(network: TextScoreNetwork) -> None:
    rows = SEQUENCES.repeat(300, 1)
    as_block = bound(network, BlockDiffusion(block=LENGTH), rows, rows=4_096)
    assert as_block == pytest.approx(bound(network, Masked(), rows, rows=4_096), rel=0.02)


def chance_of(order: tuple[int, ...], onward: float) -> float:
    """What the reveal order's definition says, token by token."""
    chance, hidden = 1.0, sorted(order)
    for position in order:
        shares = [(1 - onward) ** rank for rank in range(len(hidden))]
        chance *= shares[hidden.index(position)] / sum(shares)
        hidden.remove(position)
    return chance


@pytest.mark.parametrize("onward", [0.3, 0.8])
def test_the_bound_of_an_order_is_the_mean_over_all_orders(network: TextScoreNetwork, onward: float) -> None:
    every = list(itertools.permutations(range(LENGTH)))
    chances = torch.tensor([chance_of(one, onward) for one in every])
    assert float(chances.sum()) == pytest.approx(1.0)
    orders = torch.stack([any_order_log_p(network, one) for one in every])
    exact = -(chances[:, None] * orders).sum(dim=0)
    for index in (0, 7, 13, 26):
        rows = SEQUENCES[index].expand(6_000, LENGTH)
        estimate = bound(network, BlockDiffusion(block=LENGTH, onward=onward), rows, draws=2, rows=6_000) * LENGTH
        assert estimate == pytest.approx(float(exact[index]), rel=0.02)


def test_the_order_of_reading_is_the_likelihood_from_left_to_right(network: TextScoreNetwork) -> None:
    asked, rows = BlockDiffusion(block=LENGTH, onward=1.0), SEQUENCES[11].expand(6_000, LENGTH)
    assert bound(network, asked, rows, draws=2, rows=6_000) == pytest.approx(
        bound(network, LeftToRight(block=LENGTH), rows[:1]), rel=0.02)


def test_the_clean_side_learns_the_next_token_in_training_only(network: TextScoreNetwork) -> None:
    ids = SEQUENCES[[3, 11, 20]]
    alone, beside = (BlockDiffusion(block=3, beside=share) for share in (0.0, 0.5))
    losses = []
    for asked in (alone, beside):
        batch = asked.batch(ids, torch.Generator().manual_seed(3), training=True)
        with torch.inference_mode():
            losses.append(weighted_loss(network, asked.reader(network, LENGTH, torch.device("cpu")), batch))
    told = log_p(network, ids, mask=AttentionMask(causal=True))[:, :-1]
    following = -told.gather(2, ids[:, 1:, None]).sum() / ids.numel()
    assert torch.allclose(losses[1] - losses[0], 0.5 * following, atol=1e-5)
    assert bound(network, beside, ids) == bound(network, alone, ids)


def test_blocks_revealed_from_left_to_right_have_a_likelihood(network: TextScoreNetwork) -> None:
    whole = torch.tensor([bound(network, LeftToRight(block=LENGTH), row[None]) for row in SEQUENCES])
    assert torch.allclose(whole * LENGTH, -any_order_log_p(network, tuple(range(LENGTH))), atol=1e-5)
    rows = torch.tensor(list(itertools.product(VALUES, repeat=4)))
    nats = torch.tensor([bound(network, LeftToRight(block=2), row[None]) * 4 for row in rows])
    assert float((-nats).exp().sum()) == pytest.approx(1.0, abs=1e-4)


def test_a_noisy_block_sees_itself_and_the_clean_past_only() -> None:
    table = block_table(4, 2).int().tolist()
    assert table == [
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 1, 1, 1, 1],
    ]


def test_rows_that_do_not_divide_into_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks of 4"):
        BlockDiffusion(block=4).batch(torch.zeros(2, 6, dtype=torch.long), torch.Generator(), training=True)


@pytest.mark.parametrize("asked", [*EVERY, Masked(spans=True), Autoregressive(forget=0.5)], ids=repr)
def test_a_seed_reproduces_a_batch_and_its_parts_add_up(asked: Objective, network: TextScoreNetwork) -> None:
    ids = SEQUENCES[torch.randint(len(SEQUENCES), (8,))]
    one, again = (asked.batch(ids, torch.Generator().manual_seed(4), training=True) for _ in range(2))
    other = asked.batch(ids, torch.Generator().manual_seed(5), training=True)
    assert torch.equal(one.inputs, again.inputs) and torch.equal(one.weights, again.weights)
    assert asked == Autoregressive() or asked == BlockDiffusion(block=1) or not torch.equal(one.inputs, other.inputs)
    read = asked.reader(network, LENGTH, torch.device("cpu"))
    with torch.inference_mode():
        whole = weighted_loss(network, read, one)
        interleaved = sum(weighted_loss(network, read, one.rows(rank, 3)) for rank in range(3))
        pieces = sum(weighted_loss(network, read, piece) for piece in one.split(3))
    assert torch.allclose(whole, interleaved) and torch.allclose(whole, pieces)


def test_forgotten_context_is_masked_in_training_only() -> None:
    ids = torch.full((64, 16), 4)
    told = [Autoregressive(forget=0.3).batch(ids, torch.Generator().manual_seed(0), training=on).inputs
            for on in (True, False)]  # fmt: skip
    assert float((told[0] == MASK_ID).float().mean()) == pytest.approx(0.3, abs=0.05)
    assert not (told[1] == MASK_ID).any()


def test_an_unknown_objective_is_named() -> None:
    with pytest.raises(ValueError, match="'guess'"):
        objective("guess")


def uneven() -> MaskingProfile:
    profile = MaskingProfile()
    profile.squares = torch.linspace(0.05, 4.0, len(profile.squares), dtype=torch.float64) ** 2
    return profile


def test_a_profile_inverts() -> None:
    profile, u = uneven(), torch.rand(1000, dtype=torch.float64)
    assert torch.allclose(profile.cdf(profile.inverse(u)), u)
    assert profile.cdf(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.0, 1.0])


def test_a_profile_leaves_the_bound_as_it_is(network: TextScoreNetwork) -> None:
    rows = SEQUENCES[5].expand(40_000, LENGTH)
    every, losses = torch.ones_like(rows, dtype=torch.bool), []
    for profile in (None, uneven()):
        hidden = hide(rows, every, MASK_ID, torch.Generator().manual_seed(1), profile=profile)
        told = log_p(network, hidden.ids).gather(-1, rows[..., None])[..., 0]
        losses.append(float((-told[hidden.where] * hidden.weights).sum()))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_profile_learns_where_losses_are_large() -> None:
    profile, share = MaskingProfile(), torch.linspace(0.02, 1.0, 200)
    for _ in range(300):
        profile.observe(share, 1.0 + 9.0 * (share > 0.5))
    low, high = profile.cdf(torch.tensor(0.5)), 1 - profile.cdf(torch.tensor(0.5))
    assert high > 2 * low
    assert profile.edges().diff().min() >= 0.25 / 16 - 1e-9, "nothing is forgotten"


MOVE = torch.tensor([[0.70, 0.25, 0.05], [0.10, 0.60, 0.30], [0.45, 0.05, 0.50]])
START = torch.tensor([0.4, 0.35, 0.25])


def chain(rows: int, length: int, seed: int) -> torch.Tensor:
    """Sequences of a Markov chain whose entropy is known."""
    rng = torch.Generator().manual_seed(seed)
    ids = [torch.multinomial(START.expand(rows, 3), 1, generator=rng)[:, 0]]
    for _ in range(length - 1):
        ids.append(torch.multinomial(MOVE[ids[-1]], 1, generator=rng)[:, 0])
    return torch.stack(ids, dim=1) + VALUES[0]


def true_nats(rows: torch.Tensor) -> float:
    ids = rows - VALUES[0]
    p = START[ids[:, 0]].log().sum() + MOVE[ids[:, :-1], ids[:, 1:]].log().sum()
    return float(-p / rows.numel())


@pytest.mark.parametrize("name", ["ar", "masked", "entropic", "block"])
def test_no_bound_falls_below_the_entropy_of_a_known_source(name: str, tmp_path: Path) -> None:
    rows = chain(1024, 16, 1).numpy().astype("uint16")
    stream = Stream(tokens=rows.reshape(-1), starts=(torch.arange(1024) * 16).numpy(), bytes=rows.size)
    corpus = Corpus(train={"chain": stream}, held_out={"chain": stream}, weights={"chain": 1.0})
    config = LoopConfig(seed=1, steps=80, batch_tokens=512, lengths=(16,), objectives={name: 1.0}, compile=False,
                        warmup_steps=5, precision="f32", device="cpu", evaluations=1)  # fmt: skip
    training = Training(TextScoreNetwork(CONFIG, 6, never=NEVER), corpus, config, tmp_path)
    for _ in range(80):
        training.train_step(1.0)
    fresh = chain(800, 16, 2)
    found = bound(training.network, training.objectives[name], fresh, draws=3, rows=800)
    assert found >= true_nats(fresh) - 0.01
    assert found < math.log(len(VALUES)) - 0.05, "it has learned something"
