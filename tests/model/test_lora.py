"""Laws of adapters beside a network: what they add, to which rows, to no bit elsewhere, and how they train."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import aios
from aios.contracts import Adapter, Canvas, Kind, Logits, Prediction
from aios.errors import BadInput, CardMisfit, ReleaseMismatch
from aios.model.cache import KeyValueCache, PackedStep, Piece
from aios.model.config import TransformerConfig
from aios.model.denoiser import TextDenoiser
from aios.model.heads import TextHead
from aios.model.language import LanguageModel
from aios.model.lora import LowRank, OnRows, check_wearable, linear_shapes
from aios.model.quant_linear import QuantLinear
from aios.model.score_network import TextScoreNetwork
from aios.model.transformer import SharedTransformer
from aios.store.quant import ArrowQuant
from aios.training.samples import text_canvas

WIDTH, VOCAB = 64, 24
CONFIG = TransformerConfig.of(WIDTH, 2, head_dim=16, num_kv_heads=2, ffn_dim=96, time_conditioning=False)
CAUSAL = replace(CONFIG, attention="causal", num_modalities=0)
CLOSE = {"atol": 2e-4, "rtol": 2e-4}
ROUNDED = {"atol": 3e-3, "rtol": 3e-3}     # activations are integers of 16 bits


def adapter(rank: int = 3, *, kind: Kind = "diffusion", targets: str = "", seed: int = 1) -> LowRank:
    """One that has learned something, beside every linear map whose name holds `targets`."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {name: shape for name, shape in linear_shapes(CONFIG).items() if targets in name}
    made = LowRank.fresh(shapes, rank=rank, rng=rng, name=f"card {seed}", kind=kind, release="r1", alpha=2.0)
    for _, b in made.factors.values():
        b.data.normal_(0, 0.2, generator=rng)
    return made


def busy(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval().requires_grad_(False)


def backbone(config: TransformerConfig = CONFIG, bits: int | None = None) -> SharedTransformer:
    made = busy(SharedTransformer.from_config(config))
    assert isinstance(made, SharedTransformer)
    return made if bits is None else packed(made, bits)


def packed(network: SharedTransformer, bits: int) -> SharedTransformer:
    for name, linear in linears(network):
        weight = ArrowQuant.quantize(linear.weight.detach(), bits=bits, group_size=32)
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, QuantLinear.instead_of(linear, weight))
    return network


def linears(network: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    yield from [(name, module) for name, module in network.named_modules()
                if isinstance(module, nn.Linear) and name.startswith("layers.")]


def dense(network: SharedTransformer) -> SharedTransformer:
    """The same network with what its packed weights stand for."""
    twin = deepcopy(network)
    for name, module in list(twin.named_modules()):
        if isinstance(module, QuantLinear):
            weight = module.packed.dense()
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight = nn.Parameter(weight, requires_grad=False)
            parent, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(parent), leaf, linear)
    return twin


def merged(network: SharedTransformer, *worn: LowRank) -> SharedTransformer:
    """A dense copy whose weights have the adapters added, as the product itself never does."""
    twin = dense(network)
    with torch.no_grad():
        for one in worn:
            for name, (a, b) in one.factors.items():
                weight = twin.get_submodule(name).weight
                assert isinstance(weight, Tensor)
                weight += one.alpha / len(a) * b @ a
    return twin


def test_the_maps_that_may_be_adapted_are_those_of_the_layers() -> None:
    assert linear_shapes(CONFIG) == {name: tuple(linear.weight.shape) for name, linear in linears(backbone())}


@torch.inference_mode()
@pytest.mark.parametrize("bits", [None, 8, 4, 2])
def test_worn_adapters_equal_merged_weights(bits: int | None) -> None:
    network = backbone(bits=bits)
    one, other = adapter(), adapter(5, targets="ffn", seed=2)
    x = torch.randn(2, 7, WIDTH)
    found = network(x, adapters=[one, other])
    torch.testing.assert_close(found, merged(network, one, other)(x), **(CLOSE if bits is None else ROUNDED))
    assert not torch.allclose(found, network(x), **ROUNDED)


