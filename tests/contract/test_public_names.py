"""The names users rely on and their signatures: these may gain keyword arguments, never lose or change what is here."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

import aios
from aios.ipc.client import AsyncClient, Client

GOLDEN = {
    "aios.engine.arrow:ArrowEngine.open": ["config=None"],
    "aios.engine.arrow:ArrowEngine.encode": ["texts"],
    "aios.engine.arrow:ArrowEngine.diffuse": [
        "prompt=''", "modality='text'", "size=(512, 512)", "voice_id='default'", "length=None", "steps=None",
        "sampler=None", "temperature=None", "seed=None", "model=None", "on_state=None", "cancel=None"],
    "aios.engine.arrow:ArrowEngine.infill": [
        "prefix", "suffix", "modality='text'", "length=None", "steps=None", "sampler=None", "temperature=None",
        "seed=None", "model=None", "on_state=None", "cancel=None"],
    "aios.engine.arrow:ArrowEngine.generate": [
        "prompt=''", "messages=None", "system=None", "max_tokens=256", "temperature=None", "top_p=None", "top_k=None",
        "min_p=None", "repetition_penalty=None", "stop=()", "seed=None", "raw=False", "model=None", "on_text=None",
        "cancel=None"],
    "aios.engine.arrow:ArrowEngine.generate_many": ["requests"],
    "aios.engine.arrow:ArrowEngine.encode_many": ["requests"],
    "aios.engine.arrow:ArrowEngine.ask": ["request"],
    "aios.model.transformer:SharedTransformer": ["hidden_dim", "num_layers"],
    "aios.model.embeddings:ModalityEmbedding": ["num_modalities", "hidden_dim"],
    "aios.model.embeddings:SinusoidalTimeEmbedding": ["hidden_dim"],
    "aios.model.heads:TextHead": ["vocab_size", "hidden_dim"],
    "aios.memory.vector_memory:ArrowStorage.store": ["text", "metadata=None"],
    "aios.memory.vector_memory:ArrowStorage.search": ["query"],
    "aios.store.quant:ArrowQuant.quantize": ["weights"],
    "aios.store.weights:WeightLoader.open": ["path"],
    "aios.store.convert:ModelConverter.convert": ["path", "output_format='parquet'"],
}


def written(parameter: inspect.Parameter) -> str:
    default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
    return parameter.name + default


@pytest.mark.parametrize("where", GOLDEN)
def test_a_public_signature_stays(where: str) -> None:
    module, _, path = where.partition(":")
    found = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    parameters = [one for one in inspect.signature(found).parameters.values() if one.name != "self"]
    have = [written(one) for one in parameters]
    assert [one for one in have if one in GOLDEN[where]] == GOLDEN[where]
    added = [one for one in parameters if written(one) not in GOLDEN[where]]
    assert all(one.default is not one.empty or one.kind is one.VAR_KEYWORD for one in added), "added without default"


@pytest.mark.parametrize("name", aios.__all__)
def test_every_name_of_the_facade_exists(name: str) -> None:
    assert getattr(aios, name) is not None


def test_the_facade_refuses_other_names() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        aios.nonsense  # noqa: B018


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("call", ["encode", "generate", "diffuse", "infill"])
def test_the_client_offers_the_engines_calls(client: type, call: str) -> None:
    engine = inspect.signature(getattr(aios.ArrowEngine, call)).parameters
    offered = inspect.signature(getattr(client, call)).parameters
    # A client cancels by its own means: another connection's request, or leaving the stream.
    assert [name for name in offered if name in engine] == [name for name in engine if name != "cancel"]
