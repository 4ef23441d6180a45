"""`aios eval campaign kernels`: twelve thousand random products on every instruction set that this machine has.

Every case runs once on each level, in a process of its own that the variable `AIOS_ISA` holds to it. A mismatch is a
result that differs from exact sums by more than f32 explains, or from the portable level in a single bit where all
levels must agree, or a process that ends before its last case. The Rust tests run once more under AddressSanitizer
where a nightly toolchain is at hand; inline assembly is not watched by it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aios.lab.machine import machine_facts
from aios.lab.report import LabOptions, Report, Row

SHAPES, SHAPES_QUICK = 12_000, 600
SHAPES_MUST: Final = 10_000
PIECE: Final = 1_000                     # cases of one process: memory that one of them damages hides behind no other
PORTABLE: Final = "scalar"
LEVELS: Final[Mapping[str, tuple[str, ...]]] = {     # what a machine's best instruction set has below it
    "avx2": ("avx2",), "avx512": ("avx2",), "avx512_vnni": ("avx2",), "amx": ("avx2",)}
PIECE_SECONDS_MAX: Final = 600.0         # a case takes ten milliseconds; the machine is busy
SANITIZER_SECONDS_MAX: Final = 3600.0    # it compiles everything anew
SANITIZED: Final = ("matmul", "layer", "gather", "pack")     # tests by name
FINDING: Final = re.compile(r"ERROR: AddressSanitizer")
REASONS_MAX: Final = 5


def run(options: LabOptions) -> Report:
    """All rows; about five minutes and the sanitizer's build."""
    count = SHAPES_QUICK if options.quick else SHAPES
    levels = (PORTABLE, *LEVELS.get(machine_facts()["isa"], ()))
    wrong = mismatches(count, levels, options)
    told = "; ".join(wrong[:REASONS_MAX])
    levels_said = f"levels: {', '.join(levels)}"
    rows = [
        Row(metric="shapes_checked", value=count, unit="", better="higher", must=None if options.quick else SHAPES_MUST,
            n=count * len(levels), reason=f"{levels_said}; activations of 32, 16 and 8 bits, odd sizes and empty ones"),
        Row(metric="mismatches", value=len(wrong), unit="", better="lower", must=0, n=count * len(levels),
            reason=told or levels_said),
        _quickly() if options.quick else sanitized(options),
    ]
    return Report.of("campaign kernels", rows, options)


def mismatches(count: int, levels: tuple[str, ...], options: LabOptions) -> list[str]:
    """What differs from its value or from the portable level, case by case."""
    wrong: list[str] = []
    for first in range(0, count, PIECE):
        last = min(first + PIECE, count)
        said: list[list[str]] = []
        for index, level in enumerate(levels):
            options.progress(f"cases {first} to {last}, {level}",
                             (first + (last - first) * index / len(levels)) / count)
            lines, end = _lines(level, options.seed, first, last)
            said.append(lines)
            if end:
                wrong.append(f"{level}, case {first + len(lines)}: {end}")
        wrong += _judge(said, levels, first)
    return wrong


def _judge(said: list[list[str]], levels: tuple[str, ...], first: int) -> list[str]:
    wrong: list[str] = []
    for lines, level in zip(said, levels, strict=True):
        for number, (line, portable) in enumerate(zip(lines, said[0], strict=False), first):
            digest, _, reason = line.partition(" ")
            if reason:
                wrong.append(f"{level}, case {number}: {reason}")
            elif digest != portable.partition(" ")[0]:
                wrong.append(f"{level}, case {number}: other bits than {levels[0]}")
    return wrong


def _lines(level: str, seed: int, first: int, last: int) -> tuple[list[str], str]:
    """What a process held to this level says of its cases, and why it ended early; "" where it did not."""
    command = [sys.executable, "-m", "aios.lab.kernel_cases", str(seed), str(first), str(last)]
    try:
        done = subprocess.run(command, env={**os.environ, "AIOS_ISA": level}, capture_output=True, text=True,
                              timeout=PIECE_SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired:
        return [], "the process hangs"
    lines = done.stdout.splitlines()
    if done.returncode == 0 and len(lines) == last - first:
        return lines, ""
    return lines, f"the process ended with status {done.returncode}: {done.stderr[-300:]}"


def _row(value: int | None, reason: str) -> Row:
    return Row(metric="sanitizer_findings", value=value, unit="", better="lower", must=0, reason=reason,
               excused=value is None)


def _quickly() -> Row:
    return _row(None, "not measured: without --quick the Rust tests run under AddressSanitizer")


def sanitized(options: LabOptions) -> Row:
    """The Rust tests of the kernels under AddressSanitizer; null where its toolchain or the sources are not."""
    sources, cargo = Path(__file__).parents[2] / "rust", shutil.which("cargo")
    rustc = shutil.which("rustc")
    if cargo is None or rustc is None or not (sources / "Cargo.toml").is_file():
        return _row(None, "not measured: no cargo, or no sources beside the package")
    told = subprocess.run([rustc, "+nightly", "-vV"], capture_output=True, text=True, check=False)
    host = re.search(r"^host: (\S+)$", told.stdout, re.MULTILINE)
    if told.returncode != 0 or host is None:
        return _row(None, "not measured: no nightly toolchain")
    options.progress("the Rust tests under AddressSanitizer", 0.99)
    with tempfile.TemporaryDirectory(prefix="aios-sanitizer-") as folder:
        command = [cargo, "+nightly", "test", "--offline", "-q", "-p", "aios_arrow_quant", "--lib", "--target", host[1],
                   "--target-dir", folder, "--", *SANITIZED]
        try:
            done = subprocess.run(command, cwd=sources, env={**os.environ, "RUSTFLAGS": "-Zsanitizer=address"},
                                  capture_output=True, text=True, timeout=SANITIZER_SECONDS_MAX, check=False)
        except subprocess.TimeoutExpired:
            return _row(None, f"not measured: longer than {SANITIZER_SECONDS_MAX:.0f} seconds")
    output = done.stdout + done.stderr
    findings = len(FINDING.findall(output))
    passed = re.search(r"(\d+) passed; 0 failed", output)
    if passed is None and not findings:
        return _row(None, f"not measured: the tests ended with status {done.returncode}: {output[-300:]}")
    return _row(findings, f"{told.stdout.splitlines()[0]}; tests named {', '.join(SANITIZED)}"
                + (f", {passed[1]} passed" if passed else ""))
