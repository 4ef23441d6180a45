"""The parent's heap: what is freed goes back to the system, so that a flood of large frames leaves no mark."""

from __future__ import annotations

import ctypes

RETURN_BYTES = 256 << 10      # asyncio's read size: smaller blocks are reused soon, larger ones are rare
M_TRIM_THRESHOLD = -1         # mallopt(3)
M_MMAP_THRESHOLD = -3


def return_freed_memory() -> None:
    """Blocks of RETURN_BYTES and more are unmapped when freed; without glibc nothing changes.

    Left alone, glibc raises its threshold to the largest block ever freed (up to 32 MiB) and keeps that much:
    8,000 hostile frames grew the parent by 20 MB, with fixed thresholds by 2 MB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, RETURN_BYTES)
        mallopt(M_TRIM_THRESHOLD, RETURN_BYTES)
