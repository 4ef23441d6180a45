"""Laws of the shared backbone."""

from __future__ import annotations

import pytest
import torch

from aios.model.cache import KeyValueCache
from aios.model.embeddings import ModalityEmbedding, RotaryEmbedding, SinusoidalTimeEmbedding, rotate
from aios.model.heads import TextHead
from aios.model.transformer import SharedTransformer, TransformerConfig


def busy(network: torch.nn.Module) -> torch.nn.Module:
    """The network with no weight at zero, so that every part of it shows."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return network.eval()


def reach(network: torch.nn.Module, length: int) -> torch.Tensor:
    """(s, s) bool: which output positions change with which input position."""
    x = torch.randn(1, length, 32)
    seen = torch.zeros(length, length, dtype=torch.bool)
    with torch.inference_mode():
        base = network(x)
        for position in range(length):
            moved = x.clone()
            moved[0, position] += 1.0
            seen[:, position] = ((network(moved) - base).abs() > 1e-6).any(dim=-1)[0]
    return seen


def test_bidirectional_attention_sees_everything() -> None:
    assert reach(busy(SharedTransformer(32, 2, head_dim=8)), 7).all()


def test_causal_attention_sees_the_past_only() -> None:
    seen = reach(busy(SharedTransformer(32, 2, head_dim=8, attention="causal")), 7)
    assert torch.equal(seen, torch.ones(7, 7).tril().bool())


def test_block_causal_attention_sees_its_block_and_earlier_ones() -> None:
    seen = reach(busy(SharedTransformer(32, 2, head_dim=8, attention="block_causal", block_length=3)), 8)
    block = torch.arange(8) // 3
    assert torch.equal(seen, block[None, :] <= block[:, None])


@torch.inference_mode()
def test_block_causal_blocks_can_be_computed_one_after_another_with_the_cache() -> None:
    network = busy(SharedTransformer(32, 2, head_dim=8, attention="block_causal", block_length=4))
    x = torch.randn(2, 12, 32)
    cache = KeyValueCache(network.config, batch=2, length_max=12)
    parts = [network(part, cache=cache) for part in x.split(4, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), network(x), atol=1e-5, rtol=1e-5)


def test_a_full_cache_refuses_more() -> None:
    network = SharedTransformer(32, 1, head_dim=8, attention="causal")
    cache = KeyValueCache(network.config, batch=1, length_max=4)
    with pytest.raises(ValueError, match="holds 4"):
        network(torch.randn(1, 5, 32), cache=cache)


@torch.inference_mode()
def test_padding_is_invisible() -> None:
    network = busy(SharedTransformer(32, 2, head_dim=8))
    x = torch.randn(1, 9, 32)
    padding = torch.arange(9)[None] >= 6
    padded = network(x, padding=padding)
    torch.testing.assert_close(padded[:, :6], network(x[:, :6]), atol=1e-5, rtol=1e-5)
    assert padded.isfinite().all()


def test_a_fresh_network_is_the_identity_but_for_its_last_norm() -> None:
    x = torch.randn(2, 5, 64)
    out = SharedTransformer(64, 3)(x, modality=torch.ones(2, 5, dtype=torch.long), t=torch.rand(2, 5))
    torch.testing.assert_close(out, torch.nn.functional.rms_norm(x, (64,), eps=1e-6), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_time_and_modality_are_per_token() -> None:
    network = busy(SharedTransformer(32, 1, head_dim=8))
    x, t, modality = torch.randn(1, 4, 32), torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.long)
    base = network(x, t=t, modality=modality)
    later, other = t.clone(), modality.clone()
    later[0, 2], other[0, 2] = 0.7, 3
    assert not torch.allclose(network(x, t=later, modality=modality)[0, 2], base[0, 2])
    assert not torch.allclose(network(x, t=t, modality=other)[0, 2], base[0, 2])


def test_times_are_told_apart() -> None:
    sinusoids = SinusoidalTimeEmbedding(64).sinusoids(torch.linspace(0, 1, 101)[None])[0]
    distances = torch.cdist(sinusoids, sinusoids) + torch.eye(101) * 10
    assert distances.min() > 0.5


def test_rotation_keeps_lengths_and_makes_scores_depend_on_distance_only() -> None:
    rotary = RotaryEmbedding(16, 10_000.0)
    query, key = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(query_at: int, key_at: int) -> torch.Tensor:
        turned = rotate(query, *rotary(torch.tensor([[query_at]])))
        torch.testing.assert_close(turned.norm(), query.norm())
        return (turned * rotate(key, *rotary(torch.tensor([[key_at]])))).sum()

    torch.testing.assert_close(score(3, 1), score(103, 101), atol=1e-3, rtol=1e-3)
    assert not torch.isclose(score(3, 1), score(3, 2), atol=1e-3)


@pytest.mark.parametrize("width", [7, 33])
def test_odd_widths_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match="even"):
        SinusoidalTimeEmbedding(width)
    with pytest.raises(ValueError, match="even"):
        RotaryEmbedding(width, 1e4)


def test_heads_that_cannot_share_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        SharedTransformer(32, 1, num_heads=4, num_kv_heads=3)


def test_a_config_survives_plain_data() -> None:
    config = TransformerConfig.of(96, 3, num_kv_heads=1, attention="causal", qkv_bias=True)
    assert TransformerConfig(**config.to_dict()) == config
    assert SharedTransformer.from_config(config).config == config


def test_the_modality_embedding_starts_at_zero() -> None:
    assert not ModalityEmbedding(4, 8)(torch.arange(4)[None]).any()


def test_the_text_head_is_small_and_can_be_untied() -> None:
    head = TextHead(2048, 256)
    assert sum(p.numel() for p in head.parameters()) < 10_000_000
    assert torch.equal(head.project(torch.eye(256)).T, head.embedding.weight)
    assert len(list(TextHead(64, 16, tied=False).parameters())) == 2
