"""`QuantLinear` and `QuantEmbedding`: layers over packed weights, which are read in place.

    y = QuantLinear(packed, bias)(x)     # f32, equal to a linear map by the dequantised weights up to rounding

Inference calls the kernel directly, with activations as integers of 16 bits, or of 8 where `use_activation_bits` said
so, as in score networks. Under autograd, torch.compile and the like its f32 sibling runs as the operators
`aios::packed_linear`, `aios::packed_rows` and `aios::packed_dense`; gradients reach the input, not the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aios import _native
from aios.contracts import PackedTensor

_PARTS: Final = (
    "Tensor codes, Tensor scales, Tensor? zeros, Tensor? left, Tensor? right, "
    "int rows, int columns, int bits, int group_size"
)
INFERENCE_BITS: Final = 16     # of activations, in integers: faster than f32, rounding far below that of codes
FAST_BITS: Final = 8            # up to twice as fast again for many rows, with rounding that a model has to bear
_LIBRARY: Final = torch.library.Library("aios", "DEF")  # type: ignore[no-untyped-call]
_native.join_openmp(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))   # else on threads of its own


def _buffer(tensor: Tensor) -> Any:
    """The tensor's memory, as Rust takes it; halves by their bits."""
    array = tensor.contiguous().numpy()
    return array.view("u2") if tensor.dtype is torch.float16 else array


def _matrix(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    left: Tensor | None,
    right: Tensor | None,
    rows: int,
    columns: int,
    bits: int,
    group_size: int,
) -> _native.PackedMatrix:
    buffers = [None if part is None else _buffer(part) for part in (zeros, left, right)]
    return _native.PackedMatrix(rows, columns, bits, group_size, _buffer(codes), _buffer(scales), *buffers)


def _multiply(matrix: _native.PackedMatrix, x: Tensor, rows: int, activation_bits: int) -> Tensor:
    if x.dtype is not torch.float32 or x.requires_grad:
        x = x.detach().float()
    out = torch.empty(*x.shape[:-1], rows, dtype=torch.float32)
    matrix.matmul(_buffer(x), _buffer(out), torch.get_num_threads(), activation_bits)
    return out


def _gather(matrix: _native.PackedMatrix, ids: Tensor, columns: int) -> Tensor:
    out = torch.empty(*ids.shape, columns, dtype=torch.float32)
    matrix.gather(_buffer(ids.reshape(-1).to(torch.int64)), _buffer(out), torch.get_num_threads())
    return out


def _packed_linear(x: Tensor, *parts: Any) -> Tensor:
    return _multiply(_matrix(*parts), x, parts[5], 32)


def _packed_rows(ids: Tensor, *parts: Any) -> Tensor:
    return _gather(_matrix(*parts), ids, parts[6])


def _packed_dense(*parts: Any) -> Tensor:
    out = torch.empty(parts[5], parts[6], dtype=torch.float32)
    _matrix(*parts).dequantize(_buffer(out), torch.get_num_threads())
    return out


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.parts = inputs[1:]


def _input_gradient(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    dense = torch.ops.aios.packed_dense(*context.parts)
    return (gradient @ dense, *(None for _ in context.parts))


def _linear_shape(x: Tensor, *parts: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], parts[5]), dtype=torch.float32)


def _rows_shape(ids: Tensor, *parts: Any) -> Tensor:
    return ids.new_empty((*ids.shape, parts[6]), dtype=torch.float32)


def _dense_shape(*parts: Any) -> Tensor:
    shaped: Tensor = parts[0].new_empty((parts[5], parts[6]), dtype=torch.float32)
    return shaped


def _register(name: str, inputs: str, kernel: Callable[..., Tensor], shape: Callable[..., Tensor]) -> None:
    torch.library.define(f"aios::{name}", f"({inputs}{_PARTS}) -> Tensor", lib=_LIBRARY)
    torch.library.impl(f"aios::{name}", "cpu", kernel, lib=_LIBRARY)
    torch.library.register_fake(f"aios::{name}", shape, lib=_LIBRARY)


