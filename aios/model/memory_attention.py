"""What a denoiser takes from memory at every step: condition tokens that it attends to, and words that it points at.

Both stand behind the last layer, so that the layers may run as one native call, and both have a gate that starts at
zero: a network that has not learned to use them, or is given no memory, computes the same bits as without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from aios.model.blocks import RMSNorm

SOURCE: Final = "memory"            # of condition tokens: what a Hopfield retrieval found, (b, k, dim)
TRAITS: Final = "memory.traits"     # of the tokens of passages at the beginning of the canvas, (b, n, traits)
SHARE_MAX: Final = 1.0 - 1e-4       # of a token's probability that pointing may take: the rest keeps logarithms finite
FOLLOWS_START: Final = (1.0, 2.0, 2.0)  # added to scores of what stood behind the last token, the last two, three
HEAD_DIM: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOptions:
    """Shape of a network's memory: width of condition tokens, heads, traits of a token, width of the pointer."""

    dim: int
    heads: int = 4
    traits: int = 8
    pointer: int = 32

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> MemoryOptions:
        """From config.json; raises TypeError or ValueError."""
        options = cls(**told)
        if not all(isinstance(value, int) and 0 < value <= 4096 for value in options.to_dict().values()):
            raise ValueError("the memory of the network has sizes that cannot be")
        return options

    def to_dict(self) -> dict[str, int]:
        """As config.json says it."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """Condition tokens as the attention uses them: into (b, d, h k) scores, and out (b, h k, d) of them."""

    into: Float[Tensor, "b d n"]
    out: Float[Tensor, "b n d"]
    heads: int


class GatedCrossAttention(nn.Module):
    """Attention from hidden states to condition tokens, added by a gate that starts at zero.

    x + tanh(gate) * attention(norm(x), tokens). Source: Alayrac et al. 2022, "Flamingo", section 3.1.
    """

    def __init__(self, hidden_dim: int, options: MemoryOptions, eps: float) -> None:
        super().__init__()
        inner = options.heads * HEAD_DIM
        self.dim = options.dim
        self.norm = RMSNorm(hidden_dim, eps)
        self.query = nn.Linear(hidden_dim, inner, bias=False)
        self.key = nn.Linear(options.dim, inner, bias=False)
        self.value = nn.Linear(options.dim, inner, bias=False)
        self.out = nn.Linear(inner, hidden_dim, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))

    def prepared(self, tokens: Float[Tensor, "b k e"]) -> Pattern | None:
        """Return what every call needs of the tokens, which stay the same for a request; None while the gate is shut.

        scores = norm(x) W_q^T (W_k tokens)^T and out = W_o (weights W_v tokens) are products of matrices: those
        without x are multiplied here, once.
        """
        if not torch.is_grad_enabled() and not bool(self.gate):
            return None
        key, value = (states.unflatten(2, (-1, HEAD_DIM)) for states in (self.key(tokens), self.value(tokens)))
        hidden_dim = self.query.in_features
        query = self.query.weight.view(-1, HEAD_DIM, hidden_dim)  # h hd d
        out = self.out.weight.view(hidden_dim, -1, HEAD_DIM)  # d h hd
        into = torch.einsum("hed,bkhe->bdhk", query, key).flatten(2) * HEAD_DIM**-0.5
        taken = torch.einsum("bkhe,dhe->bhkd", value, out).flatten(1, 2) * self.gate.tanh()
        return Pattern(into=into, out=taken, heads=query.shape[0])

    def forward(self, x: Float[Tensor, "b s d"], pattern: Pattern) -> Float[Tensor, "b s d"]:
        weights = (self.norm(x) @ pattern.into).unflatten(2, (pattern.heads, -1)).softmax(dim=3).flatten(2)
        return torch.baddbmm(x, weights, pattern.out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passages:
    """The tokens of one row's passages as a pointer sees them; made once for a request.

    ids: (n,). before: (n, 3) the token before each of them, the one before that, and so on; -1 where there is none.
    keys: (n, width). field: (n,) log of its passage's weight, minus infinity at tokens that no passage holds.
    """

    ids: Int[Tensor, " n"]
    before: Int[Tensor, "n 3"]
    keys: Float[Tensor, "n w"]
    field: Float[Tensor, " n"]


class PassagePointer(nn.Module):
    """Mixes what a network predicts with the words of passages that it points at, by a share that starts at zero.

    p = (1 - share) p_network + share * sum_i attention_i [token i]. Where it points follows from what the network is
    about to write, from the traits of the passages' tokens, and from whether the last tokens stood before them as
    well; not from what the tokens are, or it would know the words of its lessons only. Sources: See et al. 2017, "Get
    to the point", eq. 9; traits as in Chen et al. 2017, "Reading Wikipedia to answer open-domain questions", 3.2.
    """

    def __init__(self, hidden_dim: int, options: MemoryOptions) -> None:
        super().__init__()
        self.query = nn.Linear(2 * hidden_dim, options.pointer)
        self.traits = nn.Sequential(
            nn.Linear(2 * options.traits, options.pointer), nn.GELU(), nn.Linear(options.pointer, options.pointer)
        )
        self.follows = nn.Parameter(torch.tensor(FOLLOWS_START))
        self.share = nn.Linear(hidden_dim + options.pointer + 1, 1)
        self.gate = nn.Parameter(torch.zeros(1))

    @property
    def shut(self) -> bool:
        """Whether it changes nothing."""
        return float(self.gate) <= 0.0

    def passages(self, ids: Int[Tensor, " n"], traits: Float[Tensor, "n a"]) -> Passages:
        """Return what is pointed at: tokens and their traits.

        traits: first whether a passage holds the token, then the weight of its passage, then whatever there is.
        """
        keys = self.traits(torch.cat((traits, functional.pad(traits[:-1], (0, 0, 1, 0))), dim=1))
        within, weight = traits[:, 0] > 0, traits[:, 1].clamp(min=1e-6)
        before = torch.stack([functional.pad(ids, (back, 0), value=-1)[:len(ids)] for back in (1, 2, 3)], dim=1)
        return Passages(ids=ids, before=before, keys=keys, field=weight.log().masked_fill(~within, -torch.inf))

    def forward(
        self,
        logits: Float[Tensor, "m v"],
        hidden: Float[Tensor, "m d"],
        last: Int[Tensor, "m 3"],
        embedded: Float[Tensor, "m d"],
        passages: Passages,
    ) -> Float[Tensor, "m v"]:
        """Return probabilities of tokens; `last` are the three before each, the nearest (`embedded`) first."""
        embedded = functional.rms_norm(embedded, embedded.shape[-1:])
        query = self.query(torch.cat((hidden, embedded), dim=1))
        same = (last[:, None] == passages.before).cumprod(dim=2)  # m n 3: the last one, two, three stood there too
        score = query @ passages.keys.T * passages.keys.shape[1] ** -0.5 + passages.field
        attention = (score + same.to(score.dtype) @ self.follows).softmax(dim=1)
        follows = (attention * same[:, :, 0]).sum(dim=1, keepdim=True)
        told = torch.cat((hidden, attention @ passages.keys, follows), dim=1)
        share = (torch.sigmoid(self.share(told)) * self.gate.clamp(0.0, 1.0)).clamp(max=SHARE_MAX)
        pointed = torch.zeros_like(logits).index_add(1, passages.ids, attention)
        own = logits.softmax(dim=1)
        return (1.0 - share) * own + share * pointed
