"""What text training asks of a network: masked and block diffusion, the next token, filling in, and bounds on text.

Every objective turns rows of tokens into a `Batch`: what the network reads, where it is asked, and how much each
answer weighs. Weighted losses add up to nats per token of a bound on -log p (autoregression: of -log p itself), so
that the same numbers train, compare and add up over slices of a batch on several processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from aios.contracts import SamplingDefaults
from aios.diffusion.processes import Hidden, hide
from aios.diffusion.schedules import MaskingProfile
from aios.model.cache import AttentionMask
from aios.model.score_network import TextScoreNetwork
from aios.training.vocabulary import EOT_ID, MASK_ID, RESERVED

GIVEN_PREFIX_SHARE = 0.25  # rows that continue a given beginning
GIVEN_BOTH_SHARE = 0.15  # rows that fill between a given head and tail; the rest is plain masked diffusion
BOUND_SEED = (
    1_000_003  # the bound hides the same tokens whenever it is measured, so that its changes mean something
)
BOUND_BATCH_ROWS = 16
FIM_SHARE = 0.5  # of the rows; the paper finds no harm to plain text up to 0.9
PREFIX_ID, SUFFIX_ID, MIDDLE_ID, END_ID = (
    RESERVED.index(name) for name in ("<|prefix|>", "<|suffix|>", "<|middle|>", "<|end|>")
)
FIM_SENTINELS = 4

Read = Callable[[Tensor], Tensor]  # (b, n) ids -> (b, n, d) hidden states


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows to learn from: `inputs` may be longer than `targets` (the rest is context that nobody asks about)."""

    inputs: Int[Tensor, "b n"]
    targets: Int[Tensor, "b s"]
    where: Bool[Tensor, "b s"]
    weights: Float[Tensor, "b s"]  # 0 where nothing is asked

    def rows(self, first: int, step: int) -> Batch:
        """Return every `step`-th row from `first` on: one process's part."""
        part = slice(first, None, step)
        return Batch(inputs=self.inputs[part], targets=self.targets[part], where=self.where[part],
                     weights=self.weights[part])  # fmt: skip

    def split(self, rows: int) -> Iterator[Batch]:
        """Yield pieces of at most `rows` rows."""
        for begin in range(0, len(self.inputs), rows):
            part = slice(begin, begin + rows)
            yield Batch(inputs=self.inputs[part], targets=self.targets[part], where=self.where[part],
                        weights=self.weights[part])  # fmt: skip

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(inputs=self.inputs.to(device), targets=self.targets.to(device), where=self.where.to(device),
                     weights=self.weights.to(device))  # fmt: skip


