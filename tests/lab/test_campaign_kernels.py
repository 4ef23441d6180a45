"""The small version of `aios eval campaign kernels`: fixed cases on every level, and proof that it can fail."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from aios.lab import campaign_kernels, kernel_cases
from aios.lab.kernel_cases import Case, check, rounded
from aios.lab.report import LabOptions

SEED = 11


def test_products_of_every_kind_are_what_numpy_sums_exactly() -> None:
    cases = [Case.of(SEED, number) for number in range(120)]
    assert [check(case)[1] for case in cases] == [""] * len(cases)
    assert {case.bits for case in cases} == {8, 4, 2} and any(case.wild for case in cases)
    assert {0, 1} <= {len(case.x) for case in cases} and any(case.rank for case in cases)
    assert any(0 in (case.rows, case.columns) for case in cases)


def test_every_level_gives_the_same_bits() -> None:
    levels = (campaign_kernels.PORTABLE, "avx2")
    assert campaign_kernels.mismatches(24, levels, LabOptions(seed=SEED)) == []


def test_a_wrong_code_sum_or_weight_is_found() -> None:
    case = next(case for case in (Case.of(SEED, number) for number in range(99))
                if not case.wild and not case.rank and len(case.x) > 1 and case.rows > 3 and case.columns > 3)
    codes = case.codes.copy()
    codes[0] ^= 1                                     # column 0 of row 0
    spoiled = replace(case, codes=codes)
    assert check(case)[0] != check(spoiled)[0]
    truth = spoiled.plain_codes()
    assert truth[0, 0] != case.plain_codes()[0, 0] and np.array_equal(truth[1:], case.plain_codes()[1:])


def test_what_a_product_is_compared_with_does_not_bend(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in (Case.of(SEED, number) for number in range(99))
                if not case.wild and len(case.x) > 1 and case.rows > 3 and case.columns > 3)
    exact = Case.plain_codes
    monkeypatch.setattr(Case, "plain_codes", lambda self: exact(self) ^ 1)
    reason = check(case)[1]
    assert "a weight is not" in reason and all(f"{bits}-bit activations" in reason for bits in (32, 16, 8))


def test_integers_keep_to_their_range_and_two_neighbours_share_it() -> None:
    x = np.random.default_rng(1).standard_normal((5, 33), np.float32)
    for bits, most in kernel_cases.MOST.items():
        q, scale = rounded(x, bits, shared=False)
        assert np.abs(q).max() == most and np.abs(q * scale[:, None] - x).max() <= scale.max() * 0.501
    q, _ = rounded(x, 8, shared=True)
    pairs = np.pad(q, ((0, 0), (0, 1))).reshape(5, -1, 2)
    assert 120 < np.abs(np.where(pairs > 0, pairs, 0).sum(axis=2)).max() <= 128


def test_other_bits_a_reason_and_an_early_end_are_mismatches(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [["aa", "bb", "cc off"], ["aa", "bx", "cc"]]
    assert campaign_kernels._judge(said, ("scalar", "avx2"), 7) == [
        "scalar, case 9: off", "avx2, case 8: other bits than scalar"]
    monkeypatch.setattr(sys, "executable", "/bin/false")
    wrong = campaign_kernels.mismatches(3, ("scalar",), LabOptions(seed=SEED))
    assert len(wrong) == 1 and "status 1" in wrong[0]


def test_its_rows_count_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign_kernels, "mismatches", lambda count, levels, options: ["one", "two"])
    rows = {row.metric: row for row in campaign_kernels.run(LabOptions(seed=SEED, quick=True)).rows}
    assert rows["mismatches"].value == 2 and rows["mismatches"].missed
    assert rows["sanitizer_findings"].value is None and not rows["sanitizer_findings"].missed
