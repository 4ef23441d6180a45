"""Laws of the packed layers: they compute what their dequantised weights would, in every network and under autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from aios.contracts import PackedTensor
from aios.errors import ModelCorrupt
from aios.model.encoder import EncoderModel
from aios.model.imports import import_language_model
from aios.model.loading import load_exactly, load_frozen, unfilled
from aios.model.quant_linear import (
    QuantEmbedding,
    QuantLinear,
    StackedLinear,
    linear_together,
    stack_rows,
    use_activation_bits,
)
from aios.model.score_network import ARCHITECTURE, TextScoreNetwork
from aios.model.transformer import TransformerConfig
from aios.store.quant import ArrowQuant

FORMATS = [(8, 32, True), (4, 64, False), (2, 128, False)]
CLOSE = {"atol": 2e-4, "rtol": 2e-4}


def packed(rows: int, columns: int, bits: int = 4, group_size: int = 32, symmetric: bool = False,
           rank: int = 0) -> PackedTensor:
    return ArrowQuant.quantize(torch.randn(rows, columns) * 0.2, bits=bits, group_size=group_size,
                               symmetric=symmetric, rank=rank)


def pack_matrices(state: dict[str, Tensor], **format: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Every matrix of a state packed, and the same state with what the packed ones stand for."""
    quantised: dict[str, Any] = {
        name: ArrowQuant.quantize(tensor, **format) if tensor.ndim == 2 else tensor for name, tensor in state.items()}
    dense = {name: ArrowQuant.dequantize(tensor) if isinstance(tensor, PackedTensor) else tensor
             for name, tensor in quantised.items()}
    return quantised, dense


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), FORMATS)
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3), (0,)])
def test_a_packed_layer_is_the_linear_map_of_its_weights(bits: int, group_size: int, symmetric: bool, rank: int,
                                                         shape: tuple[int, ...]) -> None:
    weight = packed(45, 70, bits, group_size, symmetric, rank)
    bias, x = torch.randn(45), torch.randn(*shape, 70)
    expected = torch.nn.functional.linear(x, ArrowQuant.dequantize(weight), bias)
    torch.testing.assert_close(QuantLinear(weight, bias)(x), expected, **CLOSE)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("tokens", [1, 7, 20])
def test_activations_of_8_bits_round_a_little_more_alone_and_together(bits: int, tokens: int) -> None:
    layers = [QuantLinear(packed(rows, 150, bits)) for rows in (45, 64)]
    x = torch.randn(tokens, 150)
    exact = [torch.nn.functional.linear(x, layer.packed.dense()) for layer in layers]
    use_activation_bits(torch.nn.ModuleList(layers), 8)
    alone, together = [layer(x) for layer in layers], linear_together(layers, x)
    for expected, one, other in zip(exact, alone, together, strict=True):
        assert torch.equal(one, other)
        assert 1e-4 < (one - expected).norm() / expected.norm() < 0.02
    with pytest.raises(ValueError, match="12 bits"):
        use_activation_bits(layers[0], 12)


def test_a_packed_embedding_gives_rows_and_logits_of_one_matrix() -> None:
    weight = packed(50, 64, rank=3)
    dense, layer = ArrowQuant.dequantize(weight), QuantEmbedding(weight)
    ids = torch.tensor([[0, 49, 7], [7, 7, 1]], dtype=torch.int32)
    torch.testing.assert_close(layer(ids), dense[ids])
    hidden = torch.randn(2, 64)
    torch.testing.assert_close(layer.project(hidden), hidden @ dense.T, **CLOSE)
    torch.testing.assert_close(layer.packed.dense(), dense)
    use_activation_bits(layer, 8)
    assert 1e-4 < apart(layer.project(hidden), hidden @ dense.T) < 0.03


def test_inputs_need_not_be_contiguous() -> None:
    layer, x = QuantLinear(packed(33, 40)), torch.randn(40, 6)
    torch.testing.assert_close(layer(x.T), layer(x.T.contiguous()))
    torch.testing.assert_close(layer(x.T.double()), layer(x.T))


