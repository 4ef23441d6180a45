"""Linear layers that train in integers: near f32 forward and back, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from aios.model.fast_linear import FastLinear, repack, use_integer_products

LIBRARY_TESTS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic", "test_autograd_registration")


def _error(found: Tensor | None, exact: Tensor | None) -> float:
    assert found is not None and exact is not None
    return float((found.detach() - exact.detach()).norm() / exact.detach().norm())


def _layers(rows: int, columns: int, *, bias: bool = True) -> tuple[FastLinear, nn.Linear]:
    torch.manual_seed(0)
    plain, pair = nn.Linear(columns, rows, bias=bias), nn.Sequential(nn.Linear(columns, rows, bias=bias))
    pair[0].load_state_dict(plain.state_dict())
    use_integer_products(pair)
    fast = pair[0]
    assert isinstance(fast, FastLinear)
    return fast, plain


@pytest.mark.parametrize(("tokens", "columns", "rows"), [(7, 40, 33), (600, 64, 96), (130, 515, 50)])
def test_output_and_gradients_are_near_those_of_f32(tokens: int, columns: int, rows: int) -> None:
    fast, plain = _layers(rows, columns)
    x = torch.randn(2, tokens, columns)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    target = torch.randn(2, tokens, rows)
    ours, exact = fast(mine), plain(theirs)
    (ours * target).sum().backward()
    (exact * target).sum().backward()
    assert _error(ours, exact) < 0.025 and _error(mine.grad, theirs.grad) < 0.025
    assert _error(fast.weight.grad, plain.weight.grad) < 1e-3   # of the same gradient: integers of 12 bits
    assert _error(fast.bias.grad, plain.bias.grad) == 0.0


def test_a_single_number_is_exact() -> None:
    fast, plain = _layers(1, 1, bias=False)
    x = torch.tensor([[3.0], [0.0], [-0.5]])
    assert torch.allclose(fast(x), plain(x), rtol=1e-2)


def test_without_gradients_the_layer_is_its_f32_self() -> None:
    fast, plain = _layers(33, 40)
    x = torch.randn(5, 40)
    with torch.no_grad():
        assert torch.equal(fast(x), plain(x))
    assert not torch.equal(fast(x), plain(x))


def test_weights_that_moved_are_taken_over_by_packing_anew() -> None:
    fast, _ = _layers(16, 24, bias=False)
    x = torch.randn(5, 24)
    before = fast(x)
    with torch.no_grad():
        fast.weight.mul_(2.0)
    assert torch.equal(fast(x), before)
    repack(fast)
    assert torch.equal(fast(x), 2.0 * before)


def test_compiled_whole_it_gives_the_same_bits() -> None:
    fast, _ = _layers(48, 32, bias=False)
    x = torch.randn(3, 9, 32, requires_grad=True)

    def linear(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aios.integer_linear(x, fast.weight, fast.ahead, fast.back)
        return y

    alone = fast(x)
    of_x, of_weight = torch.autograd.grad(alone.square().sum(), (x, fast.weight))
    together = torch.compile(linear, dynamic=False, fullgraph=True, backend="aot_eager")(x)
    compiled = torch.autograd.grad(together.square().sum(), (x, fast.weight))
    assert torch.equal(alone, together) and torch.equal(of_x, compiled[0]) and torch.equal(of_weight, compiled[1])


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch asks it of bytes, which have none
def test_the_operators_keep_the_laws_of_torch_library() -> None:
    fast, _ = _layers(4, 8, bias=False)
    x = torch.randn(6, 8, requires_grad=True)
    operators = torch.ops.aios
    weight = fast.weight.detach().clone().requires_grad_()
    torch.library.opcheck(operators.integer_linear.default, (x, weight, fast.ahead, fast.back),
                          test_utils=LIBRARY_TESTS)
    torch.library.opcheck(operators.integer_product.default, (x.detach(), fast.ahead, 4), test_utils=LIBRARY_TESTS[:2])
    torch.library.opcheck(operators.integer_weight_gradient.default, (torch.randn(6, 4), x.detach()),
                          test_utils=LIBRARY_TESTS[:2])


def test_only_what_moves_gets_a_gradient() -> None:
    fast, plain = _layers(4, 8)
    x = torch.randn(6, 8)
    fast(x).sum().backward()
    plain(x).sum().backward()
    assert _error(fast.weight.grad, plain.weight.grad) < 1e-3
    fast.weight.requires_grad_(False)   # as under an adapter
    x.requires_grad_()
    (of_x,) = torch.autograd.grad(fast(x).sum(), x)
    assert _error(of_x, plain.weight.sum(dim=0).expand(6, -1)) < 0.025


def test_a_network_keeps_its_names_and_its_other_layers() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 4))
    names, x = list(network.state_dict()), torch.randn(2, 4)
    use_integer_products(network)
    use_integer_products(network)       # again changes nothing
    assert type(network[0]) is FastLinear and type(network[1]) is nn.Embedding and list(network.state_dict()) == names
    with torch.no_grad():
        assert torch.equal(network[0](x), functional.linear(x, network[0].weight, network[0].bias))


def test_a_layer_off_the_processor_is_refused() -> None:
    with pytest.raises(ValueError, match="on a processor, not on meta"):
        use_integer_products(nn.Linear(4, 4, device="meta"))
