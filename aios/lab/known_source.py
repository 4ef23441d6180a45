"""Whether a reported bound can be too good: tiny networks on a source whose entropy is known.

Networks are trained on sequences of a Markov chain that is drawn at run time, then judged on fresh sequences. A bound
on -log p of a model is, on average over what the source writes, at least the source's own -log p. Both are taken on the
same sequences, so that their difference has little noise. Trained networks are some way above the source, which could
hide an error; so the source's own posterior stands in for a network as well: every bound of it is the entropy itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aios.lab.report import LabOptions, Row
from aios.lab.statistics import Floats
from aios.model.cache import AttentionMask
from aios.model.config import TransformerConfig
from aios.model.score_network import TextScoreNetwork
from aios.training.vocabulary import EOT_ID

if TYPE_CHECKING:
    from aios.training.objective import Objective

STATES: Final = 6
SPECIAL: Final = 3              # ids before the first state: padding, mask, end of text
LENGTH, BLOCK = 16, 4
CONCENTRATION: Final = 0.4      # of the rows of the chain: some steps are nearly certain, some nearly random
SEQUENCES: Final = 2048         # to learn from
GROUPS, GROUPS_QUICK = 128, 48  # of fresh sequences
GROUP_ROWS: Final = 64          # a group's maskings are spread evenly over all shares of masks
DRAWS: Final = 4
STEPS, STEPS_QUICK = 300, 100
ERRORS: Final = 4.0             # standard errors: of ten correct figures, one is further off in 3,000 runs
SHAPE: Final = TransformerConfig.of(16, 2, head_dim=8, time_conditioning=False)
OBJECTIVES: Final[Mapping[str, tuple[float, float]]] = {      # label -> onward and beside of block diffusion
    "ar": (0.0, 0.0), "masked": (0.0, 0.0), "entropic": (0.0, 0.0), "block": (0.0, 0.0), "block onward": (0.5, 1.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A Markov chain over states 0 to n - 1."""

    start: Floats
    move: Floats

    @classmethod
    def drawn(cls, seed: int) -> Chain:
        """A chain that no one has seen before."""
        rng = np.random.default_rng(seed)
        return cls(start=rng.dirichlet(np.ones(STATES)), move=rng.dirichlet(np.full(STATES, CONCENTRATION), STATES))

    def write(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """(rows, LENGTH) token ids."""
        found = np.empty((rows, LENGTH), dtype=np.int64)
        limits, states = self.start.cumsum()[None], np.zeros(rows, dtype=np.int64)
        for at in range(LENGTH):
            states = np.minimum((rng.random((rows, 1)) >= limits).sum(axis=1), STATES - 1)
            found[:, at], limits = states, self.move.cumsum(axis=1)[states]
        return found + SPECIAL

    def nats(self, ids: np.ndarray) -> Floats:
        """-log p of each row, per token."""
        states = ids - SPECIAL
        p = np.log(self.start[states[:, 0]]) + np.log(self.move[states[:, :-1], states[:, 1:]]).sum(axis=1)
        found: Floats = -p / LENGTH
        return found


class Knowing(TextScoreNetwork):
    """The chain's own posterior of every token, given what an objective lets a network see. States are log p."""

    def __init__(self, chain: Chain) -> None:
        super().__init__(SHAPE, SPECIAL + STATES)
        self.start, self.move = torch.from_numpy(chain.start), torch.from_numpy(chain.move)

    def hidden(self, ids: Tensor, *, mask: AttentionMask | None = None, **_order: Any) -> Tensor:
        """Return log p (b, s, v); the order of the objective is known by its attention."""
        if mask is not None and mask.causal:
            p = torch.where((ids == EOT_ID)[..., None], self.start, self.move[(ids - SPECIAL).clamp_min(0)])
        elif mask is not None and mask.allowed is not None:
            noisy, clean = ids.chunk(2, dim=1)
            before = self.move[clean[:, BLOCK - 1:-1:BLOCK] - SPECIAL]
            first = torch.cat((self.start.expand(len(ids), 1, -1), before), dim=1).flatten(0, 1)
            p = self._posterior(noisy.reshape(-1, BLOCK), first).view(*noisy.shape, -1)
            p = torch.cat((p, torch.ones_like(p)), dim=1)
        else:
            p = self._posterior(ids, self.start.expand(len(ids), -1))
        return functional.pad(p.log(), (SPECIAL, 0), value=-torch.inf)

    def _posterior(self, ids: Tensor, first: Tensor) -> Tensor:
        """p of each state at each place of rows with hidden tokens; `first` is that of the first place alone."""
        known = functional.one_hot((ids - SPECIAL).clamp_min(0), STATES).double()
        seen = torch.where((ids < SPECIAL)[..., None], torch.ones_like(known), known)
        forward, backward = [first * seen[:, 0]], [torch.ones_like(first)]
        for at in range(1, ids.shape[1]):
            forward.append(functional.normalize(forward[-1] @ self.move * seen[:, at], p=1, dim=-1))
            backward.append(functional.normalize((seen[:, -at] * backward[-1]) @ self.move.T, p=1, dim=-1))
        p = torch.stack(forward, dim=1) * torch.stack(backward[::-1], dim=1)
        return functional.normalize(p, p=1, dim=-1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the states."""
        return hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One objective: how far its bound lies above the source's own -log p (nats per token), and the standard error."""

    name: str
    gap: float
    error: float

    @property
    def violation(self) -> float:
        """How far the bound lies below the source, beyond what chance explains."""
        return max(0.0, -self.gap - ERRORS * self.error)

    def __str__(self) -> str:
        return f"{self.name} {self.gap:+.4f} (standard error {self.error:.4f})"


def rows(options: LabOptions) -> list[Row]:
    """The worst violation of all objectives, judged on one chain."""
    chain, rng = Chain.drawn(options.seed), np.random.default_rng((options.seed, 1))
    known = chain.write(SEQUENCES, rng)
    groups = GROUPS_QUICK if options.quick else GROUPS
    fresh = chain.write(groups * GROUP_ROWS, rng)
    found: list[Judged] = []
    with tempfile.TemporaryDirectory(prefix="aios-source-") as scratch:
        for number, name in enumerate(OBJECTIVES):
            options.progress(f"a source of known entropy: {name}", number / len(OBJECTIVES))
            network, asked = trained(name, known, Path(scratch) / str(number),
                                     STEPS_QUICK if options.quick else STEPS)
            for prefix, reader in (("", network), ("exact ", Knowing(chain))):
                found += [judged(prefix + label.replace(asked.name, name), chain, fresh, measure, groups)
                          for label, measure in measures(reader, asked, torch.from_numpy(fresh))]
    worst = max(found, key=lambda one: one.violation)
    entropy = float(chain.nats(fresh).mean())
    return [Row(metric="synthetic_bound_violation", value=round(worst.violation, 5), unit="nats", better="lower",
                must=0.0, aim=0.0, n=len(fresh), reason=(
                    f"a chain of {STATES} states drawn by the seed, {entropy:.4f} nats per token; the bounds above it: "
                    + ", ".join(map(str, found)) + f"; \"exact\" has the source's own posterior for a network; "
                    f"a violation counts beyond {ERRORS:g} standard errors"))]


def trained(label: str, ids: np.ndarray, folder: Path, steps: int) -> tuple[TextScoreNetwork, Objective]:
    """A tiny network after some steps of the training loop, and the objective that it learned by."""
    from aios.training.data import Corpus, Stream
    from aios.training.loop import LoopConfig, Training

    name, (onward, beside) = label.split()[0], OBJECTIVES[label]
    stream = Stream(tokens=ids.reshape(-1).astype(np.uint16), starts=np.arange(len(ids)) * LENGTH, bytes=ids.size)
    corpus = Corpus(train={"chain": stream}, held_out={"chain": stream}, weights={"chain": 1.0})
    config = LoopConfig(seed=1, steps=steps, batch_tokens=512, lengths=(LENGTH,), objectives={name: 1.0}, block=BLOCK,
                        onward=onward, beside=beside, compile=False, warmup_steps=5, precision="f32", device="cpu",
                        evaluations=1)
    torch.manual_seed(1)
    network = TextScoreNetwork(SHAPE, SPECIAL + STATES, never=tuple(range(SPECIAL)))
    folder.mkdir(parents=True)
    training = Training(network, corpus, config, folder)
    for step in range(steps):
        training.train_step(config.scale(step, step / steps))
    return training.network.eval(), training.objectives[name]


Measure = Callable[[int, int], float]      # first and last row -> nats per token of these


def measures(network: TextScoreNetwork, asked: Objective, fresh: Tensor) -> list[tuple[str, Measure]]:
    """Every figure that is reported of an objective, as a function of which sequences."""
    from aios.training.objective import BlockDiffusion, LeftToRight, bound

    def measure(told: Objective) -> Measure:
        return lambda begin, end: bound(network, told, fresh[begin:end], draws=DRAWS, seed=begin, rows=GROUP_ROWS)

    found = [(asked.name, measure(asked))]
    if isinstance(asked, BlockDiffusion):
        found.append((f"{asked.name} left to right", measure(LeftToRight(block=asked.block))))
    return found


def judged(name: str, chain: Chain, fresh: np.ndarray, measure: Measure, groups: int) -> Judged:
    """The mean difference between bound and source, group by group, on the same sequences."""
    size = len(fresh) // groups
    differences = np.array([measure(begin, begin + size) - float(chain.nats(fresh[begin:begin + size]).mean())
                            for begin in range(0, groups * size, size)])
    return Judged(name=name, gap=float(differences.mean()), error=float(differences.std(ddof=1) / np.sqrt(groups)))