@runtime_checkable
class Objective(Protocol):
    """One way to learn from text."""

    @property
    def name(self) -> str:
        """What it is called in plans, logs and results."""
        ...

    @property
    def exact(self) -> bool:
        """Whether its bound is the likelihood itself."""
        ...

    def batch(self, ids: Int[Tensor, "b s"], rng: torch.Generator, *, training: bool) -> Batch:
        """Return what to ask about these rows; spans given and tokens forgotten are for training only."""
        ...

    def reader(self, network: TextScoreNetwork, length: int, device: torch.device) -> Read:
        """Return the network in this objective's attention order, for rows of `length` targets."""
        ...

    def observe(self, batch: Batch, losses: Float[Tensor, " m"]) -> None:
        """See the losses of a training batch, in the order of `targets[where]`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """Absorbing diffusion over the whole row, in its closed form. Source: Sahoo et al. 2024 (MDLM), SUBS.

    spans: some rows are given a beginning, or a head and a tail. profile: how often each share is hidden.
    """

    spans: bool = False
    profile: MaskingProfile | None = None
    name: str = "masked"
    exact: bool = False

    def batch(self, ids: Int[Tensor, "b s"], rng: torch.Generator, *, training: bool) -> Batch:
        every = torch.ones_like(ids, dtype=torch.bool)
        editable = editable_spans(ids.shape[0], ids.shape[1], rng) if training and self.spans else every
        return _hidden_batch(ids, hide(ids, editable, MASK_ID, rng, profile=self.profile if training else None))

    def reader(self, network: TextScoreNetwork, length: int, device: torch.device) -> Read:
        return lambda ids: network.hidden(ids, mask=AttentionMask())

    def observe(self, batch: Batch, losses: Float[Tensor, " m"]) -> None:
        if self.profile is not None:
            hidden = batch.where.sum(dim=1)
            table = torch.zeros(batch.where.shape, device=losses.device).masked_scatter(batch.where, losses.float())
            self.profile.observe((hidden / batch.where.shape[1]).cpu(), (table.sum(dim=1) / hidden).cpu())


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoregressive:
    """The next token, behind a start token. forget: share of the context that is masked in training."""

    forget: float = 0.0
    name: str = "ar"
    exact: bool = True

    def batch(self, ids: Int[Tensor, "b s"], rng: torch.Generator, *, training: bool) -> Batch:
        inputs = torch.cat((torch.full_like(ids[:, :1], EOT_ID), ids[:, :-1]), dim=1)
        if training and self.forget:
            inputs = inputs.masked_fill(torch.rand(inputs.shape, generator=rng) < self.forget, MASK_ID)
        where = torch.ones_like(ids, dtype=torch.bool)
        return Batch(inputs=inputs, targets=ids, where=where, weights=where.float() / ids.numel())

    def reader(self, network: TextScoreNetwork, length: int, device: torch.device) -> Read:
        return lambda ids: network.hidden(ids, mask=AttentionMask(causal=True))

    def observe(self, batch: Batch, losses: Float[Tensor, " m"]) -> None:
        """Nothing is learned from the losses but the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FillMiddle:
    """The next token, of rows that are in training told half the time as prefix, suffix, middle; measured in order.

    Plain rows are autoregression, so that its bound is a likelihood. Source: Bavarian et al. 2022, "Efficient
    training of language models to fill in the middle" (PSM, cut between tokens).
    """

    share: float = FIM_SHARE
    name: str = "fim"
    exact: bool = True

    def batch(self, ids: Int[Tensor, "b s"], rng: torch.Generator, *, training: bool) -> Batch:
        if training:
            rows, length = ids.shape
            told = torch.rand(rows, generator=rng) < self.share
            cuts = torch.randint(length - FIM_SENTINELS + 1, (rows, 2), generator=rng).sort(dim=1).values
            ids = middle_last(ids, cuts).where(told[:, None], ids)
        return Autoregressive().batch(ids, rng, training=False)

    def reader(self, network: TextScoreNetwork, length: int, device: torch.device) -> Read:
        return Autoregressive().reader(network, length, device)

    def observe(self, batch: Batch, losses: Float[Tensor, " m"]) -> None:
        """Nothing is learned from the losses but the weights."""