@torch.inference_mode()
@pytest.mark.parametrize("bits", [None, 8, 4, 2])
def test_an_adapter_that_has_learned_nothing_changes_no_bit(bits: int | None) -> None:
    network = backbone(bits=bits)
    rng = torch.Generator().manual_seed(1)
    idle = LowRank.fresh(linear_shapes(CONFIG), rank=4, rng=rng, name="new", kind="diffusion", release="r1", alpha=8.0)
    x = torch.randn(2, 7, WIDTH)
    assert torch.equal(network(x, adapters=[idle]), network(x))
    assert torch.equal(read(network, x, [idle]), read(network, x))


def read(network: SharedTransformer, x: Tensor, adapters: Sequence[Adapter] = ()) -> Tensor:
    """As a denoiser reads a canvas: natively, where the layers are packed; a clean beginning of two tokens."""
    cache = KeyValueCache(network.config, batch=len(x), length_max=x.shape[1])
    positions, handles = torch.arange(x.shape[1]).expand(len(x), -1), network.packed_layers()
    before = network.read(x[:, :2], cache, 0, positions=positions[:, :2], packed=handles, adapters=adapters)
    cache.advance(2)
    opened = x.shape[1] - 3
    behind = network.read(x[:, 2:], cache, opened, positions=positions[:, 2:], packed=handles, adapters=adapters)
    return torch.cat((before, behind), dim=1)


def forward(network: SharedTransformer, x: Tensor, adapters: Sequence[Adapter] = ()) -> Tensor:
    found: Tensor = network(x, adapters=adapters)
    return found


@torch.inference_mode()
@pytest.mark.parametrize("bits", [None, 8, 4, 2])
@pytest.mark.parametrize("run", [forward, read])
def test_every_row_computes_what_it_would_alone_and_a_bare_row_keeps_every_bit(
    bits: int | None, run: Callable[..., Tensor]
) -> None:
    network = backbone(bits=bits)
    one, other, third = adapter(), adapter(2, seed=2), adapter(4, targets="attention", seed=3)
    x = torch.randn(4, 6, WIDTH)
    found = run(network, x, [OnRows(adapter=one, rows=(0, 3)), OnRows(adapter=other, rows=(2,)),
                             OnRows(adapter=third, rows=(3,))])
    for row, worn in enumerate([[one], [], [other], [one, third]]):
        torch.testing.assert_close(found[row], run(network, x[row:row + 1], worn)[0], **ROUNDED)
    assert torch.equal(found[1], run(network, x)[1])
    assert not torch.allclose(found[3], run(network, x, [one])[3], **ROUNDED)


@torch.inference_mode()
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_canvas_read_natively_and_by_modules_wears_the_same(bits: int) -> None:
    network = backbone(bits=bits)
    x, worn = torch.randn(3, 6, WIDTH), [adapter(), OnRows(adapter=adapter(seed=2), rows=(1,))]
    torch.testing.assert_close(read(network, x, worn), read(dense(network), x, worn), **ROUNDED)


def language(bits: int | None = None) -> LanguageModel:
    head = busy(TextHead(VOCAB, WIDTH))
    assert isinstance(head, TextHead)
    return LanguageModel(backbone(CAUSAL, bits), head, 64)


