"""Introduces models, tokenizers and plugins' heads to each other; everything is opened at first use and once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from aios.contracts import Head, Kind, OpenHead, OpenModel
from aios.engine.blame import blame
from aios.engine.chat import OpenLanguage
from aios.engine.encoding import SentenceEncoder
from aios.errors import ModelError, ModelMissing
from aios.messages import PASSAGES_MAX
from aios.store import models
from aios.store.record import SPEC, TOKENIZER, read_spec
from aios.text.tokenizer import SentenceTokenizer, TextTokenizer

if TYPE_CHECKING:
    from aios.config import Config, Places
    from aios.memory.conditioner import MemoryConditioner
    from aios.memory.vector_memory import ArrowStorage

ENCODER_TOKENS_MAX = 512    # BERT's positions; sentence_bert_config.json may ask for fewer


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that is open now."""

    name: str
    kind: Kind
    parameters: int
    bytes: int      # of its tensors as stored


class Assembly:
    """The models and heads that are open; not for use by several threads at once."""

    def __init__(self, config: Config, places: Places) -> None:
        self._config = config
        self._places = places
        self._models: dict[str, OpenModel] = {}
        self._encoders: dict[str, SentenceEncoder] = {}
        self._languages: dict[str, OpenLanguage] = {}
        self._memories: ArrowStorage | None = None
        self.passages_max = min(config.memory.passages, PASSAGES_MAX)
        self._heads: dict[tuple[str, str, str | None], tuple[Head, OpenHead]] = {}
        if config.model.threads:
            torch.set_num_threads(config.model.threads)
        self.threads = torch.get_num_threads()

    def model(self, name: str) -> OpenModel:
        """The installed model `name`; raises ModelMissing or ModelCorrupt."""
        if name not in self._models:
            self._models[name] = self._open(name)
        return self._models[name]

    def encoder(self, name: str | None) -> SentenceEncoder:
        """The sentence encoder `name`, or the one daemon.toml names."""
        name = name or self._config.model.encoder
        if name not in self._encoders:
            model = self.model(name)
            if model.kind != "encoder":
                raise ModelError(f"{name} is of kind {model.kind}; encoding needs an encoder",
                                 remedy="aios models list")
            length_max = _encoder_tokens(model)
            tokenizer = SentenceTokenizer.open(model.path / TOKENIZER, length_max)
            self._encoders[name] = SentenceEncoder.open(model, tokenizer)
        return self._encoders[name]

    def language(self, name: str | None) -> OpenLanguage:
        """The autoregressive model `name`, or the one daemon.toml names."""
        name = name or self._config.model.language
        if name not in self._languages:
            model = self.model(name)
            if model.kind != "ar":
                verb = "aios diffuse" if model.kind == "diffusion" else "aios encode"
                raise ModelError(f"{name} is of kind {model.kind}; generate needs an autoregressive model (kind ar)",
                                 remedy=f"{verb} --model {name}, or another model: aios models list")
            self._languages[name] = OpenLanguage.open(model, self._config.model.language_activations)
        return self._languages[name]

    def conditioner(self) -> MemoryConditioner | None:
        """The memories of this home as they are now, to be read only; None where there are none."""
        from aios.memory.conditioner import MemoryConditioner
        from aios.memory.vector_memory import ArrowStorage

        if self._memories is None:
            if not self._places.memory.is_dir():
                return None
            self._memories = ArrowStorage.open(self._places.memory, None, read_only=True)
        self._memories.refresh()
        return MemoryConditioner(self._memories)

    def head(self, plugin: str, head: Head, model: str | None, modality: str) -> OpenHead:
        """A plugin's head opened on a model, or on the one of the modality; PluginError when its code fails."""
        default = {"text": self._config.model.text, "code": self._config.model.code}.get(modality)
        key = (plugin, head.modality, model or default)   # two modalities of one model share its network
        known = self._heads.get(key)
        if known is None or known[0] is not head:
            with blame(plugin, "opening its head"), torch.no_grad():
                known = self._heads[key] = head, head.open(_Bench(self, default), model)
        return known[1]

    def keep_heads(self, heads: Iterable[Head]) -> None:
        """Let go of every open head that is not one of these; models stay open."""
        kept = {id(head) for head in heads}
        self._heads = {key: known for key, known in self._heads.items() if id(known[0]) in kept}

    def loaded(self) -> tuple[LoadedModel, ...]:
        """The models that are open now, by name."""
        return tuple(
            LoadedModel(name=model.name, kind=model.kind,
                        parameters=sum(math.prod(tensor.shape) for tensor in model.tensors.values()),
                        bytes=sum(tensor.nbytes for tensor in model.tensors.values()))
            for _, model in sorted(self._models.items()))

    def _open(self, name: str) -> OpenModel:
        record = models.find(name, self._places)
        tensors = models.open_tensors(record)
        # An encoder's tokenizer adds special tokens and truncates: its SentenceEncoder opens its own.
        file = None if record.kind == "encoder" else record.file(TOKENIZER)
        return OpenModel(name=record.name, kind=record.kind, release=record.release, path=record.path,
                         spec=read_spec(record.path / SPEC), tensors=tensors,
                         intact=lambda wait: tensors.intact(wait=wait),
                         tokenizer=None if file is None else TextTokenizer.open(file))


class _Bench:
    """The Workbench of one head: models by name, and the default of its modality."""

    def __init__(self, assembly: Assembly, default: str | None) -> None:
        self._assembly = assembly
        self._default = default
        self.threads = assembly.threads

    def model(self, name: str | None) -> OpenModel:
        if (name := name or self._default) is None:
            raise ModelMissing("no model is named in the request, and daemon.toml names none for this modality",
                               remedy="name one: --model NAME")
        model = self._assembly.model(name)
        if model.kind == "ar":
            raise ModelError(f"{name} is an autoregressive model (kind ar); diffusion needs one of kind diffusion",
                             remedy=f"aios generate --model {name}, or another model: aios models list")
        return model


def _encoder_tokens(model: OpenModel) -> int:
    """How many tokens of a text the encoder reads, as sentence-transformers decides it."""
    limits = [ENCODER_TOKENS_MAX, _positive(model.spec, "max_position_embeddings")]
    file = model.path / "sentence_bert_config.json"
    if file.is_file():
        limits.append(_positive(read_spec(file), "max_seq_length"))
    return min(limit for limit in limits if limit)


def _positive(spec: Mapping[str, Any], key: str) -> int:
    value = spec.get(key)
    return value if isinstance(value, int) and value > 2 else 0
