"""The autoregressive twin of the small model: it fills the middle behind prefix and suffix, greedily."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from aios.lab.text_model import network_of_run
from aios.lab.training_roots import TrainingRoots
from aios.model.cache import AttentionMask
from aios.model.score_network import TextScoreNetwork
from aios.text.tokenizer import TextTokenizer
from aios.training.objective import END_ID, MIDDLE_ID, PREFIX_ID, SUFFIX_ID
from aios.training.plans import result
from aios.training.vocabulary import EOT_ID, file_sha256, vocabulary_path

PLAN: Final = "nano-twin"
BARRED: Final = (EOT_ID, PREFIX_ID, SUFFIX_ID, MIDDLE_ID)   # no middle holds them
LONGER: Final = 2         # a middle that grows beyond so many times the real one is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """A finished run of the twin's plan."""

    network: TextScoreNetwork
    tokenizer: TextTokenizer
    sha256: str               # of its weights

    @classmethod
    def find(cls, roots: TrainingRoots) -> Twin | str:
        """The twin, where a finished run of its plan is at hand; else why there is none."""
        reason = f"no weights of the plan {PLAN} here: aios train run {PLAN}"
        for folder in roots.runs(PLAN):
            if result(folder) is not None:
                return cls.open(folder)
            reason = f"the training of {PLAN} is not finished: aios train run {PLAN}"
        return reason

    @classmethod
    def open(cls, folder: Path) -> Twin:
        """The best weights of one run, with the frozen vocabulary of its size."""
        network = network_of_run(folder)
        tokenizer = TextTokenizer.open(vocabulary_path(network.head.vocab_size))
        return cls(network=network, tokenizer=tokenizer, sha256=file_sha256(folder / "best.safetensors"))

    @property
    def parameters(self) -> int:
        """Of the network."""
        return sum(one.numel() for one in self.network.parameters())

    def fill(self, prefix: str, hidden: str, suffix: str) -> tuple[str, str]:
        """What it writes between the two until its end sentinel, and in as many tokens as `hidden` has.

        The second never ends early or late: the sentinel is barred until the length is full.
        """
        count = len(self.tokenizer.encode(hidden))
        before, behind = self.tokenizer.encode(prefix), self.tokenizer.encode(suffix)
        given = [EOT_ID, PREFIX_ID, *before, SUFFIX_ID, *behind, MIDDLE_ID]
        written: list[int] = []
        ended: int | None = None
        for token, ends in self._likeliest(given, written):
            ended = len(written) if ends and ended is None else ended
            if (ended is not None and len(written) >= count) or len(written) >= LONGER * count:
                break
            written.append(token)
        return self.tokenizer.decode(written[:ended]), self.tokenizer.decode(written[:count])

    @torch.inference_mode()
    def _likeliest(self, given: list[int], written: list[int]) -> Iterator[tuple[int, bool]]:
        """The likeliest next token that is no end, and whether the end was likelier; `written` grows meanwhile."""
        while True:
            ids = torch.tensor([given + written])
            states = self.network.hidden(ids, mask=AttentionMask(causal=True))
            logits = self.network.logits(states[0, -1])
            logits[list(BARRED)] = -torch.inf
            ends = bool(logits.argmax() == END_ID)
            logits[END_ID] = -torch.inf
            yield int(logits.argmax()), ends