def written(model: LanguageModel, prompts: dict[str, list[int]], worn: dict[str, list[LowRank]]) -> list[Tensor]:
    """Logits of every step while prompts are read in pieces, join, and go on for three tokens."""
    running = model.running_cache()
    caches = {name: model.prompt_cache(len(ids)) for name, ids in prompts.items()}

    def step(ids: list[int], *pieces: tuple[str, int]) -> Tensor:
        told = PackedStep(running, [Piece(cache=caches[name], count=count) for name, count in pieces])
        names = [*told.names, *(name for name, _ in pieces)]
        adapters = [OnRows(adapter=one, rows=(row,)) for row, name in enumerate(names) for one in worn.get(name, [])]
        found = model.advance(ids, told, adapters=adapters)
        for name, _ in pieces:
            if caches[name].length == len(prompts[name]):
                running.join(name, caches[name])
        order = sorted(range(len(names)), key=names.__getitem__)
        return found[order]

    found = [step([token for ids in prompts.values() for token in ids[:-1]],
                  *((name, len(ids) - 1) for name, ids in prompts.items())),
             step([ids[-1] for ids in prompts.values()], *((name, 1) for name in prompts))]
    return [*found, *(step([7] * len(prompts)) for _ in range(3))]


PROMPTS = {"a": [3, 4, 5, 6], "b": [9, 8], "c": [1, 2, 3, 4, 5, 6, 7], "d": [5, 5, 5]}


@torch.inference_mode()
@pytest.mark.parametrize("bits", [None, 8, 4, 2])
def test_texts_written_together_wear_their_own_and_a_bare_one_keeps_every_bit(bits: int | None) -> None:
    model = language(bits)
    one, other = adapter(kind="ar"), adapter(2, kind="ar", seed=2)
    worn = {"a": [one], "c": [other, one], "d": [other]}
    found, bare = written(model, PROMPTS, worn), written(model, PROMPTS, {})
    for row, name in enumerate(PROMPTS):
        alone = written(model, {name: PROMPTS[name]}, {name: worn.get(name, [])})
        for together, single in zip(found, alone, strict=True):
            torch.testing.assert_close(together[row], single[0], **ROUNDED)
    assert all(torch.equal(mixed[1], never[1]) for mixed, never in zip(found, bare, strict=True))
    assert all(not torch.allclose(mixed[0], never[0], **ROUNDED) for mixed, never in zip(found, bare, strict=True))


@torch.inference_mode()
@pytest.mark.parametrize("bits", [None, 4])
def test_a_text_written_token_by_token_equals_merged_weights_that_read_it_whole(bits: int | None) -> None:
    model, one = language(bits), adapter(kind="ar")
    found = written(model, {"a": PROMPTS["a"]}, {"a": [one]})
    ids = torch.tensor([[*PROMPTS["a"], 7, 7, 7]])
    whole = model.head.project(merged(model.backbone, one)(model.head.embed(ids)))[0, 2:]
    torch.testing.assert_close(torch.cat(found), whole, **ROUNDED)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_gradients_through_packed_weights_are_those_of_dense_ones(bits: int) -> None:
    network = backbone(bits=bits)
    x, wanted = torch.randn(3, 5, WIDTH), torch.randn(3, 5, WIDTH)
    gradients = []
    for base in (network, dense(network)):
        one, other = adapter(), adapter(2, targets="layers.0", seed=2)
        given = x.clone().requires_grad_()
        out = base(given, adapters=[OnRows(adapter=one, rows=(0, 2)), other])
        (out * wanted).sum().backward()
        gradients.append([given.grad, *(factor.grad for factor in one.parameters() + other.parameters())])
    assert len(gradients[0]) == 1 + 2 * 14 + 2 * 7
    for ours, theirs in zip(*gradients, strict=True):
        assert ours is not None and theirs is not None and bool(ours.any())
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)