_register("packed_linear", "Tensor x, ", _packed_linear, _linear_shape)
_register("packed_rows", "Tensor ids, ", _packed_rows, _rows_shape)
_register("packed_dense", "", _packed_dense, _dense_shape)
torch.library.register_autograd(
    "aios::packed_linear", _input_gradient, setup_context=_remember, lib=_LIBRARY
)


class PackedWeight:
    """A packed matrix (n, k) ready for products; its buffers are checked at first use and never copied."""

    def __init__(self, packed: PackedTensor) -> None:
        self.packed = packed
        self.parts = (
            packed.codes, packed.scales, packed.zeros, packed.left, packed.right,
            packed.rows, packed.columns, packed.bits, packed.group_size,
        )  # fmt: skip
        self._matrix: _native.PackedMatrix | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        """Nothing here ever changes: a copied network reads the same weights."""
        return self

    def matrix(self) -> _native.PackedMatrix:
        """The native handle; ValueError if the buffers are not as long as the sizes say."""
        if self._matrix is None:
            self._matrix = _matrix(*self.parts)
        return self._matrix

    def linear(self, x: Float[Tensor, "... k"], activation_bits: int = INFERENCE_BITS) -> Float[Tensor, "... n"]:
        """Return x times the matrix transposed, f32; in inference with activations of so many bits."""
        if x.shape[-1] != self.packed.columns:
            raise ValueError(f"inputs of width {x.shape[-1]} do not fit a matrix of {self.packed.shape}")
        if _directly(x):
            return _multiply(self.matrix(), x, self.packed.rows, activation_bits)
        product: Tensor = torch.ops.aios.packed_linear(x, *self.parts)
        return product

    def rows(self, ids: Int[Tensor, "*at"]) -> Float[Tensor, "... k"]:
        """Return the rows that `ids` name, f32; IndexError where there is none."""
        if _directly(ids):
            return _gather(self.matrix(), ids, self.packed.columns)
        rows: Tensor = torch.ops.aios.packed_rows(ids, *self.parts)
        return rows

    def dense(self) -> Float[Tensor, "n k"]:
        """Return the whole matrix, f32."""
        dense: Tensor = torch.ops.aios.packed_dense(*self.parts)
        return dense


def _directly(x: Tensor) -> bool:
    """Whether nobody watches what is done to `x`: no compiler, no gradient, no tensor subclass."""
    if torch.compiler.is_compiling():
        return False
    return type(x) is Tensor and x.is_cpu and not (x.requires_grad and torch.is_grad_enabled())


