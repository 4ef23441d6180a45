"""Formats of a weight matrix, and what each costs: every byte that the file will hold is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aios.errors import BadInput

BITS: Final = (2, 4, 8)
GROUP_SIZES: Final = (32, 64, 128)
RANK_MAX = 256               # of the packed order
PANEL_ROWS, PANEL_COLUMNS = 32, 32
HALF_BYTES = 2
SIDE_MIN = 32                # a matrix thinner than a panel would be padding for the most part


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """Codes of `bits`, a scale (and a zero unless symmetric) for every `group_size` columns, a residual of `rank`."""

    bits: int
    group_size: int
    symmetric: bool = False
    rank: int = 0

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise BadInput(f"codes have 2, 4 or 8 bits, not {self.bits}", remedy="--bits 4 suits most models")
        if self.group_size not in GROUP_SIZES:
            raise BadInput(f"groups have 32, 64 or 128 columns, not {self.group_size}",
                           remedy="--group 64 suits most models")
        if not 0 <= self.rank <= RANK_MAX:
            raise BadInput(f"the rank of a residual is 0 to {RANK_MAX}, not {self.rank}", remedy="--rank 16")

    def bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a (rows, columns) matrix in this format, padding included."""
        rows, columns = shape
        padded = -(-rows // PANEL_ROWS) * PANEL_ROWS
        codes = padded * -(-columns // PANEL_COLUMNS) * PANEL_COLUMNS * self.bits // 8
        statistics = padded * -(-columns // self.group_size) * (1 if self.symmetric else 2)
        return codes + HALF_BYTES * (statistics + self.rank * (rows + columns))

    def __str__(self) -> str:
        words = f"int{self.bits} g{self.group_size}{' sym' if self.symmetric else ''}"
        return f"{words} r{self.rank}" if self.rank else words


def ladder(start: Format) -> tuple[Format, ...]:
    """The formats a budget chooses from: `start`'s bits and more, wide groups and narrow, in order of their size."""
    rungs = [Format(bits=bits, group_size=group, symmetric=start.symmetric or (bits == 8))
             for bits in BITS if bits >= start.bits for group in (128, 64, 32)]
    return tuple(rungs)


def packable(shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape is worth packing: a matrix with at least a panel's rows and columns."""
    return len(shape) == 2 and min(shape) >= SIDE_MIN
