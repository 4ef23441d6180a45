"""Light heads: how one modality enters the backbone and leaves it."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from aios.model.quant_linear import QuantEmbedding

EMBEDDING_STD = 0.02  # GPT-2's; small enough that a tied projection starts near the uniform distribution


class TextHead(nn.Module):
    """Token ids to embeddings, and hidden states to logits over the vocabulary."""

    def __init__(self, vocab_size: int, hidden_dim: int, *, tied: bool = True) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        embedding = nn.Embedding(vocab_size, hidden_dim)
        nn.init.normal_(embedding.weight, std=EMBEDDING_STD)
        self.embedding: nn.Embedding | QuantEmbedding = embedding
        self.projection = None if tied else nn.Linear(hidden_dim, vocab_size, bias=False)

    def embed(self, ids: Int[Tensor, "b s"]) -> Float[Tensor, "b s d"]:
        """Return the embeddings of `ids`."""
        embedded: Tensor = self.embedding(ids)
        return embedded

    def project(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Return logits over the vocabulary."""
        if self.projection is not None:
            logits: Tensor = self.projection(hidden)
            return logits
        if isinstance(self.embedding, QuantEmbedding):
            return self.embedding.project(hidden)
        return nn.functional.linear(hidden, self.embedding.weight)