class QuantLinear(nn.Module):
    """`nn.Linear` over a packed matrix."""

    activation_bits = INFERENCE_BITS

    def __init__(self, packed: PackedTensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.packed = PackedWeight(packed)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @classmethod
    def instead_of(cls, linear: nn.Linear, packed: PackedTensor) -> QuantLinear:
        """The layer that takes a linear one's place, its bias, mode and hooks: half the time of making one."""
        sibling = cls.__new__(cls)
        kept = sibling.__dict__
        kept.update(linear.__dict__)
        del kept["in_features"], kept["out_features"]
        kept["_parameters"] = {}
        kept["packed"] = PackedWeight(packed)
        kept["bias"] = None
        if linear.bias is not None:
            sibling.bias = nn.Parameter(linear.bias, requires_grad=False)
        return sibling

    @property
    def watched(self) -> bool:
        """True while a hook wants to see every call."""
        return bool(self._forward_hooks or self._forward_pre_hooks)

    def forward(self, x: Float[Tensor, "... k"]) -> Float[Tensor, "... n"]:
        y = self.packed.linear(x, self.activation_bits)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return _describe(self.packed.packed)


def linear_together(layers: Sequence[nn.Module], x: Float[Tensor, "... k"]) -> list[Float[Tensor, "... n"]]:
    """Return what each layer makes of `x`; in inference packed layers share its integers and one round of threads."""
    packed = [layer for layer in layers if type(layer) is QuantLinear and not layer.watched]
    if len(packed) < len(layers) or not _directly(x) or any(one.packed.packed.columns != x.shape[-1] for one in packed):
        return [layer(x) for layer in layers]
    outs = [torch.empty(*x.shape[:-1], one.packed.packed.rows, dtype=torch.float32) for one in packed]
    if x.dtype is not torch.float32 or x.requires_grad:
        x = x.detach().float()
    matrices = [one.packed.matrix() for one in packed]
    _native.matmul_together(matrices, _buffer(x), [_buffer(out) for out in outs], torch.get_num_threads(),
                            max((one.activation_bits for one in packed), default=INFERENCE_BITS))
    return [out if one.bias is None else out + one.bias for one, out in zip(packed, outs, strict=True)]


def use_activation_bits(network: nn.Module, bits: int) -> None:
    """Let the packed layers of a network take activations as integers of 16 bits, or of 8, in inference."""
    if bits not in (INFERENCE_BITS, FAST_BITS):
        raise ValueError(f"activations of {bits} bits; they have {INFERENCE_BITS} or {FAST_BITS}")
    for module in network.modules():
        if isinstance(module, QuantLinear | QuantEmbedding):
            module.activation_bits = bits


class QuantEmbedding(nn.Module):
    """`nn.Embedding` over a packed matrix, which may be the projection onto the vocabulary as well."""

    activation_bits = INFERENCE_BITS

    def __init__(self, packed: PackedTensor) -> None:
        super().__init__()
        self.packed = PackedWeight(packed)

    def forward(self, ids: Int[Tensor, "*at"]) -> Float[Tensor, "... k"]:
        return self.packed.rows(ids)

    def project(self, hidden: Float[Tensor, "... k"]) -> Float[Tensor, "... n"]:
        """Return the products with every row: logits."""
        return self.packed.linear(hidden, self.activation_bits)

    def extra_repr(self) -> str:
        return _describe(self.packed.packed)


class StackedLinear(nn.Module):
    """Several matrices of the same input, packed or not, as one linear map: their outputs one after another."""

    def __init__(self, weights: tuple[Tensor | PackedTensor, ...], bias: Tensor | None = None) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_part(weight) for weight in weights)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Float[Tensor, "... k"]) -> Float[Tensor, "... n"]:
        y = torch.cat(linear_together(tuple(self.parts), x), dim=-1)
        return y if self.bias is None else y + self.bias


def _part(weight: Tensor | PackedTensor) -> nn.Module:
    if isinstance(weight, PackedTensor):
        return QuantLinear(weight)
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.float(), requires_grad=False)
    return linear


def _describe(packed: PackedTensor) -> str:
    kind = "symmetric" if packed.zeros is None else "asymmetric"
    rank = 0 if packed.left is None else packed.left.shape[1]
    return f"{packed.rows} x {packed.columns}, {packed.bits} bits, groups of {packed.group_size}, {kind}, rank {rank}"


def stack_rows(weights: tuple[PackedTensor, ...]) -> PackedTensor | None:
    """Several packed matrices of one format as one, panel after panel; None where they do not fit together so."""
    first = weights[0]
    alike = {(w.columns, w.bits, w.group_size, w.order, w.zeros is None) for w in weights}
    whole = all(w.rows % first.scales.shape[-1] == 0 and w.left is None for w in weights)
    if len(alike) > 1 or not whole:
        return None
    zeros = [w.zeros for w in weights if w.zeros is not None]
    return PackedTensor(
        rows=sum(w.rows for w in weights), columns=first.columns, bits=first.bits, group_size=first.group_size,
        order=first.order, codes=torch.cat([w.codes for w in weights]),
        scales=torch.cat([w.scales for w in weights]), zeros=torch.cat(zeros) if zeros else None,
    )  # fmt: skip