def middle_last(ids: Int[Tensor, "b s"], cuts: Int[Tensor, "b 2"]) -> Int[Tensor, "b s"]:
    """Return <|prefix|> P <|suffix|> S <|middle|> M <|end|> of rows P M S; M lies between the row's two cuts.

    The row's last four tokens make room for the sentinels; cuts go from 0 to s - 4.
    """
    kept = ids.shape[1] - FIM_SENTINELS
    begin, end = cuts[:, :1], cuts[:, 1:]
    index = torch.arange(kept).expand(len(ids), -1)
    behind = torch.where(index < end, index + kept - end + 3, index - end + begin + 2)  # 3 and 2 sentinels before it
    told = torch.full_like(ids, END_ID).scatter(1, torch.where(index < begin, index + 1, behind), ids[:, :kept])
    told[:, 0] = PREFIX_ID
    told.scatter_(1, begin + 1, SUFFIX_ID)
    return told.scatter_(1, begin + kept - end + 2, MIDDLE_ID)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDiffusion:
    """Blocks one after another, each by masked diffusion: the network reads [x_t, x_0] side by side.

    Blocks of one token are autoregression, blocks as long as the row are masked diffusion. The clean side is causal,
    so that at inference a token's keys and values are kept as soon as it is known.

    onward: how strongly a block is revealed from left to right. Of k hidden tokens the i-th from the left is the next
    with a chance proportional to (1 - onward)^i: 0 is plain masked diffusion, 1 the order of reading. Any order that
    does not look at the tokens gives a valid bound: E over orders of the sum of -log p(next token | known tokens).
    beside: what the next-token loss of the clean side, which is there anyway, adds in training.
    Source: Arriola et al. 2025, "Block diffusion: interpolating between autoregressive and diffusion language models".
    """

    block: int
    onward: float = 0.0
    beside: float = 0.0
    name: str = "block"
    exact: bool = False

    def batch(self, ids: Int[Tensor, "b s"], rng: torch.Generator, *, training: bool) -> Batch:
        rows, length = ids.shape
        if length % self.block:
            raise ValueError(f"rows of {length} tokens cannot be cut into blocks of {self.block}")
        where, weights = hidden_onward(ids.numel() // self.block, self.block, self.onward, rng)
        where, weights = where.view(rows, length), weights.view(rows, length) / ids.numel()
        inputs = torch.cat((ids.masked_fill(where, MASK_ID), ids), dim=1)
        if not (training and self.beside):
            return Batch(inputs=inputs, targets=ids, where=where, weights=weights)
        follows = torch.ones_like(where).index_fill(1, torch.tensor(length - 1), False)
        added = follows.float() * self.beside / ids.numel()
        return Batch(inputs=inputs, targets=torch.cat((ids, ids.roll(-1, dims=1)), dim=1),
                     where=torch.cat((where, follows), dim=1), weights=torch.cat((weights, added), dim=1))

    def reader(self, network: TextScoreNetwork, length: int, device: torch.device) -> Read:
        mask = AttentionMask(allowed=block_table(length, self.block).to(device)[None, None])
        positions = torch.arange(length, device=device).repeat(2)
        return lambda ids: network.hidden(ids, mask=mask, positions=positions.expand(len(ids), -1))

    def observe(self, batch: Batch, losses: Float[Tensor, " m"]) -> None:
        """Nothing is learned from the losses but the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftToRight:
    """The likelihood of block diffusion where every block is revealed from left to right: measured, not trained.

    A sampler in that order is a model of its own with this denoiser; every token is asked for once, behind the known
    ones of its block and before the hidden ones.
    """

    block: int
    name: str = "block_left_to_right"
    exact: bool = True

    def batch(self, ids: Int[Tensor, "b s"], rng: torch.Generator, *, training: bool) -> Batch:
        place = (torch.arange(ids.shape[1]) % self.block).repeat(len(ids), 1)
        noisy, where = [], []
        for now in range(self.block):
            noisy.append(torch.cat((ids.masked_fill(place >= now, MASK_ID), ids), dim=1))
            where.append(place == now)
        asked = torch.stack(where, dim=1).flatten(0, 1)   # a row's questions stand together
        return Batch(inputs=torch.stack(noisy, dim=1).flatten(0, 1), targets=ids.repeat_interleave(self.block, dim=0),
                     where=asked, weights=asked.float() / ids.numel())

    def reader(self, network: TextScoreNetwork, length: int, device: torch.device) -> Read:
        return BlockDiffusion(block=self.block).reader(network, length, device)

    def observe(self, batch: Batch, losses: Float[Tensor, " m"]) -> None:
        """Nothing is learned from the losses but the weights."""


def hidden_onward(
    blocks: int, size: int, onward: float, rng: torch.Generator
) -> tuple[Bool[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Return what is hidden of each block, k uniform on 1..size and stratified, and `size` x the chance to be next.

    The order in which a block is revealed is drawn token by token; its last k tokens are hidden.
    """
    chance = (1.0 - onward) ** torch.arange(size)
    hidden = torch.ones(blocks, size, dtype=torch.bool)
    turn = torch.empty(blocks, size, dtype=torch.long)
    for now in range(size):
        of_rank = chance[(hidden.cumsum(dim=1) - 1).clamp(min=0)] * hidden
        chosen = torch.multinomial(of_rank, 1, generator=rng)
        turn.scatter_(1, chosen, now)
        hidden.scatter_(1, chosen, False)
    t = (torch.rand(1, generator=rng) + torch.randperm(blocks, generator=rng) / blocks) % 1.0
    known = (t * size).long().clamp(max=size - 1)
    hidden = turn >= known[:, None]
    of_rank = chance[(hidden.cumsum(dim=1) - 1).clamp(min=0)] * hidden
    return hidden, size * of_rank / of_rank.sum(dim=1, keepdim=True)


def block_table(length: int, block: int) -> Bool[Tensor, "n n"]:
    """Return who sees whom in [x_t, x_0]: noisy tokens their block and clean ones before it, clean ones the past."""
    index = torch.arange(length)
    own, later = index[:, None] // block, index[None, :] // block
    noisy = torch.cat((own == later, own > later), dim=1)
    clean = torch.cat((torch.zeros_like(own == later), index[:, None] >= index), dim=1)
    return torch.cat((noisy, clean))


def _hidden_batch(ids: Int[Tensor, "b s"], hidden: Hidden) -> Batch:
    weights = torch.zeros(ids.shape).masked_scatter(hidden.where, hidden.weights)
    return Batch(inputs=hidden.ids, targets=ids, where=hidden.where, weights=weights)


def objective(
    name: str, *, block: int = 4, forget: float = 0.0, onward: float = 0.0, beside: float = 0.0
) -> Objective:
    """Return an objective by name: "masked", "spans" (masked, with given beginnings and ends), "entropic" (masked,
    hiding most often what teaches most), "ar", "fim" (half of the rows with their middle last) or "block"; ValueError
    if there is none.
    """
    makers: Mapping[str, Callable[[], Objective]] = {
        "masked": lambda: Masked(),
        "spans": lambda: Masked(spans=True, name="spans"),
        "entropic": lambda: Masked(profile=MaskingProfile(), name="entropic"),
        "ar": lambda: Autoregressive(forget=forget),
        "fim": lambda: FillMiddle(),
        "block": lambda: BlockDiffusion(block=block, onward=onward, beside=beside),
    }
    if name not in makers:
        raise ValueError(f"no objective is called {name!r}; there are {', '.join(makers)}")
    return makers[name]()


def measured_by(sampling: SamplingDefaults) -> Objective:
    """Return what a model's text is measured by: the likelihood in the order of its blocks, else the masked bound."""
    return LeftToRight(block=sampling.block) if sampling.block else Masked()


def editable_spans(rows: int, length: int, rng: torch.Generator) -> Bool[Tensor, "b s"]:
    """Return which positions of each row are diffused: all, all after a prefix, or a stretch within."""
    kind = torch.rand(rows, generator=rng)
    cuts = (torch.rand(rows, 2, generator=rng) * length).long().sort(dim=1).values
    given = kind < GIVEN_PREFIX_SHARE + GIVEN_BOTH_SHARE
    begin = torch.where(given, cuts[:, 0], 0)
    end = torch.where(given & (kind >= GIVEN_PREFIX_SHARE), cuts[:, 1] + 1, length)
    index = torch.arange(length)
    return (index >= begin[:, None]) & (index < end[:, None])


def masked_losses(
    network: TextScoreNetwork, states: Float[Tensor, "b n d"], batch: Batch
) -> Float[Tensor, " m"]:
    """Return -log p in nats of every token asked for; no other position is projected onto the vocabulary."""
    return token_losses(network, *asked_of(states, batch))


def asked_of(
    states: Float[Tensor, "b n d"], batch: Batch
) -> tuple[Float[Tensor, "m d"], Int[Tensor, " m"]]:
    """Return the hidden states of the tokens asked for, and those tokens."""
    return states[:, : batch.targets.shape[1]][batch.where], batch.targets[batch.where]


def token_losses(
    network: TextScoreNetwork, asked: Float[Tensor, "m d"], targets: Int[Tensor, " m"]
) -> Float[Tensor, " m"]:
    """Return -log p in nats of each target from its hidden state."""
    return functional.cross_entropy(network.logits(asked).float(), targets, reduction="none")


def weighted_loss(network: TextScoreNetwork, read: Read, batch: Batch) -> Float[Tensor, ""]:
    """Return the batch's share of the bound in nats per token."""
    return (masked_losses(network, read(batch.inputs), batch) * batch.weights[batch.where]).sum()


@torch.inference_mode()
def bound(
    network: TextScoreNetwork,
    asked: Objective,
    windows: Int[Tensor, "b s"],
    *,
    draws: int = 1,
    seed: int = BOUND_SEED,
    rows: int = BOUND_BATCH_ROWS,
) -> float:
    """Return the objective's bound on -log p(window) in nats per token, from `draws` maskings of each window.

    An exact objective needs one draw; a bound's estimate is unbiased, whatever the number.
    """
    rng = torch.Generator().manual_seed(seed)
    draws = 1 if asked.exact else draws
    device = next(network.parameters()).device
    read = asked.reader(network, windows.shape[1], device)
    total = torch.zeros((), dtype=torch.float64)
    for _ in range(draws):
        for piece in asked.batch(windows, rng, training=False).split(rows):
            total += weighted_loss(network, read, piece.to(device)).double().cpu()
    return float(total) / draws


def held_out_bound(
    network: TextScoreNetwork, windows: Int[Tensor, "b s"], mask_id: int, *, draws: int = 1
) -> float:
    """Return the masked bound on -log p(window) in nats per token, estimated from `draws` maskings of each window."""
    assert mask_id == MASK_ID, "every AIOS vocabulary has its mask in the same place"
    return bound(network, Masked(), windows, draws=draws)
