"""Random products with packed weights, checked against numpy: the cases of `aios eval campaign kernels`.

    python -m aios.lab.kernel_cases SEED FIRST LAST     # a line for each case: its digest, and what is wrong

A case is one matrix, made of (seed, number) and read from the packed order anew here, with inputs of its own. Integer
activations are made again in numpy and summed exactly, so that only the rounding of f32 remains to be allowed for. The
digest covers whatever has the same bits on every instruction set. Wild cases are of random bit patterns, infinities
and NaN among them: they have a digest only.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from aios.contracts import PackedTensor

Values = NDArray[np.float64]

PANEL: Final = 32
EPSILON: Final = float(np.finfo(np.float32).eps)
TINY: Final = float(np.finfo(np.float32).tiny)
MOST: Final = {16: 32_639.0, 8: 127.0}       # the largest integer of an activation
WILD_SHARE: Final = 0.15
CHUNK_ROWS: Final = 193                      # one more than the kernels take at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A matrix and its inputs."""

    rows: int
    columns: int
    bits: int
    group_size: int
    symmetric: bool
    rank: int
    wild: bool
    x: NDArray[np.float32]          # (m, columns)
    codes: NDArray[np.uint8]        # in the packed order, random where only padding lies
    scales: NDArray[np.float16]     # (panels, groups, 32)
    zeros: NDArray[np.float16]
    left: NDArray[np.float16]       # (rows, rank)
    right: NDArray[np.float16]      # (rank, columns)

    @classmethod
    def of(cls, seed: int, number: int) -> Case:
        """The case of these numbers."""
        rng = np.random.default_rng((seed, number))
        rows, columns = _size(rng, 130), _size(rng, 300)
        bits, group_size = int(rng.choice((8, 4, 2))), int(rng.choice((32, 64, 128)))
        rank = int(rng.integers(1, 40)) if rows and columns and rng.random() < 0.3 else 0
        wild = bool(rng.random() < WILD_SHARE)
        m = int(rng.choice((0, 1, int(rng.integers(2, 16)), CHUNK_ROWS), p=(0.02, 0.3, 0.67, 0.01)))
        panels, groups = -(-rows // PANEL), -(-columns // group_size)
        x = rng.standard_normal((m, columns), np.float32) * np.float32(10 ** rng.uniform(-3, 3))
        scales = rng.uniform(-1, 1, (2, panels, groups, PANEL)).astype(np.float16)
        if wild:
            x = rng.integers(0, 1 << 32, x.shape, np.uint32).view(np.float32) if rng.random() < 0.5 else x
            scales = rng.integers(0, 1 << 16, scales.shape, np.uint16).view(np.float16)
        codes = rng.integers(0, 256, panels * PANEL * (-(-columns // 32) * 32) * bits // 8, np.uint8)
        factors = (rng.uniform(-1, 1, shape).astype(np.float16) for shape in ((rows, rank), (rank, columns)))
        return cls(rows=rows, columns=columns, bits=bits, group_size=group_size, symmetric=bool(rng.random() < 0.5),
                   rank=rank, wild=wild, x=x, codes=codes, scales=scales[0], zeros=scales[1], left=next(factors),
                   right=next(factors))

    def packed(self) -> PackedTensor:
        """The matrix as the layers take it."""
        import torch

        from aios.contracts import PackedTensor

        factors = (torch.from_numpy(self.left), torch.from_numpy(self.right)) if self.rank else (None, None)
        return PackedTensor(
            rows=self.rows, columns=self.columns, bits=self.bits, group_size=self.group_size, order=1,
            codes=torch.from_numpy(self.codes), scales=torch.from_numpy(self.scales),
            zeros=None if self.symmetric else torch.from_numpy(self.zeros), left=factors[0], right=factors[1])

    def plain_codes(self) -> NDArray[np.int64]:
        """The codes (rows, columns), read as the definition of the order says."""
        panels, padded = -(-self.rows // PANEL), -(-self.columns // 32) * 32
        words = self.codes.reshape(panels, padded * self.bits // 32, PANEL, 1, 4)     # byte q of row r's word
        shifts = np.arange(0, 8, self.bits, dtype=np.uint8).reshape(-1, 1)
        codes = words >> shifts & np.uint8((1 << self.bits) - 1)                      # column 4u + q: [..., u, q]
        plain = codes.transpose(0, 2, 1, 3, 4).reshape(panels * PANEL, padded)
        return plain[: self.rows, : self.columns].astype(np.int64)

    def affine(self) -> tuple[Values, Values]:
        """Scales, and the weights of code 0, (rows, groups)."""
        panels, groups, _ = self.scales.shape
        scales, zeros = (part.transpose(0, 2, 1).reshape(panels * PANEL, groups)[: self.rows].astype(np.float64)
                         for part in (self.scales, self.zeros))
        return scales, -scales * 2 ** (self.bits - 1) if self.symmetric else zeros


def _size(rng: np.random.Generator, most: int) -> int:
    """Nothing, something, or about a multiple of what kernels take at a time."""
    kind = rng.random()
    if kind < 0.02:
        return 0
    if kind < 0.5:
        return int(rng.integers(1, most))
    return max(1, int(rng.integers(1, most // 32 + 1)) * 32 + int(rng.integers(-1, 2)))


def check(case: Case) -> tuple[str, str]:
    """The digest of what must be the same everywhere, and what is wrong; nothing is an empty string."""
    import torch

    from aios.model.quant_linear import PackedWeight, QuantLinear, linear_together

    weight, x = PackedWeight(case.packed()), torch.from_numpy(case.x)
    digest, wrong = hashlib.blake2b(digest_size=16), []
    with torch.inference_mode(), np.errstate(all="ignore"):
        dense = weight.dense().numpy()
        products = {bits: weight.linear(x, bits).numpy() for bits in (32, 16, 8)}
        layer = QuantLinear(case.packed())
        together = linear_together((layer, layer), x)
        if not all(_same(part.numpy(), products[16]) for part in together):
            wrong.append("layers together differ from one alone")
        if case.rows:
            ids = torch.arange(case.rows).flip(0)
            if not _same(weight.rows(ids).numpy(), dense[::-1]):
                wrong.append("gathered rows differ from the matrix")
        if not case.rank:
            for values in (dense, products[16], products[8]):
                digest.update(np.where(np.isnan(values), np.float32(np.nan), values).tobytes())
        if not case.wild:
            wrong += _compare(case, dense, products)
    return digest.hexdigest(), "; ".join(wrong)


def _same(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return bool(np.array_equal(a, b, equal_nan=True))


def _compare(case: Case, dense: NDArray[np.float32], products: dict[int, NDArray[np.float32]]) -> Iterator[str]:
    """What lies further from its value than f32 explains."""
    codes, (scales, zeros) = case.plain_codes(), case.affine()
    spread = np.repeat(np.arange(scales.shape[1]), case.group_size)[: case.columns]
    grown = scales[:, spread] * codes
    residual = case.left.astype(np.float64) @ case.right.astype(np.float64)
    size = np.abs(zeros[:, spread]) + np.abs(grown) + np.abs(case.left).astype(np.float64) @ np.abs(case.right)
    exact = zeros[:, spread] + grown + residual
    if np.any(np.abs(dense - exact) > EPSILON * size * (8 if case.rank else 0.5)):
        yield "a weight is not what the order defines"
    x = case.x.astype(np.float64)
    roots = 8 + case.columns ** 0.5
    for bits, have in products.items():
        if bits == 32:
            want, terms = x @ exact.T, np.abs(x) @ size.T
        else:
            want, terms = _integer_product(case, codes, scales, zeros, bits)
            want, terms = want + x @ residual.T, terms + np.abs(x) @ np.abs(residual).T
        if np.any(~(np.abs(have - want) <= EPSILON * roots * terms + TINY)):
            yield f"a product of {bits}-bit activations is off by {np.max(np.abs(have - want)):.3g}"


def _integer_product(case: Case, codes: NDArray[np.int64], scales: Values, zeros: Values, bits: int
                     ) -> tuple[Values, Values]:
    """The product of integer activations without its residual, and the size of its terms."""
    want = np.zeros((len(case.x), case.rows))
    terms = np.zeros_like(want)
    for group in range(scales.shape[1]):
        columns = slice(group * case.group_size, (group + 1) * case.group_size)
        q, step = rounded(case.x[:, columns], bits, shared=(bits, case.bits) == (8, 8))
        sums = q @ codes[:, columns].T
        totals = step * q.sum(axis=1).astype(np.float32)
        scaled = step.astype(np.float64)[:, None] * scales[:, group] * sums
        added = totals.astype(np.float64)[:, None] * zeros[:, group]
        want, terms = want + scaled + added, terms + np.abs(scaled) + np.abs(added)
    return want, terms


def rounded(x: NDArray[np.float32], bits: int, *, shared: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of one group as integers (m, columns), and their scales (m); two neighbours may share the range."""
    half = np.float32(0.5)
    if shared:
        whole = np.pad(x, ((0, 0), (0, x.shape[1] % 2))).reshape(len(x), -(-x.shape[1] // 2), 2) * half
        ends = [np.abs(side(whole, np.float32(0)).sum(axis=2)).max(axis=1) for side in (np.maximum, np.minimum)]
        largest, most = np.maximum(*ends), np.float32(MOST[bits]) * half
    else:
        largest, most = np.abs(x).max(axis=1), np.float32(MOST[bits])
    scale = (largest / most).astype(np.float32)
    scale[scale < TINY] = 0
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.rint(x * inverse[:, None]).astype(np.int64), scale


def main(words: list[str]) -> int:
    """Check the cases FIRST to LAST - 1 of SEED."""
    import torch

    seed, first, last = map(int, words)
    for number in range(first, last):
        torch.set_num_threads(1 + number % 2)
        case: Any = Case.of(seed, number)
        print(*check(case), flush=number % 100 == 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
