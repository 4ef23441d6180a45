"""Building a network without filling it first, and putting stored tensors in place, packed ones as packed layers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from aios.contracts import PackedTensor
from aios.errors import ModelCorrupt
from aios.model.quant_linear import PackedWeight, QuantEmbedding, QuantLinear, StackedLinear, stack_rows

Weight = Tensor | PackedTensor | tuple[Tensor | PackedTensor, ...]  # a tuple: matrices one below the other
Module = TypeVar("Module", bound=nn.Module)

NAMES_SHOWN_MAX = 5  # of tensors that are missing or too many
_MAKERS: Final = frozenset((torch.empty, torch.zeros, torch.ones))


class _Unfilled(TorchFunctionMode):
    """New float tensors have no memory, and what fills a tensor returns it as it is."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _MAKERS and (kwargs.get("dtype") or torch.float32).is_floating_point:
            return function(*args, **{**kwargs, "device": "meta"})
        name = function.__name__
        # By torch's convention what fills a tensor ends in "_" and returns it.
        if name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


@contextmanager
def unfilled() -> Iterator[None]:
    """Inside the block modules get parameters without memory, which nobody draws.

    On torch.device("meta") alone every draw runs hundreds of lines of Python: half a second for 24 layers.
    """
    with _uncollected(), _Unfilled():
        yield


@contextmanager
def _uncollected() -> Iterator[None]:
    """Thousands of small objects are made that all stay: let no garbage collection walk torch's heap for them."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def repeated(make: Callable[[int], Module], count: int) -> list[Module]:
    """Return `make(0)` to `make(count - 1)`; where parameters have no memory, copies of the first one.

    Only attributes named `layer`, the module's number, may differ between them.
    """
    first = make(0)
    if not all(parameter.is_meta for parameter in first.parameters()):
        return [first, *(make(index) for index in range(1, count))]
    return [first, *(_twin(first, index) for index in range(1, count))]


def _twin(module: Module, layer: int) -> Module:
    """A module of the same structure, several times as fast as making it."""
    twin = type(module).__new__(type(module))
    for name, value in module.__dict__.items():
        twin.__dict__[name] = value.copy() if isinstance(value, dict | set) else value
    children = twin.__dict__["_modules"]
    for name, child in children.items():
        children[name] = None if child is None else _twin(child, layer)
    if "layer" in twin.__dict__:
        twin.__dict__["layer"] = layer
    return twin


def load_exactly(module: nn.Module, state: Mapping[str, Weight]) -> None:
    """Put `state` into `module` without copying; ModelCorrupt unless names and shapes agree.

    Where a matrix is packed, the layer becomes its packed sibling. Half-precision tensors become float32.
    """
    with _uncollected():
        _load(module, state)


def _load(module: nn.Module, state: Mapping[str, Weight]) -> None:
    modules = dict(module.named_modules())
    slots = {
        f"{path}.{leaf}" if path else leaf: (path, leaf, parameter)
        for path, owner in modules.items()
        for leaf, parameter in owner.named_parameters(recurse=False)
    }
    _same_names(slots.keys(), state.keys())
    for name, (path, leaf, parameter) in slots.items():
        weight = state[name]
        if _shape(weight) != tuple(parameter.shape):
            raise _misfit(f"{name} is {_shape(weight)} instead of {tuple(parameter.shape)}")
        if isinstance(weight, Tensor):
            setattr(modules[path], leaf, _parameter(weight, parameter.requires_grad))
    # Biases first: the packed sibling of a layer takes its bias along.
    for name in sorted(slots, key=lambda name: slots[name][1]):
        if not isinstance(state[name], Tensor):
            _replace(modules, slots[name][0], name, state[name])


def _replace(modules: Mapping[str, nn.Module], path: str, name: str, weight: Weight) -> None:
    """Put the packed sibling of a layer in its place, or dense weights where the layer has none."""
    owner = modules[path]
    parent, _, leaf = path.rpartition(".")
    if isinstance(weight, tuple):
        packed = tuple(part for part in weight if isinstance(part, PackedTensor))
        whole = stack_rows(packed) if packed and len(packed) == len(weight) else None
        if packed and whole is None and isinstance(owner, nn.Linear):
            setattr(modules[parent], leaf, StackedLinear(weight, owner.bias))
            return
        weight = whole or torch.cat([_dense(part) for part in weight])
    if isinstance(weight, PackedTensor) and name.endswith(".weight"):
        if isinstance(owner, nn.Linear):
            setattr(modules[parent], leaf, QuantLinear(weight, owner.bias))
            return
        if isinstance(owner, nn.Embedding):
            setattr(modules[parent], leaf, QuantEmbedding(weight))
            return
    assert not isinstance(weight, tuple)
    setattr(owner, name.rpartition(".")[2], _parameter(_dense(weight), requires_grad=False))


def _dense(weight: Tensor | PackedTensor) -> Tensor:
    return PackedWeight(weight).dense() if isinstance(weight, PackedTensor) else weight.float()


def _parameter(tensor: Tensor, requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(tensor.float(), requires_grad=requires_grad)


def _shape(weight: Weight) -> tuple[int, ...]:
    if isinstance(weight, tuple):
        shapes = [_shape(part) for part in weight]
        rows = sum(shape[0] for shape in shapes)
        return (rows, *shapes[0][1:]) if len({shape[1:] for shape in shapes}) == 1 else ()
    return tuple(weight.shape)


def _same_names(wanted: Iterable[str], given: Iterable[str]) -> None:
    missing, unknown = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or unknown:
        said = [f"{what}: {', '.join(names[:NAMES_SHOWN_MAX])}{' ...' * (len(names) > NAMES_SHOWN_MAX)}"
                for what, names in (("missing", missing), ("unknown", unknown)) if names]
        raise _misfit("; ".join(said))


def _misfit(why: str) -> ModelCorrupt:
    return ModelCorrupt(f"the tensors do not fit config.json: {why}", remedy="fetch the model again")
