"""A step in one native call computes what the layers' modules compute, for sequences of every kind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aios.model.cache import KeyValueCache as Memory
from aios.model.cache import PackedStep, Piece, RunningCache
from aios.model.quant_linear import QuantLinear
from aios.model.transformer import SharedTransformer
from aios.store.quant import ArrowQuant

WIDTH = 48
CLOSE = {"atol": 1e-3, "rtol": 1e-3}      # activations are integers of 16 bits in both


def network(kv_heads: int = 2, *, bias: bool = False, qk_norm: bool = False, packed: bool = True) -> SharedTransformer:
    built = SharedTransformer(WIDTH, 2, head_dim=8, num_kv_heads=kv_heads, attention="causal", time_conditioning=False,
                              num_modalities=0, qkv_bias=bias, out_bias=bias, ffn_bias=bias, qk_norm=qk_norm)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    if packed:
        for module in [*built.layers.modules()]:
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    weights = ArrowQuant.quantize(child.weight.detach(), bits=4, group_size=32)
                    setattr(module, name, QuantLinear.instead_of(child, weights))
    return built.eval()


@torch.inference_mode()
@pytest.mark.parametrize(("kv_heads", "bias", "qk_norm"), [(1, False, False), (2, True, False), (6, False, True)])
def test_a_step_equals_its_modules(kv_heads: int, bias: bool, qk_norm: bool) -> None:
    net = network(kv_heads, bias=bias, qk_norm=qk_norm)
    handles = net.packed_layers()
    assert handles is not None
    found = [run(net, handles), run(net, None)]
    for ours, modules in zip(*found, strict=True):
        torch.testing.assert_close(ours, modules, **CLOSE)


def run(net: SharedTransformer, handles: object) -> list[torch.Tensor]:
    """Prompts in pieces beside running sequences, one of which leaves and one of which outgrows its shelf."""
    rng = torch.Generator().manual_seed(4)
    running = RunningCache(net.config, length_max=300)
    prompts = {name: Memory(net.config, batch=1, length_max=length) for name, length in (("a", 127), ("b", 5))}
    hidden: list[torch.Tensor] = []

    def step(*pieces: tuple[str, int]) -> None:
        told = PackedStep(running, [Piece(cache=prompts[name], count=count) for name, count in pieces])
        x = torch.randn(1, len(told.names) + sum(count for _, count in pieces), WIDTH, generator=rng)
        hidden.append(net.advance(x, told, handles))
        for name, _ in pieces:
            if prompts[name].length == prompts[name].length_max:
                running.join(name, prompts[name])

    step(("a", 100))
    step(("a", 27), ("b", 2))
    step(("b", 3))
    for _ in range(3):
        step()
    running.leave("b")
    step()
    return hidden


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 3])
def test_a_canvas_read_natively_equals_its_modules(rows: int) -> None:
    """A clean beginning, then a block that sees itself; another block behind it; a row in both directions."""
    net = network(2, qk_norm=True)
    rng = torch.Generator().manual_seed(5)
    steps = [(0, 7, 2), (5, 4, 2), (7, 2, 0), (0, 9, 9)]      # tokens kept, tokens now, how many see each other
    given = [torch.randn(rows, count, WIDTH, generator=rng) for _, count, _ in steps]
    found = []
    for handles in (net.packed_layers(), None):
        cache = Memory(net.config, batch=rows, length_max=12)
        hidden = []
        for (kept, count, opened), x in zip(steps, given, strict=True):
            cache.length = kept
            positions = torch.arange(kept, kept + count).expand(rows, -1)
            hidden.append(net.read(x, cache, opened, positions=positions, packed=handles))
        found.append(hidden)
    for ours, modules in zip(*found, strict=True):
        torch.testing.assert_close(ours, modules, **CLOSE)
    with pytest.raises(ValueError, match="holds 12 tokens, 13 are needed"):
        cache.length = 8
        net.read(torch.randn(rows, 5, WIDTH), cache, 1, positions=torch.arange(5).expand(rows, -1),
                 packed=net.packed_layers())


def test_layers_that_are_not_packed_have_no_handles() -> None:
    assert network(packed=False).packed_layers() is None


def test_an_exchanged_module_and_a_hook_are_noticed() -> None:
    net = network()
    handles = net.packed_layers()
    assert handles is not None
    assert handles.faithful
    seen: list[int] = []
    hook = net.layers[1].ffn.down.register_forward_hook(lambda module, arguments, out: seen.append(1))
    assert not handles.faithful
    with torch.inference_mode():
        prompt = Piece(cache=Memory(net.config, batch=1, length_max=1), count=1)
        net.advance(torch.randn(1, 1, WIDTH), PackedStep(RunningCache(net.config, length_max=9), [prompt]), handles)
    assert seen == [1]
    hook.remove()
    assert handles.faithful
    net.layers[0].attention.key = nn.Linear(WIDTH, 16, bias=False)
    assert not handles.faithful


def test_a_prompt_that_outgrows_its_cache_is_refused() -> None:
    net = network()
    with torch.inference_mode(), pytest.raises(ValueError, match="holds 3 tokens, 4 are needed"):
        step = PackedStep(RunningCache(net.config, length_max=9),
                          [Piece(cache=Memory(net.config, batch=1, length_max=3), count=4)])
        net.advance(torch.randn(1, 4, WIDTH), step, net.packed_layers())
