"""`PackedLayers`: transformer layers over packed weights as one native call, for a step of many sequences.

Between two products of small matrices an operator costs more to call than to compute; here a step is one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aios import _native
from aios.model.blocks import Layer
from aios.model.cache import KeyValueCache, PackedStep, Place, Store
from aios.model.config import TransformerConfig
from aios.model.quant_linear import INFERENCE_BITS, QuantLinear


class PackedLayers:
    """Native handles of all layers of a network; they stand for the modules as long as those are the same."""

    def __init__(self, config: TransformerConfig, layers: Sequence[Layer]) -> None:
        self._shape = (config.hidden_dim, config.num_heads, config.num_kv_heads, config.head_dim, config.ffn_dim,
                       config.norm_eps)
        modules = [module for layer in layers for module in layer.modules()]
        self._places = [(module._modules, name, child) for module in modules for name, child in module.named_children()]
        self._modules = modules
        self._linears = [module for module in modules if isinstance(module, QuantLinear)]
        self._native = [_native_layer(layer) for layer in layers]

    @property
    def faithful(self) -> bool:
        """True while no module was exchanged and no hook waits for a call."""
        return (all(children.get(name) is child for children, name, child in self._places)
                and not any(module._forward_hooks or module._forward_pre_hooks for module in self._modules))

    def advance(self, x: Float[Tensor, "1 s d"], rotation: tuple[Tensor, Tensor], step: PackedStep
                ) -> Float[Tensor, "1 s d"]:
        """Return the hidden states behind the last layer; the step's keys and values are written, but not valid."""
        return self._run(x, rotation, *step.memory())

    def read(self, x: Float[Tensor, "b s d"], rotation: tuple[Tensor, Tensor], cache: KeyValueCache, opened: int
             ) -> Float[Tensor, "b s d"]:
        """Return the hidden states of tokens behind those of the cache, the last `opened` of which see each other.

        Their keys and values are written to the cache, but not valid. rotation: (b, 1, s, hd) each.
        """
        return self._run(x, rotation, *cache.memory(x.shape[1], opened))

    def _run(self, x: Float[Tensor, "b s d"], rotation: tuple[Tensor, Tensor], stores: list[Store], pieces: list[Place]
             ) -> Float[Tensor, "b s d"]:
        x = x.detach().to(torch.float32, copy=True).contiguous()
        out: Any = x.numpy()
        cos, sin = (_floats(angles) for angles in rotation)
        bits = max((linear.activation_bits for linear in self._linears), default=INFERENCE_BITS)
        _native.advance_layers(self._native, self._shape, out, cos, sin, stores, pieces,
                               torch.get_num_threads(), bits)
        return x


def packed_layers(config: TransformerConfig, layers: Sequence[Layer]) -> PackedLayers | None:
    """Return the handles of layers whose every matrix is packed; None for others."""
    if not all(type(linear) is QuantLinear for layer in layers for linear in _linears(layer)):
        return None
    return PackedLayers(config, layers)


def _linears(layer: Layer) -> tuple[nn.Module, ...]:
    attention, ffn = layer.attention, layer.ffn
    return (attention.query, attention.key, attention.value, attention.out, ffn.gate, ffn.up, ffn.down)


def _native_layer(layer: Layer) -> _native.PackedLayer:
    linears: list[Any] = list(_linears(layer))
    norms = (layer.attention_norm, layer.ffn_norm, layer.attention.query_norm, layer.attention.key_norm)
    return _native.PackedLayer(
        [linear.packed.matrix() for linear in linears],
        [None if linear.bias is None else _floats(linear.bias) for linear in linears],
        [None if norm is None else _floats(norm.weight) for norm in norms])


def _floats(values: Tensor) -> Any:
    return values.detach().float().contiguous().numpy()