def test_gradients_reach_the_input() -> None:
    layer = QuantLinear(packed(33, 40, rank=2), torch.randn(33))
    dense = layer.packed.dense()
    x = torch.randn(5, 40, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    layer(x).square().sum().backward()
    assert layer.bias is not None
    torch.nn.functional.linear(twin, dense, layer.bias).square().sum().backward()
    torch.testing.assert_close(x.grad, twin.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:The .grad attribute")   # of torch's own check
@pytest.mark.parametrize("grad", [False, True])
def test_the_operators_keep_the_laws_of_torch(grad: bool) -> None:
    parts = QuantLinear(packed(33, 40)).packed.parts
    torch.library.opcheck(torch.ops.aios.packed_linear.default, (torch.randn(3, 40, requires_grad=grad), *parts))
    torch.library.opcheck(torch.ops.aios.packed_rows.default, (torch.tensor([[4, 32]]), *parts))
    torch.library.opcheck(torch.ops.aios.packed_dense.default, parts)


def test_inputs_of_another_width_are_refused() -> None:
    layer = QuantLinear(packed(33, 40))
    with pytest.raises(ValueError, match="width 80"):
        layer(torch.randn(2, 80))
    with pytest.raises(IndexError):
        QuantEmbedding(packed(33, 40))(torch.tensor([33]))


def test_a_copied_network_reads_the_same_codes() -> None:
    layer = QuantLinear(packed(33, 40))
    twin = copy.deepcopy(layer)
    assert twin.packed is layer.packed
    assert repr(layer) == "QuantLinear(33 x 40, 4 bits, groups of 32, asymmetric, rank 0)"


def test_matrices_of_whole_panels_become_one() -> None:
    parts = packed(32, 40), packed(64, 40)
    whole = stack_rows(parts)
    assert whole is not None
    torch.testing.assert_close(ArrowQuant.dequantize(whole), torch.cat([ArrowQuant.dequantize(p) for p in parts]))
    assert stack_rows((packed(33, 40), packed(32, 40))) is None
    assert stack_rows((packed(32, 40), packed(32, 40, bits=8))) is None
    assert stack_rows((packed(32, 40, rank=1), packed(32, 40))) is None


SHAPE = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6,
         "intermediate_size": 80, "max_position_embeddings": 64}


@torch.inference_mode()
@pytest.mark.parametrize(("bits", "group_size", "symmetric"), FORMATS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_packed_language_model_equals_its_dequantised_twin(bits: int, group_size: int, symmetric: bool,
                                                             tied: bool) -> None:
    config = {**SHAPE, "model_type": "qwen2", "num_key_value_heads": 3, "tie_word_embeddings": tied}
    state = random_language_state(config, tied)
    quantised, dense = pack_matrices(state, bits=bits, group_size=group_size, symmetric=symmetric)
    ids = torch.randint(0, 97, (2, 11))
    logits = [head.project(backbone(head.embed(ids)))
              for backbone, head in (import_language_model(config, tensors) for tensors in (quantised, dense))]
    torch.testing.assert_close(logits[0], logits[1], **CLOSE)


def random_language_state(config: dict[str, Any], tied: bool) -> dict[str, Tensor]:
    wide, narrow, ffn = config["hidden_size"], 24, config["intermediate_size"]
    layer = {"input_layernorm.weight": (wide,), "post_attention_layernorm.weight": (wide,),
             "self_attn.q_proj.weight": (wide, wide), "self_attn.k_proj.weight": (narrow, wide),
             "self_attn.v_proj.weight": (narrow, wide), "self_attn.o_proj.weight": (wide, wide),
             "self_attn.q_proj.bias": (wide,), "self_attn.k_proj.bias": (narrow,), "self_attn.v_proj.bias": (narrow,),
             "mlp.gate_proj.weight": (ffn, wide), "mlp.up_proj.weight": (ffn, wide),
             "mlp.down_proj.weight": (wide, ffn)}
    shapes = {f"model.layers.{index}.{name}": shape for index in range(2) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (97, wide), "model.norm.weight": (wide,)}
    shapes |= {} if tied else {"lm_head.weight": (97, wide)}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


@torch.inference_mode()
def test_a_packed_score_network_equals_its_dequantised_twin() -> None:
    config = TransformerConfig.of(64, 2, head_dim=16)
    spec = {"model_type": ARCHITECTURE, "transformer": config.to_dict(), "vocab_size": 40,
            "tokens": {"mask": 1, "eot": 2, "never": [0]}}
    network = TextScoreNetwork(config, 40)
    state = {name: torch.randn_like(parameter) * 0.2 for name, parameter in network.named_parameters()}
    quantised, dense = pack_matrices(state, bits=4)
    ids, t = torch.randint(0, 40, (2, 7)), torch.rand(2, 7)
    packed_network, twin = (TextScoreNetwork.open(spec, tensors) for tensors in (quantised, dense))
    rounded, expected = packed_network(ids, t=t), twin(ids, t=t)
    use_activation_bits(packed_network, 16)
    torch.testing.assert_close(packed_network(ids, t=t), expected, atol=1e-3, rtol=1e-3)
    assert 1e-3 < apart(rounded, expected) < 0.03


def apart(x: Tensor, expected: Tensor) -> float:
    """The relative distance of what is finite."""
    finite = expected.isfinite()
    assert torch.equal(finite, x.isfinite())
    return float((x - expected)[finite].norm() / expected[finite].norm())


BERT = {"model_type": "bert", "vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 80, "max_position_embeddings": 32, "type_vocab_size": 2}


def random_bert_state(width: int) -> dict[str, Tensor]:
    def linear(name: str, rows: int, columns: int) -> dict[str, Tensor]:
        return {f"{name}.weight": torch.randn(rows, columns) * 0.2, f"{name}.bias": torch.randn(rows) * 0.2}

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}

    state = {f"embeddings.{name}.weight": torch.randn(rows, width) for name, rows in (
        ("word_embeddings", 50), ("position_embeddings", 32), ("token_type_embeddings", 2))}
    state |= norm("embeddings.LayerNorm")
    for layer in (f"encoder.layer.{index}" for index in range(2)):
        for part in ("query", "key", "value"):
            state |= linear(f"{layer}.attention.self.{part}", width, width)
        state |= linear(f"{layer}.attention.output.dense", width, width) | norm(f"{layer}.attention.output.LayerNorm")
        state |= linear(f"{layer}.intermediate.dense", 80, width) | linear(f"{layer}.output.dense", width, 80)
        state |= norm(f"{layer}.output.LayerNorm")
    return state


@torch.inference_mode()
@pytest.mark.parametrize(("width", "mixed", "kind"), [
    (64, False, QuantLinear), (48, False, StackedLinear), (64, True, StackedLinear)])
def test_a_packed_encoder_equals_its_dequantised_twin(width: int, mixed: bool, kind: type[Any]) -> None:
    config = {**BERT, "hidden_size": width}
    quantised, dense = pack_matrices(random_bert_state(width), bits=4, group_size=32)
    if mixed:
        for name in list(quantised):
            if name.endswith("self.key.weight"):
                quantised[name] = dense[name]
    encoder, twin = (EncoderModel.from_huggingface(config, tensors) for tensors in (quantised, dense))
    assert type(encoder.layers[0].qkv) is kind
    ids, real = torch.randint(0, 50, (3, 9)), torch.ones(3, 9, dtype=torch.bool)
    real[1, 5:] = False
    assert 1e-4 < apart(encoder(ids, real), twin(ids, real)) < 0.03
    use_activation_bits(encoder, 16)
    torch.testing.assert_close(encoder(ids, real), twin(ids, real), **CLOSE)


def test_networks_are_built_without_memory_and_their_layers_keep_apart() -> None:
    config = TransformerConfig.of(64, 3, head_dim=16)
    with unfilled():
        network = TextScoreNetwork(config, 40, never=[3])
    assert all(parameter.is_meta for parameter in network.parameters())
    assert network.get_buffer("excluded")[3]
    assert [layer.attention.layer for layer in network.backbone.layers] == [0, 1, 2]
    state = {name: torch.randn(parameter.shape)
             for name, parameter in network.named_parameters(remove_duplicate=False)}
    load_exactly(network, state)
    whole = TextScoreNetwork(config, 40, never=[3])
    whole.load_state_dict(state)
    ids = torch.randint(0, 40, (2, 5))
    torch.testing.assert_close(network(ids), whole(ids))
    network.backbone.layers[0].register_forward_hook(lambda *_: None)
    assert not network.backbone.layers[1]._forward_hooks


def test_a_frozen_network_is_in_inference_mode_everywhere_and_computes_the_same() -> None:
    def built() -> torch.nn.Module:
        with unfilled():
            return torch.nn.Sequential(
                torch.nn.Embedding(50, 40), torch.nn.Linear(40, 33), torch.nn.Linear(33, 2), torch.nn.LayerNorm(2))

    state: dict[str, Any] = {
        "0.weight": packed(50, 40), "1.weight": packed(33, 40), "1.bias": torch.randn(33),
        "2.weight": torch.randn(2, 33), "2.bias": torch.randn(2), "3.weight": torch.ones(2), "3.bias": torch.zeros(2)}
    network, other = load_frozen(built(), state), built()
    load_exactly(other, state)
    assert all(module.training for module in other.modules()) and other.get_parameter("2.weight").requires_grad
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert [name for name, _ in network.named_parameters()] == [name for name, _ in other.named_parameters()]
    assert repr(network) == repr(other)
    ids = torch.randint(0, 50, (2, 5))
    assert torch.equal(network(ids), other(ids))


def test_frequencies_made_at_their_first_use_are_those_of_a_filled_network() -> None:
    config = TransformerConfig.of(64, 1, head_dim=16)
    whole = TextScoreNetwork(config, 40).backbone
    with unfilled():
        late, moved = TextScoreNetwork(config, 40).backbone, TextScoreNetwork(config, 40).backbone
    moved.rotary.half()
    assert whole.rotary.frequencies is not None and late.rotary.frequencies is None
    positions, t = torch.arange(9)[None], torch.rand(1, 9)
    with torch.inference_mode():
        late.rotary(positions)
    assert not late.rotary.frequencies.is_inference()
    assert all(map(torch.equal, late.rotary(positions), whole.rotary(positions)))
    assert torch.equal(late.time.sinusoids(t), whole.time.sinusoids(t))
    assert torch.equal(moved.rotary.frequencies, whole.rotary.frequencies.half())


def test_tensors_of_other_names_or_shapes_are_refused() -> None:
    with unfilled():
        network = torch.nn.Sequential(torch.nn.Linear(40, 33), torch.nn.Linear(33, 2))
    state: dict[str, Any] = {"0.weight": packed(33, 40), "0.bias": torch.zeros(33), "1.weight": torch.zeros(2, 33)}
    with pytest.raises(ModelCorrupt, match=r"missing: 1\.bias; unknown: 2\.bias"):
        load_exactly(network, {**state, "2.bias": torch.zeros(2)})
    with pytest.raises(ModelCorrupt, match=r"0\.weight is \(33, 41\)"):
        load_exactly(network, {**state, "0.weight": packed(33, 41), "1.bias": torch.zeros(2)})
    load_exactly(network, {**state, "1.bias": torch.zeros(2, dtype=torch.float16)})
    assert network(torch.zeros(1, 40)).dtype == torch.float32


def test_layers_that_read_the_same_input_share_its_integers_and_change_no_bit() -> None:
    layers = [QuantLinear(packed(rows, 96, bits, group_size), bias)
              for rows, bits, group_size, bias in ((64, 4, 32, None), (7, 4, 32, torch.ones(7)), (33, 2, 128, None))]
    x = torch.randn(2, 5, 96)
    with torch.inference_mode():
        alone = [layer(x) for layer in layers]
        together = linear_together(layers, x)
        mixed = linear_together([layers[0], torch.nn.Linear(96, 3)], x)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert torch.equal(mixed[0], alone[0])
    assert mixed[1].shape == (2, 5, 3)
    with pytest.raises(ValueError, match="width 95"):
        linear_together(layers, x[..., :95])


def test_a_layer_with_a_hook_is_called_itself() -> None:
    layers = [QuantLinear(packed(32, 64)), QuantLinear(packed(32, 64))]
    seen: list[int] = []
    layers[1].register_forward_hook(lambda module, arguments, out: seen.append(1))
    with torch.inference_mode():
        linear_together(layers, torch.randn(3, 64))
    assert seen == [1]


def test_gradients_flow_through_layers_together() -> None:
    layers = [QuantLinear(packed(32, 64)), QuantLinear(packed(16, 64))]
    x = torch.randn(3, 64, requires_grad=True)
    sum(out.sum() for out in linear_together(layers, x)).backward()
    dense = torch.cat([layer.packed.dense() for layer in layers])
    assert torch.allclose(x.grad, dense.sum(0).expand(3, -1), **CLOSE)
