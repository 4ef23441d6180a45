"""An encoder of its own to judge answers by: token states of a language model that takes no part in retrieving."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from aios.config import Config, Places
from aios.engine.assembly import Assembly
from aios.engine.chat import OpenLanguage

LAYER_SHARE: Final = 0.5     # of the layers: behind them a token's state still says what the token is
LEADING: Final = 1           # tokens that are left out: the first one's state is of another scale than all others


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Tells which of several memories an answer belongs to.

    Each word of the answer looks for the word of a memory that is most like it; the mean of these cosines decides.
    Source: Zhang et al. 2020, "BERTScore", precision, with the states centred on the line-up.
    """

    language: OpenLanguage
    lower: nn.Module         # half of its network

    @classmethod
    def open(cls, places: Places, model: str) -> Judge:
        """With an installed language model; ModelMissing without it."""
        language = Assembly(Config(), places).language(model)
        backbone = language.network.backbone
        lower = copy(backbone)
        layers = backbone.layers[:max(1, int(len(backbone.layers) * LAYER_SHARE))]
        lower._modules = {**backbone._modules, "layers": layers, "norm": nn.Identity()}
        return cls(language=language, lower=lower)

    @property
    def told(self) -> str:
        """What judges, in words."""
        return f"BERTScore precision by the token states in the middle of {self.language.name}"

    def first(self, answers: Sequence[str], memories: Sequence[str]) -> list[bool]:
        """Whether the first memory is the one that each answer is most like; False for an answer without a word."""
        known = [self._states(text) for text in memories]
        centre = torch.cat(known).mean(dim=0)
        others = [functional.normalize(states - centre, dim=1) for states in known]
        found = []
        for answer in answers:
            if not answer.strip():
                found.append(False)
                continue
            own = functional.normalize(self._states(answer) - centre, dim=1)
            scores = torch.stack([(own @ other.T).amax(dim=1).mean() for other in others])
            found.append(bool(scores[0] > scores[1:].max()))
        return found

    @torch.inference_mode()
    def _states(self, text: str) -> Float[Tensor, "n d"]:
        """The states of a text's tokens in the middle of the network."""
        ids = torch.tensor([self.language.tokenizer.encode(f"\n {text.strip()}")])
        states: Tensor = self.lower(self.language.network.head.embed(ids))
        return states[0, LEADING:]
