"""Laws of the native encoder: what it gives is what the modules give that it stands for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from aios.contracts import PackedTensor
from aios.model.config import EncoderConfig
from aios.model.encoder import EncoderModel
from aios.model.loading import Weight, load_frozen
from aios.model.packed_encoder import packed_encoder
from aios.model.quant_linear import use_activation_bits
from aios.store.quant import ArrowQuant

CONFIG = EncoderConfig(vocab_size=70, hidden_dim=64, num_layers=2, num_heads=4, ffn_dim=96, positions_max=40,
                       num_types=2, norm_eps=1e-12)
LENGTHS = (9, 3, 9, 40, 1, 10, 8, 16)


def quantized(bits: int, matrix: Tensor) -> PackedTensor:
    return ArrowQuant.quantize(matrix, bits=bits, group_size=32, symmetric=bits == 8)


def packed_network(bits: int, activation_bits: int, *, plain_words: bool = False) -> EncoderModel:
    plain = EncoderModel(CONFIG)
    generator = torch.Generator().manual_seed(3)
    state: dict[str, Weight] = {}
    for name, parameter in plain.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * 0.2 + (0.5 if "norm.weight" in name else 0.0)
        packs = parameter.ndim == 2 and min(parameter.shape) >= 32 and not (plain_words and name == "words.weight")
        state[name] = quantized(bits, drawn) if packs else drawn
    network = load_frozen(EncoderModel(CONFIG), state)
    use_activation_bits(network, activation_bits)
    return network


def sequences() -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(0, CONFIG.vocab_size, (length,), generator=generator).tolist() for length in LENGTHS]


def by_modules(network: EncoderModel) -> Tensor:
    """The vectors as torch's modules make them, which a hook asks for."""
    hook = network.norm.register_forward_hook(lambda *_: None)
    assert packed_encoder(network) is None
    vectors = network.encode(sequences())
    hook.remove()
    return vectors


@pytest.mark.parametrize("plain_words", [False, True])
@pytest.mark.parametrize("activation_bits", [16, 8])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_one_native_call_gives_the_vectors_of_the_modules(bits: int, activation_bits: int, plain_words: bool) -> None:
    network = packed_network(bits, activation_bits, plain_words=plain_words)
    handle = packed_encoder(network)
    assert handle is not None
    # Bytes make more of a difference in the last place than rounding does: it may fall to the other side.
    tolerance = 2e-5 if activation_bits == 16 else 5e-3
    torch.testing.assert_close(handle.encode(sequences()), by_modules(network), atol=tolerance, rtol=0)
    assert torch.equal(network.encode(sequences()), handle.encode(sequences()))


def test_a_text_has_the_same_bits_in_any_company() -> None:
    network = packed_network(4, 8)
    alone = torch.cat([network.encode([sequence]) for sequence in sequences()])
    assert torch.equal(network.encode(sequences()), alone)
    assert network.encode([]).shape == (0, CONFIG.hidden_dim)


def test_an_exchanged_layer_is_used_and_a_copy_has_a_life_of_its_own() -> None:
    network = packed_network(4, 16)
    before = network.encode(sequences())
    twin = copy.deepcopy(network)
    twin.layers[0].out = nn.Linear(CONFIG.hidden_dim, CONFIG.hidden_dim)
    assert packed_encoder(twin) is None
    assert not torch.allclose(twin.encode(sequences()), before)
    assert torch.equal(network.encode(sequences()), before)


def test_matrices_of_different_formats_are_left_to_the_modules() -> None:
    network = packed_network(4, 16)
    mixed = tuple(quantized(bits, torch.randn(CONFIG.hidden_dim, CONFIG.hidden_dim)) for bits in (4, 8, 4))
    state: dict[str, Weight] = {name: torch.zeros(parameter.shape) for name, parameter
                                in EncoderModel(CONFIG).named_parameters()}
    state["layers.0.qkv.weight"] = mixed
    assert packed_encoder(load_frozen(EncoderModel(CONFIG), state)) is None
    assert packed_encoder(network) is not None


def test_an_unknown_token_is_refused() -> None:
    with pytest.raises(IndexError, match="no row 70"):
        packed_network(4, 8).encode([[0, CONFIG.vocab_size]])
