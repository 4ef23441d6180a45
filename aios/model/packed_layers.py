"""`PackedLayers`: transformer layers over packed weights as one native call, for a step of many sequences.

Between two products of small matrices an operator costs more to call than to compute; here a step is one call.
Sequences that wear adapters go through the modules, which know them; those beside them keep the one call and every
bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aios import _native
from aios.contracts import Adapter
from aios.model.blocks import Layer
from aios.model.cache import AttentionMask, KeyValueCache, PackedStep, Place, Store, attend
from aios.model.config import TransformerConfig
from aios.model.lora import LowRank, Worn, tokens_of, wearers
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
        self._config, self._layers = config, layers

    @property
    def faithful(self) -> bool:
        """True while no module was exchanged and no hook waits for a call."""
        return (all(children.get(name) is child for children, name, child in self._places)
                and not any(module._forward_hooks or module._forward_pre_hooks for module in self._modules))

    def advance(self, x: Float[Tensor, "1 s d"], rotation: tuple[Tensor, Tensor], step: PackedStep,
                adapters: Sequence[Adapter] = ()) -> Float[Tensor, "1 s d"]:
        """Return the hidden states behind the last layer; the step's keys and values are written, but not valid."""
        return self._run(x, rotation, *step.memory(), adapters)

    def read(self, x: Float[Tensor, "b s d"], rotation: tuple[Tensor, Tensor], cache: KeyValueCache, opened: int,
             adapters: Sequence[Adapter] = ()) -> Float[Tensor, "b s d"]:
        """Return the hidden states of tokens behind those of the cache, the last `opened` of which see each other.

        Their keys and values are written to the cache, but not valid. rotation: (b, 1, s, hd) each.
        """
        return self._run(x, rotation, *cache.memory(x.shape[1], opened), adapters)

    def _run(self, x: Float[Tensor, "b s d"], rotation: tuple[Tensor, Tensor], stores: list[Store], pieces: list[Place],
             adapters: Sequence[Adapter]) -> Float[Tensor, "b s d"]:
        x = x.detach().to(torch.float32, copy=True).contiguous()
        # An adapter that has learned nothing changes no bit.
        worn = [(adapter, rows) for adapter, rows in wearers(adapters, len(pieces), self._config)
                if not (isinstance(adapter, LowRank) and adapter.idle)]
        if not worn:
            return self._natively(x, rotation, stores, pieces)
        dressed = sorted({row for _, rows in worn for row in rows})
        bare = [row for row in range(len(pieces)) if row not in dressed]
        worn = [(adapter, tuple(dressed.index(row) for row in rows)) for adapter, rows in worn]
        counts = [count for _, _, _, count, _ in pieces]
        tokens = x.view(1, -1, x.shape[2])
        cos, sin = (angles.reshape(1, 1, -1, angles.shape[3]) for angles in rotation)
        for these, run in ((dressed, partial(self._through_modules, worn=worn)), (bare, self._natively)):
            if these:
                at = tokens_of(these, counts)
                mine = [pieces[row] for row in these]
                tokens[:, at] = run(tokens[:, at], (cos[:, :, at], sin[:, :, at]), stores, mine)
        return x

    @torch.no_grad()
    def _through_modules(self, x: Float[Tensor, "1 s d"], rotation: tuple[Tensor, Tensor], stores: list[Store],
                         pieces: list[Place], worn: Sequence[tuple[Adapter, tuple[int, ...]]]
                         ) -> Float[Tensor, "1 s d"]:
        cache, mask = _Placed(stores, pieces), AttentionMask()
        adapted = Worn.by_tokens(worn, [count for _, _, _, count, _ in pieces])
        for number, layer in enumerate(self._layers):
            x = layer(x, rotation=rotation, mask=mask, cache=cache, worn=adapted.within(f"layers.{number}"))
        return x

    def _natively(self, x: Float[Tensor, "b s d"], rotation: tuple[Tensor, Tensor], stores: list[Store],
                  pieces: list[Place]) -> Float[Tensor, "b s d"]:
        """`x` itself, which becomes what the layers make of it."""
        out: Any = x.numpy()
        cos, sin = (_floats(angles) for angles in rotation)
        bits = max((linear.activation_bits for linear in self._linears), default=INFERENCE_BITS)
        _native.advance_layers(self._native, self._shape, out, cos, sin, stores, pieces,
                               torch.get_num_threads(), bits)
        return x


class _Placed:
    """A cache for modules over some pieces of a step, each in its place of a store; `mask` is not used."""

    def __init__(self, stores: list[Store], pieces: list[Place]) -> None:
        self._pieces = []
        ends = accumulate(count for _, _, _, count, _ in pieces)
        for end, (store, slot, before, count, opened) in zip(ends, pieces, strict=True):
            keys, values = (torch.from_numpy(array)[:, slot, :, :before + count] for array in stores[store][:2])
            mask = AttentionMask() if count == 1 else AttentionMask.open_end(before, count, opened)
            self._pieces.append((slice(end - count, end), keys, values, before, mask))

    def attend(self, layer: int, query: Float[Tensor, "1 h s hd"], key: Float[Tensor, "1 kv s hd"],
               value: Float[Tensor, "1 kv s hd"], mask: AttentionMask) -> Float[Tensor, "1 h s hd"]:
        """Remember the new keys and values of a layer; every token sees what its piece lets it see."""
        parts = []
        for span, keys, values, before, allowed in self._pieces:
            keys[layer, :, before:], values[layer, :, before:] = key[0, :, span], value[0, :, span]
            parts.append(attend(query[:, :, span], keys[layer][None], values[layer][None], allowed))
        return torch.cat(parts, dim=2)


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
