"""ArrowQuant against its references, and the laws of the packed order."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aios import ArrowQuant
from aios.contracts import PackedTensor
from aios.errors import BadInput
from tests.store import quant_reference as reference

BITS, GROUPS = (8, 4, 2), (32, 64, 128)
Sizes = tuple[int, int, int, int, bool, int]   # rows, columns, bits, group size, symmetric, seed
SIZES = st.tuples(st.integers(0, 70), st.integers(0, 300), st.sampled_from(BITS), st.sampled_from(GROUPS),
                  st.booleans(), st.integers(0, 2 ** 31))


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def curvature(columns: int, seed: int = 0) -> Tensor:
    """X^T X of activations that are correlated and of very different sizes."""
    mix = torch.eye(columns) + 0.3 * normal(columns, columns, seed + 1) / columns ** 0.5
    inputs = normal(4 * columns, columns, seed + 2) @ mix * torch.exp(normal(1, columns, seed + 3))
    return inputs.T @ inputs


def loss(weights: Tensor, left: Tensor, hessian: Tensor) -> float:
    """How far the layer's outputs move, squared."""
    error = (weights - left).double()
    return float(((error @ hessian.double()) * error).sum())


def same(one: PackedTensor, other: PackedTensor) -> bool:
    return one.parts.keys() == other.parts.keys() and all(
        torch.equal(part.view(torch.uint8), other.parts[name].view(torch.uint8)) for name, part in one.parts.items())