def test_factors_have_the_gradients_of_their_formula() -> None:
    one = adapter(targets="layers.0.ffn.down")
    ((a, b),) = one.factors.values()
    a, b = (factor.detach().double().requires_grad_() for factor in (a, b))
    x = torch.randn(2, 96, dtype=torch.float64, requires_grad=True)

    def delta(x: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
        return LowRank(name="", kind="ar", release="", alpha=2.0, factors={"m": (a, b)}).delta("m", x)

    assert torch.autograd.gradcheck(delta, (x, a, b))
    torch.testing.assert_close(delta(x, a, b), 2.0 / 3 * x @ a.T @ b.T)


def test_an_adapter_learns_on_packed_weights_while_everything_else_stays() -> None:
    network = TextScoreNetwork(CONFIG, VOCAB)
    busy(network)
    packed(network.backbone, 4)
    ids = torch.randint(0, VOCAB, (4, 8))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rng = torch.Generator().manual_seed(1)
    card = LowRank.fresh(linear_shapes(CONFIG), rank=4, rng=rng, name="new", kind="diffusion", release="r1", alpha=8.0)
    optimiser = torch.optim.AdamW(card.parameters(), lr=0.03)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(network(ids, adapters=[card]).flatten(0, 1), ids.flip(1).flatten())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    taught = network(ids, adapters=[card])
    with torch.inference_mode():
        torch.testing.assert_close(network(ids, adapters=[card]), taught.detach(), atol=0.02, rtol=0.02)


def test_a_compiled_network_wears_the_same() -> None:
    """In a process of its own: the compiler cannot follow the checks of shapes that wrap every function here."""
    root = Path(aios.__file__).parents[1]
    subprocess.run([sys.executable, "-W", "error", __file__], check=True, timeout=300,
                   env={**os.environ, "PYTHONPATH": str(root)})


def compile_and_compare() -> None:
    network, card = packed(backbone(replace(CONFIG, num_layers=1)), 4), adapter(targets="layers.0")
    worn, x = [OnRows(adapter=card, rows=(1,))], torch.randn(2, 5, WIDTH, requires_grad=True)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    found, expected = compiled(x, adapters=worn), network(x, adapters=worn)
    torch.testing.assert_close(found, expected, **CLOSE)
    ours, theirs = (torch.autograd.grad(out.square().sum(), card.parameters()) for out in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def logits(prediction: Prediction) -> Tensor:
    (found,) = prediction.segments
    assert isinstance(found, Logits)
    return found.values


@torch.inference_mode()
@pytest.mark.parametrize("bits", [None, 4])
def test_a_denoiser_hands_on_what_each_row_wears(bits: int | None) -> None:
    network = TextScoreNetwork(CONFIG, VOCAB)
    busy(network)
    if bits is not None:
        packed(network.backbone, bits)
    ids, worn = torch.randint(4, VOCAB, (2, 5)), [OnRows(adapter=adapter(), rows=(0,))]
    canvas = text_canvas(ids, 4)
    denoise = TextDenoiser(network, end_ids=(2,))
    found, bare = logits(denoise(canvas, None, worn)), logits(denoise(canvas))
    assert torch.equal(found[1], bare[1])
    assert not torch.allclose(found[0, 5:], bare[0, 5:], **ROUNDED)
    (segment,) = canvas.segments
    expected = network(segment.x, t=segment.t, positions=segment.positions[..., 0], adapters=worn)
    torch.testing.assert_close(found[segment.masked], expected[segment.masked], **ROUNDED)


@torch.inference_mode()
def test_a_beginning_that_was_read_with_other_adapters_is_read_anew() -> None:
    network = TextScoreNetwork(CONFIG, VOCAB)
    busy(network)
    canvas = text_canvas(torch.randint(4, VOCAB, (1, 6)), 3, onward=True)
    (segment,) = canvas.segments
    fresh = Canvas(segments=(replace(segment, memo=None),))
    denoise, one, other = TextDenoiser(network, end_ids=(2,)), adapter(), adapter(seed=2)
    for worn in ([], [one], [one], [OnRows(adapter=other, rows=(0,))], []):
        torch.testing.assert_close(logits(denoise(canvas, None, worn)), logits(denoise(fresh, None, worn)), **CLOSE)


def test_an_adapter_of_another_kind_or_release_is_refused() -> None:
    network = TextScoreNetwork(CONFIG, VOCAB)
    busy(network)
    with pytest.raises(ReleaseMismatch, match="models of kind ar; this one is diffusion"):
        TextDenoiser(network, end_ids=())(text_canvas(torch.tensor([[5]]), 2), None, [adapter(kind="ar")])
    model = language()
    with pytest.raises(ReleaseMismatch, match="models of kind diffusion; this one is ar"):
        step = PackedStep(model.running_cache(), [Piece(cache=model.prompt_cache(1), count=1)])
        model.advance([3], step, adapters=[OnRows(adapter=adapter(), rows=(0,))])
    with pytest.raises(ReleaseMismatch, match="release r1; this model is r2"):
        check_wearable([adapter()], kind="diffusion", release="r2")
    check_wearable([adapter()], kind="diffusion", release="r1")


@pytest.mark.parametrize("config", [replace(CONFIG, ffn_dim=64), replace(CONFIG, num_layers=1)])
@pytest.mark.parametrize("bits", [None, 4])
def test_an_adapter_of_other_names_or_shapes_is_refused(config: TransformerConfig, bits: int | None) -> None:
    network, x = backbone(config, bits), torch.randn(1, 3, WIDTH)
    with pytest.raises(CardMisfit, match=r"card 1 does not fit the network: layers\."):
        network(x, adapters=[adapter()])
    with pytest.raises(CardMisfit, match="does not fit"), torch.inference_mode():
        read(network, x, [adapter()])


def test_any_adapter_of_the_contract_is_worn_and_one_that_adds_other_widths_is_refused() -> None:
    class Constant:
        name, release = "constant", "r1"
        kind: Kind = "diffusion"

        def __init__(self, width: int) -> None:
            self.width = width

        def delta(self, target: str, x: Tensor) -> Tensor | None:
            return x.new_ones(*x.shape[:-1], self.width) if target == "layers.1.attention.out" else None

    network, x = backbone(), torch.randn(2, 3, WIDTH)
    seen: list[Tensor] = []
    network.layers[1].attention.out.register_forward_hook(lambda module, given, out: seen.append(out))
    assert not torch.equal(network(x, adapters=[Constant(WIDTH)]), network(x))
    assert torch.equal(*seen), "what is added stands beside the map, not in it"
    with pytest.raises(CardMisfit, match=r"constant adds \(2, 3, 1\) to layers.1.attention.out"):
        network(x, adapters=[Constant(1)])


@pytest.mark.parametrize("rows", [(0, 0), (2,), (-1,)])
def test_rows_that_are_not_there_are_refused(rows: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="distinct rows of a batch of 2"):
        backbone()(torch.randn(2, 3, WIDTH), adapters=[OnRows(adapter=adapter(), rows=rows)])


def test_an_adapter_on_rows_is_an_adapter_of_a_whole_batch_that_keeps_every_bit_of_others() -> None:
    inner = adapter()
    one = OnRows(adapter=inner, rows=(1,))
    assert (one.name, one.kind, one.release) == ("card 1", "diffusion", "r1")
    x, y = torch.randn(3, 5, WIDTH), -torch.zeros(3, 5, WIDTH)
    delta = one.delta("layers.0.attention.out", x)
    assert delta is not None
    assert torch.equal(delta[1], inner.delta("layers.0.attention.out", x[1]))
    assert bool((y + delta)[[0, 2]].signbit().all())
    assert one.delta("layers.9.attention.out", x) is None


@pytest.mark.parametrize(("a", "b"), [
    (torch.ones(2, 4), torch.ones(4, 3)), (torch.ones(2), torch.ones(4, 2)), (torch.ones(0, 4), torch.ones(4, 0)),
    (torch.ones(2, 4), torch.ones(4, 2).double()), (torch.ones(2, 4).int(), torch.ones(4, 2).int()),
])
def test_factors_that_are_no_pair_are_refused(a: Tensor, b: Tensor) -> None:
    with pytest.raises(CardMisfit, match=r"the factors of layers\.0\.ffn\.up"):
        LowRank(name="", kind="ar", release="", alpha=1.0, factors={"layers.0.ffn.up": (a, b)})


if __name__ == "__main__":
    compile_and_compare()
