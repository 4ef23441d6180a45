"""Imported networks compute what `transformers` computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aios.errors import ModelCorrupt, UnknownArchitecture
from aios.model.cache import KeyValueCache
from aios.model.encoder import EncoderModel
from aios.model.imports import import_language_model

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}


def reference(kind: str) -> Any:
    """A random model of `transformers`, every tensor (norms and biases too) away from its start value."""
    configs = {
        "llama": lambda: transformers.LlamaConfig(**SHAPE, num_key_value_heads=2),
        "llama-biased": lambda: transformers.LlamaConfig(
            **SHAPE, num_key_value_heads=6, attention_bias=True, mlp_bias=True, rope_theta=5000.0
        ),
        "qwen2": lambda: transformers.Qwen2Config(**SHAPE, num_key_value_heads=3, tie_word_embeddings=True),
        "qwen3": lambda: transformers.Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=16),
    }
    model = transformers.AutoModelForCausalLM.from_config(configs[kind]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


KINDS = ("llama", "llama-biased", "qwen2", "qwen3")


def imported(model: Any) -> tuple[Any, Any]:
    return import_language_model(model.config.to_dict(), model.state_dict())


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_an_imported_language_model_equals_transformers(kind: str) -> None:
    model = reference(kind)
    backbone, head = imported(model)
    ids = torch.randint(0, 97, (2, 17))
    ours = head.project(backbone(head.embed(ids)))
    torch.testing.assert_close(ours, model(ids).logits, atol=TOLERANCE, rtol=TOLERANCE)


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_prefill_and_decoding_with_the_cache_equal_one_full_forward(kind: str) -> None:
    model = reference(kind)
    backbone, head = imported(model)
    ids = torch.randint(0, 97, (2, 12))
    cache = KeyValueCache(backbone.config, batch=2, length_max=12)
    parts = [backbone(head.embed(part), cache=cache) for part in ids.split([7, 1, 1, 3], dim=1)]
    ours = head.project(torch.cat(parts, dim=1))
    torch.testing.assert_close(ours, model(ids).logits, atol=TOLERANCE, rtol=TOLERANCE)
    assert cache.length == 12


@torch.inference_mode()
def test_left_padding_changes_nothing() -> None:
    model = reference("qwen2")
    backbone, head = imported(model)
    ids = torch.randint(0, 97, (2, 9))
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, :4] = True
    positions = (torch.arange(9) - padding.sum(dim=1, keepdim=True)).clamp(min=0)
    ours = head.project(backbone(head.embed(ids), positions=positions, padding=padding))
    alone = model(ids[1:, 4:]).logits
    torch.testing.assert_close(ours[1:, 4:], alone, atol=TOLERANCE, rtol=TOLERANCE)


def bert(**options: Any) -> Any:
    shape = SHAPE | {"hidden_size": 48, "type_vocab_size": 2, "hidden_dropout_prob": 0.0}
    model = transformers.BertModel(
        transformers.BertConfig(**shape, **options), add_pooling_layer=False
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_the_encoder_equals_transformers_bert(prefix: str) -> None:
    model = bert()
    encoder = EncoderModel.from_huggingface(
        model.config.to_dict(), {prefix + name: tensor for name, tensor in model.state_dict().items()}
    )
    ids = torch.randint(0, 97, (3, 11))
    real = torch.ones(3, 11, dtype=torch.bool)
    real[1, 6:] = False
    theirs = model(input_ids=ids, attention_mask=real.long()).last_hidden_state
    torch.testing.assert_close(encoder.hidden(ids, real)[real], theirs[real], atol=TOLERANCE, rtol=TOLERANCE)
    mean = (theirs * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
    expected = torch.nn.functional.normalize(mean, dim=-1)
    torch.testing.assert_close(encoder(ids, real), expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt2"},
        {"model_type": "bert"},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"use_sliding_window": True},
    ],
)
def test_what_is_not_implemented_is_refused(change: dict[str, Any]) -> None:
    model = reference("llama")
    with pytest.raises(UnknownArchitecture) as caught:
        import_language_model(
            {**model.config.to_dict(), "rope_parameters": None, **change}, model.state_dict()
        )
    assert caught.value.remedy


def test_an_unknown_tensor_is_refused() -> None:
    model = reference("llama")
    tensors = model.state_dict() | {"model.layers.0.mlp.router.weight": torch.zeros(1)}
    with pytest.raises(UnknownArchitecture, match="router"):
        import_language_model(model.config.to_dict(), tensors)


@pytest.mark.parametrize(
    "change", [{"intermediate_size": 81}, {"hidden_size": "48"}, {"num_hidden_layers": 4}]
)
def test_tensors_that_do_not_fit_the_config_are_refused(change: dict[str, Any]) -> None:
    model = reference("llama")
    with pytest.raises(ModelCorrupt):
        import_language_model(model.config.to_dict() | change, model.state_dict())


@pytest.mark.parametrize(
    "change", [{"model_type": "roberta"}, {"hidden_act": "relu"}, {"position_embedding_type": "relative_key"}]
)
def test_an_encoder_of_another_kind_is_refused(change: dict[str, Any]) -> None:
    model = bert()
    with pytest.raises(UnknownArchitecture):
        EncoderModel.from_huggingface(model.config.to_dict() | change, model.state_dict())


def test_an_encoder_with_a_missing_tensor_is_refused() -> None:
    model = bert()
    tensors = model.state_dict()
    del tensors["encoder.layer.1.attention.self.key.bias"]
    with pytest.raises(ModelCorrupt, match=r"key\.bias"):
        EncoderModel.from_huggingface(model.config.to_dict(), tensors)
