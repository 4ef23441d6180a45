"""In which precision a machine trains fastest, found by a short probe."""

from __future__ import annotations

import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Literal

import torch

Precision = Literal["f32", "bf16", "int8"]  # int8: linear layers as integers (`FastLinear`), everything else f32

PROBE_ROWS, PROBE_WIDTH = 256, 512      # a matrix of a small network at work
PROBE_TIMES: Final = 5
GAIN_MIN: Final = 1.15                  # bf16 costs accuracy: it has to pay


def device_of(name: str = "auto") -> torch.device:
    """Return the device called `name`; "auto" is the GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def probe(device: torch.device) -> Precision:
    """Return "bf16" where a matrix product with its gradient is clearly faster in it, else "f32".

    Never "int8": a run that is to train in integers says so, and runs under way stay what they were.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return "f32"
    seconds = {kind: _seconds(device, kind) for kind in (torch.float32, torch.bfloat16)}
    return "bf16" if seconds[torch.float32] > GAIN_MIN * seconds[torch.bfloat16] else "f32"


def _seconds(device: torch.device, kind: torch.dtype) -> float:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(PROBE_ROWS, PROBE_WIDTH, generator=rng).to(device, kind)
    weight = torch.randn(PROBE_WIDTH, PROBE_WIDTH, generator=rng).to(device, kind)
    took = []
    for _ in range(PROBE_TIMES):
        began = time.perf_counter()
        y = x @ weight
        y = y @ weight.T + (x.T @ y)[:1]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context in which a forward pass computes in `precision`."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
