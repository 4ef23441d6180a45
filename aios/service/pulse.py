"""One shared page by which the worker shows that it lives, and whom to blame if it does not.

The worker writes around every quantum, the parent reads whenever it wants: no message can be lost in a
channel when the process is killed. A sequence number that is odd while a write is going on (a seqlock)
keeps a reader from seeing half a label.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass

PAGE_BYTES = 4096
LABEL_BYTES_MAX = 2048          # 64 interleaved requests by number fit; a plugin's name is at most 40 characters
READ_TRIES_MAX = 50             # a write takes microseconds; a writer killed inside one leaves an odd number behind
READ_PAUSE_S = 0.0002           # so that a writer that was preempted inside one can finish
_HEAD = struct.Struct("<QQQH")  # sequence, monotonic nanoseconds, denoising steps so far, bytes of the label


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What the page said: when the worker last moved (monotonic seconds), its step count and its label."""

    sequence: int
    at: float
    steps: int
    label: str


class Pulse:
    """The page itself, in either process."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._page = mmap.mmap(descriptor, PAGE_BYTES)
        self._sequence = 0
        self._steps = 0

    @classmethod
    def create(cls) -> Pulse:
        """A new page in anonymous memory; pass `descriptor` on to the worker."""
        descriptor = os.memfd_create("aios-pulse", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, PAGE_BYTES)
        pulse = cls(descriptor)
        pulse.beat("start")
        return pulse

    def beat(self, label: str, *, steps: int = 0) -> None:
        """Say what runs from now on; `steps` denoising steps were done since the last beat."""
        raw = label.encode("utf-8", "replace")[:LABEL_BYTES_MAX]
        self._steps += steps
        self._sequence += 2
        struct.pack_into("<Q", self._page, 0, self._sequence - 1)
        self._page[_HEAD.size:_HEAD.size + len(raw)] = raw
        _HEAD.pack_into(self._page, 0, self._sequence - 1, time.monotonic_ns(), self._steps, len(raw))
        struct.pack_into("<Q", self._page, 0, self._sequence)

    def read(self) -> Beat:
        """The last complete beat; of a writer that died inside a write, what can be read."""
        for _ in range(READ_TRIES_MAX):
            sequence, at, steps, size = _HEAD.unpack_from(self._page, 0)
            raw = self._page[_HEAD.size:_HEAD.size + min(size, LABEL_BYTES_MAX)]
            if sequence % 2 == 0 and struct.unpack_from("<Q", self._page, 0)[0] == sequence:
                break
            time.sleep(READ_PAUSE_S)
        return Beat(sequence=sequence, at=at / 1e9, steps=steps, label=raw.decode("utf-8", "replace"))

    def close(self) -> None:
        """Give the page back."""
        self._page.close()
        os.close(self.descriptor)
