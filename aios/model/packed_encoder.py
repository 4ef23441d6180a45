"""`PackedEncoder`: a whole sentence encoder over packed weights as one native call, for texts of any lengths.

Between two products of small matrices an operator costs more to call than to compute, and texts of unequal length cost
padding; here a batch is one call, and its tokens are the rows of one matrix.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aios import _native
from aios.model.quant_linear import QuantEmbedding, QuantLinear

if TYPE_CHECKING:
    from aios.model.encoder import EncoderModel

HEAD_MULTIPLE: Final = 8     # the native attention sums so many columns of a head side by side
MATRICES: Final = ("qkv", "out", "up", "down")
NORMS: Final = ("attention_norm", "ffn_norm")


class PackedEncoder:
    """Native handle of one network; it stands for the modules as long as those are the same."""

    def __init__(self, network: EncoderModel) -> None:
        config = network.config
        self._network = weakref.ref(network)
        self._modules = list(network.modules())
        self._places = [(module._modules, name, child)
                        for module in self._modules for name, child in module.named_children()]
        self._matrices = [module for module in self._modules if isinstance(module, QuantLinear)]
        self._hidden_dim = config.hidden_dim
        positions = _rows(network.positions) + _rows(network.types)[0]
        words = network.words
        self._native = _native.PackedEncoder(
            (config.hidden_dim, config.num_heads, config.ffn_dim, config.norm_eps),
            words.packed.matrix() if isinstance(words, QuantEmbedding) else _floats(words.weight),
            _floats(positions), _norm(network.norm), [_layer(layer) for layer in network.layers])

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedEncoder:
        """A copied network finds that the handle is another's, and makes its own."""
        return self

    def stands_for(self, network: EncoderModel) -> bool:
        """True while no module of the network was exchanged and no hook waits for a call."""
        return (self._network() is network
                and all(children.get(name) is child for children, name, child in self._places)
                and not any(module._forward_hooks or module._forward_pre_hooks for module in self._modules))

    def encode(self, sequences: Sequence[Sequence[int]]) -> Float[Tensor, "n d"]:
        """Return one unit vector per sequence of token ids, in the order given; IndexError for unknown ids."""
        vectors = torch.empty(len(sequences), self._hidden_dim)
        ids = torch.tensor(list(chain.from_iterable(sequences)), dtype=torch.int64)
        lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
        bits = max(matrix.activation_bits for matrix in self._matrices)
        out: Any = vectors.numpy()
        self._native.encode(_array(ids), _array(lengths), out, torch.get_num_threads(), bits)
        return vectors


def packed_encoder(network: EncoderModel) -> PackedEncoder | None:
    """Return a handle of a network whose every layer is packed and that nobody watches; None for others."""
    config = network.config
    linears = [getattr(layer, name) for layer in network.layers for name in MATRICES]
    if not linears or not all(type(linear) is QuantLinear for linear in linears):
        return None
    if config.hidden_dim % config.num_heads or config.hidden_dim // config.num_heads % HEAD_MULTIPLE:
        return None
    packed = PackedEncoder(network)
    return packed if packed.stands_for(network) else None


def _layer(layer: nn.Module) -> Any:
    linears = [getattr(layer, name) for name in MATRICES]
    norms = [part for name in NORMS for part in _norm(getattr(layer, name))]
    return ([linear.packed.matrix() for linear in linears],
            [None if linear.bias is None else _floats(linear.bias) for linear in linears], norms)


def _norm(norm: nn.Module) -> list[Any]:
    return [_floats(norm.get_parameter("weight")), _floats(norm.get_parameter("bias"))]


def _rows(embedding: nn.Module) -> Tensor:
    """The whole table of an embedding, f32."""
    return embedding.packed.dense() if isinstance(embedding, QuantEmbedding) else embedding.get_parameter("weight")


def _floats(values: Tensor) -> Any:
    return values.detach().float().contiguous().numpy()


def _array(values: Tensor) -> Any:
    return values.numpy()
