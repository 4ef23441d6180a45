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
    twin = _twins(first)
    return [first, *(twin(index) for index in range(1, count))]


def _twins(module: Module) -> Callable[[int], Module]:
    """What makes modules of the same structure from their numbers, several times as fast as making them anew."""
    kind, shared = type(module), module.__dict__
    own = [(name, value.copy) for name, value in shared.items() if isinstance(value, dict | set)]
    children = [(name, _twins(child)) for name, child in module._modules.items() if child is not None]
    numbered = "layer" in shared

    def twin(layer: int) -> Module:
        made = kind.__new__(kind)
        fields = made.__dict__
        fields.update(shared)
        for name, copy in own:
            fields[name] = copy()
        if children:
            fields["_modules"].update([(name, child(layer)) for name, child in children])
        if numbered:
            fields["layer"] = layer
        return made
    return twin


def load_exactly(module: nn.Module, state: Mapping[str, Weight]) -> None:
    """Put `state` into `module` without copying; ModelCorrupt unless names and shapes agree.

    Where a matrix is packed, the layer becomes its packed sibling. Half-precision tensors become float32.
    """
    with _uncollected():
        _load(module, state, frozen=False)


def load_frozen(module: Module, state: Mapping[str, Weight]) -> Module:
    """`load_exactly`, then the module for inference: eval() and requires_grad_(False), without walking again."""
    with _uncollected():
        _load(module, state, frozen=True)
    return module


def _load(module: nn.Module, state: Mapping[str, Weight], *, frozen: bool) -> None:
    modules = _modules(module)
    slots = {
        f"{path}.{leaf}" if path else leaf: (path, leaf, parameter)
        for path, owner in modules.items()
        for leaf, parameter in owner._parameters.items()
        if parameter is not None
    }
    _same_names(slots.keys(), state.keys())
    state = {name: state[name] for name in slots}
    if frozen:
        for owner in modules.values():
            owner.__dict__["training"] = False
    for name, (path, leaf, parameter) in slots.items():
        weight, shape = state[name], tuple(parameter.shape)
        if _shape(weight) != shape:
            raise _misfit(f"{name} is {_shape(weight)} instead of {shape}")
        if isinstance(weight, Tensor):
            # A parameter that is there already: Module.__setattr__ would look for every other kind of attribute first.
            modules[path]._parameters[leaf] = _parameter(weight, parameter.requires_grad and not frozen)
    # Biases first: the packed sibling of a layer takes its bias along.
    for name in sorted(slots, key=lambda name: slots[name][1]):
        if not isinstance(state[name], Tensor):
            _replace(modules, slots[name][0], name, state[name])


def _modules(module: nn.Module) -> dict[str, nn.Module]:
    """`dict(module.named_modules())` in one loop; there, every module passes through all of its parents."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    waiting = [("", module)]
    while waiting:
        path, owner = waiting.pop()
        if id(owner) not in seen:
            seen.add(id(owner))
            found[path] = owner
            prefix = f"{path}." if path else ""
            children = [(prefix + name, child) for name, child in owner._modules.items() if child is not None]
            waiting += children[::-1]
    return found


def _replace(modules: Mapping[str, nn.Module], path: str, name: str, weight: Weight) -> None:
    """Put the packed sibling of a layer in its place, or dense weights where the layer has none."""
    owner = modules[path]
    parent, _, leaf = path.rpartition(".")
    if isinstance(weight, tuple):
        packed = tuple(part for part in weight if isinstance(part, PackedTensor))
        whole = stack_rows(packed) if packed and len(packed) == len(weight) else None
        if packed and whole is None and isinstance(owner, nn.Linear):
            modules[parent]._modules[leaf] = StackedLinear(weight, owner.bias).train(owner.training)
            return
        weight = whole or torch.cat([_dense(part) for part in weight])
    if isinstance(weight, PackedTensor) and name.endswith(".weight"):
        if isinstance(owner, nn.Linear):
            modules[parent]._modules[leaf] = QuantLinear.instead_of(owner, weight)
            return
        if isinstance(owner, nn.Embedding):
            modules[parent]._modules[leaf] = QuantEmbedding(weight).train(owner.training)
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
