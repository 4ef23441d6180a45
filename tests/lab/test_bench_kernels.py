"""Laws of `aios bench kernels`: its rows are there, each says the instruction set, and its parts count what they do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aios.lab import bench_kernels, kernel_peaks
from aios.lab.report import LabOptions

TINY = {"tiny": (((64, 96), (32, 96)), ((96, 64),))}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_kernels, "MODELS", TINY | {"135M": TINY["tiny"]})
    monkeypatch.setattr(bench_kernels, "POOL_BYTES", 1 << 16)
    monkeypatch.setattr(bench_kernels, "PEER_BYTES", 1 << 16)
    monkeypatch.setattr(bench_kernels, "ROWS", (1, 64, 128, 160))
    monkeypatch.setattr(bench_kernels, "CALLS_QUICK", 20)
    monkeypatch.setattr(kernel_peaks, "ROUNDS", 1000)


@pytest.mark.usefixtures("small")
def test_every_row_of_the_table_is_measured_and_names_the_instruction_set() -> None:
    threads = torch.get_num_threads()
    report = bench_kernels.run(LabOptions(quick=True, seed=3))
    rows = {row.metric: row for row in report.rows}
    musts = {"int8_peak_share_m64", "int8_peak_share_m128", "vs_torch_float_m128", "vs_torch_int8_m128",
             "read_bandwidth_share_m1_int8", "read_bandwidth_share_m1_int4", "read_bandwidth_share_m1_int2",
             "dispatch_us"}
    assert {metric for metric, row in rows.items() if row.must is not None} == musts
    for row in rows.values():
        assert row.value is not None and row.value > 0, row.metric
        assert str(report.machine["isa"]) in str(row.reason)
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("small")
def test_every_layer_lies_over_other_codes_until_the_pool_is_used_up() -> None:
    setting = bench_kernels._setting(LabOptions(quick=True, seed=3))
    layers = bench_kernels._layers(setting, TINY["tiny"], 4, 8)
    count = bench_kernels.POOL_BYTES // (bench_kernels._weights(TINY["tiny"]) // 2)
    starts = [layer[0][0].packed.packed.codes.data_ptr() for _, layer in zip(range(count), layers, strict=False)]
    assert len(set(starts)) == count
    assert next(layers)[0][0].packed.packed.codes.data_ptr() == starts[0]


def test_a_peak_counts_its_products_and_memory_is_read_at_some_rate() -> None:
    one = kernel_peaks.operations("bytes", 1)
    assert one == 2.0 * kernel_peaks.ROUNDS * 12 * 32 or one == 0
    assert kernel_peaks.operations("halves", 2) == one      # half as many in a vector, on two threads
    assert kernel_peaks.read_bytes_per_s(np.zeros(1 << 16, np.uint8), 2) > 0
