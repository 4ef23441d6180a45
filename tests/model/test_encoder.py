"""Laws of the sentence encoder."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from aios.model.config import EncoderConfig
from aios.model.encoder import (
    BATCH_TOKENS_MAX,
    PADDING_SHARE_MAX,
    EncoderModel,
    length_batches,
)

CONFIG = EncoderConfig(
    vocab_size=50,
    hidden_dim=32,
    num_layers=2,
    num_heads=4,
    ffn_dim=64,
    positions_max=40,
    num_types=2,
    norm_eps=1e-12,
)


def test_every_sequence_gets_its_own_unit_vector_whatever_it_is_batched_with() -> None:
    encoder = EncoderModel(CONFIG).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    sequences = [torch.randint(0, 50, (length,)).tolist() for length in (9, 3, 9, 40, 1, 10)]
    together = encoder.encode(sequences)
    alone = torch.cat([encoder.encode([sequence]) for sequence in sequences])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(6))


def test_no_sequences_give_no_vectors() -> None:
    assert EncoderModel(CONFIG).encode([]).shape == (0, 32)


@given(st.lists(st.integers(1, 512), max_size=200))
def test_batches_hold_every_row_once_with_little_padding(lengths: list[int]) -> None:
    batches = list(length_batches(lengths))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        shortest, longest = lengths[batch[0]], lengths[batch[-1]]
        assert shortest >= longest * (1 - PADDING_SHARE_MAX)
        assert len(batch) == 1 or len(batch) * longest <= BATCH_TOKENS_MAX
