"""Memory that was freed is there for the next step."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

import pytest

# In a process of its own: what others have allocated decides which memory can be kept.
PROGRAM: Final = """
import json, resource, torch
from aios.training.allocation import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(1 << 24).add_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
faults()
before = faults()
kept = keep_freed_memory()
faults()
print(json.dumps([kept, before, faults()]))
"""


def test_what_was_freed_is_used_again_without_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True)
    kept, before, after = json.loads(done.stdout)
    if not kept:
        pytest.skip("the C library has no mallopt")
    if before < 4 * 32:   # not even huge pages come anew
        pytest.skip("this C library keeps freed memory by itself")
    assert after < before / 8
