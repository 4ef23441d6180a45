"""transformers over the weights of an installed language model, in f32 and as torchao quantises it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from aios.contracts import PackedTensor
from aios.lab.peer_language import PeerLanguage

if TYPE_CHECKING:
    from aios.lab.bench_text import Arm

GROUP_SIZE: Final = 32     # as Q4_0 has it


class _Written:
    """A transformers model that reads a prompt, then tokens behind it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache: Any = None
        self._logits: Tensor | None = None

    def read(self, ids: Sequence[int]) -> None:
        """Read a prompt from the beginning; only the last token's logits are computed."""
        self._cache = None
        self._forward(ids)

    def write(self, ids: Sequence[int]) -> None:
        """Read tokens behind it, one after another."""
        for token in ids:
            self._forward([token])

    def _forward(self, ids: Sequence[int]) -> None:
        with torch.inference_mode():
            out = self._model(torch.tensor([list(ids)]), past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache, self._logits = out.past_key_values, out.logits[0, -1]

    def logits(self) -> np.ndarray:
        """Of the token behind the last one read."""
        assert self._logits is not None
        return self._logits.float().numpy()


def transformers_arms(spec: Mapping[str, Any], tensors: Mapping[str, Tensor | PackedTensor]) -> Iterator[Arm]:
    """One arm after another, each with a network of its own; nothing where the peers are not installed."""
    from aios.lab.bench_text import Arm

    for name in ("transformers f32", "torchao IntxWeightOnly int4", "torchao int8-dynamic int4"):
        peer = PeerLanguage.open(spec, tensors)
        if peer is None or ("torchao" in name and find_spec("torchao") is None):
            return
        said = f"transformers {peer.version}, {torch.get_num_threads()} threads"
        if "torchao" in name:
            _quantise(peer.model, dynamic="dynamic" in name)
            said += f", torchao {metadata.version('torchao')}, groups of {GROUP_SIZE}, eager, as it comes"
        writer = _Written(peer.model)
        yield Arm(name=name, read=writer.read, write=writer.write, logits=writer.logits, said=said)


def _quantise(model: Any, *, dynamic: bool) -> None:
    """torchao's own quantisation of every linear layer but the tied head, which shares the embedding."""
    api: Any = import_module("torchao.quantization")
    group: Any = import_module("torchao.quantization.granularity").PerGroup(GROUP_SIZE)
    dtype: Any = vars(torch)["int4"]     # which torch's own stubs do not know
    config = api.Int8DynamicActivationIntxWeightConfig(weight_dtype=dtype, weight_granularity=group) if dynamic \
        else api.IntxWeightOnlyConfig(weight_dtype=dtype, granularity=group)
    api.quantize_(model.model, config)
