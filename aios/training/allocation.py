"""Freed memory that stays with the process: every step of training asks for what the last one gave back."""

from __future__ import annotations

import ctypes
from typing import Final

KEPT_BYTES_MAX: Final = 1 << 30      # far above the activations of the pieces that a processor trains on
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Let the C library keep up to a gigabyte of what is freed; False where it cannot be told so.

    Large tensors otherwise go back to the system one by one, and the next step pays a page fault for every 4 KiB of
    them: an eighth of a step in integers on a virtual machine.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)   # glibc's
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, KEPT_BYTES_MAX))
