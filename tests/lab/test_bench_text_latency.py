"""The latency bench: what it counts, and that a whole text is written at the size it says."""

from __future__ import annotations

import pytest

from aios.lab import bench_text_latency
from aios.lab.bench_text_latency import ROWS, STEPS, denoiser, operations, specification
from aios.lab.load_models import shapes
from aios.lab.report import LabOptions


@pytest.mark.parametrize(("name", "millions"), [("350M", 342), ("22M", 22)])
def test_the_networks_have_the_sizes_that_they_are_named_by(name: str, millions: int) -> None:
    total = sum(a * b for a, b in (shape for shape in shapes(specification(name)).values() if len(shape) == 2))
    assert total / 1e6 == pytest.approx(millions, rel=0.05)


def test_operations_are_counted_where_they_are_done() -> None:
    spec = specification("22M")
    layer = 4 * 384 * 384 + 3 * 384 * 1024
    head = 30_522 * 384
    asked = 64 + 48 + 32 + 16       # masked positions of four steps
    assert operations(spec, 64) == 2 * (6 * layer * 64 * STEPS + head * asked)


def test_every_row_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    small = specification("22M")
    small["transformer"] |= {"num_layers": 1}
    small["vocab_size"] = 512
    monkeypatch.setattr(bench_text_latency, "specification", lambda name: small)
    report = bench_text_latency.run(LabOptions(seed=3, quick=True))
    assert [row.metric for row in report.rows] == [row.metric for row in ROWS]
    assert all(row.value and "INT2" in (row.reason or "") for row in report.rows)


def test_a_seed_draws_the_same_network() -> None:
    spec = specification("22M") | {"vocab_size": 64}
    one, again, other = (denoiser(spec, seed).network.head.embedding for seed in (1, 1, 2))
    codes = [each.packed.packed.codes for each in (one, again, other)]  # type: ignore[union-attr]
    assert codes[0].equal(codes[1]) and not codes[0].equal(codes[2])
