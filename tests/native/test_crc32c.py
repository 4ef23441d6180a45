"""CRC32C and the list of instruction sets, as Python sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from aios._native import cpu_features, crc32c


def by_definition(data: bytes) -> int:
    """The reversed Castagnoli polynomial, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 63, 1000])
def test_the_sum_equals_its_definition(length):
    data = bytes(i * 37 % 256 for i in range(length))
    assert crc32c(data) == by_definition(data)


def test_the_check_value_is_the_published_one():
    assert crc32c(b"123456789") == 0xE3069283


def test_a_sum_continues():
    assert crc32c(b"world", crc32c(b"hello ")) == crc32c(memoryview(b"hello world"))


def test_features_are_those_the_kernel_reports():
    info = Path("/proc/cpuinfo")
    if not info.exists():
        pytest.skip("no /proc/cpuinfo here")
    line = next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    flags = set(line.replace("_", "").replace(".", "").split())
    names = {"avxvnni": "avxvnni", "dotprod": "asimddp", "neon": "asimd", "fp16": "fphp"}
    for feature in cpu_features():
        assert names.get(feature, feature).replace("-", "").replace(".", "") in {f.replace("-", "") for f in flags}
    assert len(set(cpu_features())) == len(cpu_features())