@given(SIZES)
@settings(max_examples=60, deadline=None)
def test_packing_is_the_defined_order_and_unpacking_its_inverse(sizes: Sizes) -> None:
    rows, columns, bits, size, symmetric, seed = sizes
    noise = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2 ** bits, (rows, columns), generator=noise, dtype=torch.uint8)
    scales = torch.randn(rows, -(-columns // size), generator=noise).half()
    zeros = None if symmetric else scales * 3
    packed = ArrowQuant.pack(codes, scales, zeros, bits=bits, group_size=size, threads=1)
    assert torch.equal(packed.codes, reference.pack(codes, bits))
    assert torch.equal(packed.scales, reference.pack_scales(scales))
    assert (packed.zeros is None) == symmetric
    assert zeros is None or torch.equal(packed.zeros, reference.pack_scales(zeros))
    back = ArrowQuant.unpack(packed, threads=1)
    assert torch.equal(back[0], codes) and torch.equal(back[1], scales)
    assert back[2] is None if symmetric else torch.equal(back[2], zeros)


@given(SIZES)
@settings(max_examples=60, deadline=None)
def test_weights_are_zero_plus_scale_times_code_in_f32(sizes: Sizes) -> None:
    rows, columns, bits, size, symmetric, seed = sizes
    weights = normal(rows, columns, seed)
    packed = ArrowQuant.quantize(weights, bits=bits, group_size=size, symmetric=symmetric, threads=1)
    codes, scales, zeros = ArrowQuant.unpack(packed, threads=1)
    wide = scales.float().repeat_interleave(size, 1)[:, :columns]
    if zeros is None:
        weights = wide * (codes.float() - 2 ** (bits - 1))
    else:
        weights = zeros.float().repeat_interleave(size, 1)[:, :columns] + wide * codes.float()
    assert torch.equal(ArrowQuant.dequantize(packed, threads=1), weights)


@given(SIZES, st.sampled_from((1.0, 1e-3, 300.0)))
@settings(max_examples=60, deadline=None)
def test_rounding_takes_the_nearest_code_except_at_ties(sizes: Sizes, size: float) -> None:
    rows, columns, bits, group_size, symmetric, seed = sizes
    weights = normal(rows, max(columns, 1), seed) * size
    packed = ArrowQuant.quantize(weights, bits=bits, group_size=group_size, symmetric=symmetric, threads=1)
    codes, scales, zeros = ArrowQuant.unpack(packed, threads=1)
    places, wanted_scales, wanted_zeros = reference.rtn(weights, bits, group_size, symmetric)
    assert torch.equal(scales.float(), wanted_scales)
    assert zeros is None or torch.equal(zeros.float(), wanted_zeros)
    differs = codes.float() != places.round()
    from_tie = (places - places.floor() - 0.5).abs()
    assert (from_tie[differs] < 1e-4 * 2 ** bits / 4).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_searched_ranges_never_lose_more_than_full_ranges(bits: int, symmetric: bool) -> None:
    weights = normal(40, 200)
    lost = [(weights - ArrowQuant.dequantize(ArrowQuant.quantize(
        weights, bits=bits, symmetric=symmetric, search=search))).square().reshape(40, -1) for search in (False, True)]
    for columns in reference.groups(weights, 64):
        assert (lost[1][:, columns].sum(1) <= lost[0][:, columns].sum(1) * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("size", [0.02, 5.0])
def test_half_quadratic_grids_lose_no_more_than_the_paper_s(bits: int, size: float) -> None:
    weights = normal(64, 256) * size
    ours = ArrowQuant.dequantize(ArrowQuant.quantize(weights, bits=bits, method="hqq"))
    theirs = reference.hqq_weights(weights, bits, 64)
    assert (weights - ours).square().mean() <= (weights - theirs).square().mean()


def test_half_quadratic_grids_fit_the_many_and_not_the_outlier() -> None:
    weights = normal(32, 128) * 0.1
    weights[:, 5] = 4.0
    errors = [(weights - ArrowQuant.dequantize(ArrowQuant.quantize(weights, bits=2, group_size=128, method=method)))
              .abs().sum(1) for method in ("rtn", "hqq")]
    assert (errors[1] <= errors[0]).all() and errors[1].sum() < 0.9 * errors[0].sum()


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("columns", [96, 200])
@pytest.mark.parametrize("search", [False, True])
def test_gptq_moves_the_outputs_no_more_than_the_paper_s(bits: int, columns: int, search: bool) -> None:
    weights, hessian = normal(48, columns), curvature(columns)
    ours = ArrowQuant.dequantize(ArrowQuant.quantize(
        weights, bits=bits, method="gptq", hessian=hessian, search=search))
    theirs = reference.gptq_weights(weights, hessian, bits, 64)
    rounded = reference.rtn_weights(weights, bits, 64, symmetric=False)
    assert loss(weights, ours, hessian) <= loss(weights, theirs, hessian)
    assert not search or loss(weights, ours, hessian) < 0.5 * loss(weights, rounded, hessian)


def test_gptq_without_correlations_is_rounding_to_nearest() -> None:
    weights = normal(40, 100)
    plain = ArrowQuant.quantize(weights, group_size=32)
    assert same(plain, ArrowQuant.quantize(
        weights, group_size=32, method="gptq", hessian=torch.eye(100) * 3, search=False))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("rows", "columns", "rank"), [(40, 96, 8), (96, 40, 40), (1, 33, 1)])
def test_a_residual_is_nearly_the_best_of_its_rank(rows: int, columns: int, rank: int, weighted: bool) -> None:
    weights, hessian = normal(rows, columns), curvature(columns) if weighted else None
    given = {"bits": 2, "hessian": hessian, "search": weighted}
    plain = ArrowQuant.dequantize(ArrowQuant.quantize(weights, **given))
    repaired = ArrowQuant.quantize(weights, rank=rank, **given)
    assert repaired.left.shape == (rows, rank) and repaired.right.shape == (rank, columns)
    measure = torch.eye(columns) if hessian is None else hessian
    best = plain + reference.low_rank(weights - plain, rank, hessian)
    ours = loss(weights, ArrowQuant.dequantize(repaired), measure)
    assert ours <= loss(weights, best, measure) * 1.01 + 1e-5 * loss(weights, plain, measure)


@pytest.mark.parametrize("given", [{}, {"search": True}, {"method": "hqq"}, {"method": "gptq"}, {"rank": 5}])
def test_the_result_does_not_depend_on_the_threads(given: dict) -> None:
    weights, hessian = normal(130, 150), curvature(150)
    one, three = (ArrowQuant.quantize(weights, bits=2, hessian=hessian, threads=n, **given) for n in (1, 3))
    assert same(one, three)


def test_the_portable_path_gives_the_same_bits() -> None:
    program = """
import hashlib, torch
from aios import ArrowQuant
w = torch.randn(70, 200, generator=torch.Generator().manual_seed(1))
h = w.T @ w + torch.eye(200)
digest = hashlib.sha256()
for bits in (8, 4, 2):
    for given in ({}, {"symmetric": True}, {"search": True}, {"method": "hqq"}, {"method": "gptq"}, {"rank": 4}):
        packed = ArrowQuant.quantize(w, bits=bits, hessian=h, threads=1, **given)
        for part in packed.parts.values():
            digest.update(part.view(torch.uint8).numpy())
        digest.update(ArrowQuant.dequantize(packed).numpy())
print(digest.hexdigest())"""
    said = {isa: subprocess.run([sys.executable, "-c", program], env={**os.environ, "AIOS_ISA": isa}, check=True,
                                capture_output=True, text=True).stdout for isa in ("scalar", "avx2")}
    assert len(set(said.values())) == 1


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_their_f32_values(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from aios.store import quant

    monkeypatch.setattr(quant, "CHUNK_WEIGHTS", 40 * 100)   # several pieces, the last one a short panel
    weights = normal(100, 100).to(kind)
    assert same(ArrowQuant.quantize(weights), ArrowQuant.quantize(weights.float()))


def test_views_and_arrays_are_taken_as_they_are() -> None:
    weights = normal(200, 140)
    view = weights.T[3:100:2, 10:]
    plain = ArrowQuant.quantize(view.clone())
    assert same(plain, ArrowQuant.quantize(view)) and same(plain, ArrowQuant.quantize(view.numpy()))
    frozen = view.numpy().copy()
    frozen.flags.writeable = False
    assert same(plain, ArrowQuant.quantize(frozen))
    assert same(plain, ArrowQuant.quantize(frozen.astype(">f4")))


@pytest.mark.parametrize("method", ["rtn", "hqq", "gptq"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e6])
def test_a_weight_that_no_grid_holds_is_named_by_its_place(
        method: str, bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from aios.store import quant

    monkeypatch.setattr(quant, "CHUNK_WEIGHTS", 32 * 70)
    for kind in (torch.float32, torch.bfloat16):
        weights = normal(100, 70).to(kind)
        weights[77, 69] = bad
        with pytest.raises(BadInput, match="row 77, column 69"):
            ArrowQuant.quantize(weights, method=method, hessian=torch.eye(70))


@pytest.mark.parametrize("given", [
    {"bits": 3}, {"bits": 0}, {"group_size": 48}, {"method": "magic"}, {"method": "gptq"}, {"rank": 9}, {"rank": -1},
    {"method": "hqq", "search": True}, {"method": "gptq", "hessian": torch.eye(7)},
    {"method": "gptq", "hessian": -torch.eye(8)}, {"method": "gptq", "hessian": torch.full((8, 8), torch.nan)},
    {"rank": 2, "hessian": torch.full((8, 8), torch.inf)}])
def test_what_cannot_be_done_is_refused_with_a_remedy(given: dict) -> None:
    with pytest.raises(BadInput) as caught:
        ArrowQuant.quantize(normal(8, 8), **given)
    assert caught.value.remedy


def test_only_matrices_of_floats_are_quantised() -> None:
    for wrong in (torch.zeros(3), torch.zeros(2, 2, 2), torch.zeros(4, 4, dtype=torch.int64) != 0,
                  np.zeros((2, 2), dtype=complex)):
        with pytest.raises(BadInput):
            ArrowQuant.quantize(wrong)


def test_a_code_with_too_many_bits_is_named_by_its_place() -> None:
    codes = torch.zeros(40, 50, dtype=torch.uint8)
    codes[39, 49] = 4
    with pytest.raises(BadInput, match="row 39, column 49 is 4"):
        ArrowQuant.pack(codes, torch.ones(40, 1), bits=2, group_size=64)


def test_constant_groups_and_tiny_weights_stay_close() -> None:
    weights = torch.cat([torch.full((1, 64), value) for value in (0.0, 0.1, -3.0, 1e-9, 60000.0)])
    for symmetric in (False, True):
        left = ArrowQuant.dequantize(ArrowQuant.quantize(weights, symmetric=symmetric))
        assert torch.isfinite(left).all() and ((left - weights).abs() <= weights.abs() * 2 ** -11 + 1e-8).all()
