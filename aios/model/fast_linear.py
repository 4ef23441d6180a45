"""`FastLinear`: a linear layer whose three products of a training step run in integers; all else stays f32.

    use_integer_products(network)
    repack(network)                 # before every step: the weights have moved
    loss(network(x)).backward()

Outputs and input gradients multiply rows of 8-bit integers, each row with a scale, by weights packed once a step;
weight gradients multiply integers of 12 bits with a scale for each column and 512 tokens, which follow f32 to about
5e-4. Without gradients the layer is its f32 self, so that a bound is measured in full precision.
Source: Wortsman et al. 2023, "Stable and low-precision training for large-scale vision-language models" (SwitchBack).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from aios import _native

_LIBRARY: Final = torch.library.Library("aios", "FRAGMENT")  # type: ignore[no-untyped-call]


def _rows(x: Tensor) -> Any:
    """All but the last axis as one, as Rust takes it."""
    return _array(x.detach().reshape(-1, x.shape[-1]).contiguous())


def _array(tensor: Tensor) -> Any:
    return tensor.numpy()


def _product(x: Tensor, packed: Tensor, outputs: int) -> Tensor:
    out = _shape_of_product(x, packed, outputs)
    _native.train_product(_rows(x), _array(packed), _array(out.view(-1, outputs)), torch.get_num_threads())
    return out


def _shape_of_product(x: Tensor, packed: Tensor, outputs: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], outputs))


def _weight_gradient(g: Tensor, x: Tensor) -> Tensor:
    out = _shape_of_weight_gradient(g, x)
    _native.train_weight_gradient(_rows(g), _rows(x), _array(out), torch.get_num_threads())
    return out


def _shape_of_weight_gradient(g: Tensor, x: Tensor) -> Tensor:
    return x.new_empty((g.shape[-1], x.shape[-1]))


def _linear(x: Tensor, weight: Tensor, ahead: Tensor, back: Tensor) -> Tensor:
    return _product(x, ahead, len(weight))


def _shape_of_linear(x: Tensor, weight: Tensor, ahead: Tensor, back: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], len(weight)))


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, _, _, back = inputs
    ctx.save_for_backward(x, back)


def _gradients(context: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, back = context.saved_tensors
    of_x, of_weight = context.needs_input_grad[:2]
    return (torch.ops.aios.integer_product(g, back, x.shape[-1]) if of_x else None,
            torch.ops.aios.integer_weight_gradient(g, x) if of_weight else None, None, None)  # fmt: skip


for _name, _inputs, _kernel, _shape in (
    ("integer_product", "Tensor x, Tensor packed, int outputs", _product, _shape_of_product),
    ("integer_weight_gradient", "Tensor g, Tensor x", _weight_gradient, _shape_of_weight_gradient),
    ("integer_linear", "Tensor x, Tensor weight, Tensor ahead, Tensor back", _linear, _shape_of_linear),
):
    torch.library.define(f"aios::{_name}", f"({_inputs}) -> Tensor", lib=_LIBRARY)
    torch.library.impl(f"aios::{_name}", "cpu", _kernel, lib=_LIBRARY)
    torch.library.register_fake(f"aios::{_name}", _shape, lib=_LIBRARY)
torch.library.register_autograd("aios::integer_linear", _gradients, setup_context=_remember, lib=_LIBRARY)


class FastLinear(nn.Linear):
    """`nn.Linear` on a processor, f32, with weights packed by `repack`."""

    ahead: Tensor  # of the weight, for outputs
    back: Tensor  # of the weight transposed, for input gradients

    def forward(self, input: Float[Tensor, "... k"]) -> Float[Tensor, "... n"]:
        if not torch.is_grad_enabled():
            return functional.linear(input, self.weight, self.bias)
        y: Tensor = torch.ops.aios.integer_linear(input, self.weight, self.ahead, self.back)
        return y if self.bias is None else y + self.bias

    def repack(self) -> None:
        """Take over the weights as they are now."""
        weight, threads = _rows(self.weight), torch.get_num_threads()
        _native.train_pack(weight, _array(self.ahead), False, threads)
        _native.train_pack(weight, _array(self.back), True, threads)


def use_integer_products(network: nn.Module) -> None:
    """Let the linear layers of a network train in integers; names and weights stay. ValueError off the processor."""
    for module in network.modules():
        if type(module) is nn.Linear:
            if not module.weight.is_cpu:
                raise ValueError(f"products in integers are made on a processor, not on {module.weight.device}")
            rows, columns = module.weight.shape
            module.__class__ = FastLinear
            for name, sizes in (("ahead", (rows, columns)), ("back", (columns, rows))):
                room = torch.zeros(_native.train_packed_len(*sizes), dtype=torch.uint8)
                module.register_buffer(name, room, persistent=False)
    repack(network)


def repack(network: nn.Module) -> None:
    """Take over the weights of all layers that train in integers: before every step."""
    for module in network.modules():
        if isinstance(module, FastLinear):
            module.repack()
