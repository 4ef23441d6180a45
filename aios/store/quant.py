"""ArrowQuant: weight matrices in codes of 8, 4 or 2 bits, in the packed order that every kernel reads in place.

The arithmetic is Rust's (rust/arrow_quant); here values become buffers and faults become errors with a remedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from aios.contracts import PackedTensor
from aios.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Array = Tensor | NDArray[Any]

Method = Literal["rtn", "hqq", "gptq"]

PANEL_ROWS = 32                # of packed order 1; rust/arrow_quant/src/order.rs is its definition
RANK_MAX = 256                 # of a residual; likewise
DAMPING = 0.01                 # of the Hessian's mean diagonal, added to it: the share that GPTQ's authors use
CHUNK_WEIGHTS = 1 << 24        # widened to f32 at a time, 64 MB: a matrix of any size needs no f32 copy of itself


class ArrowQuant:
    """Quantises, packs and reads packed weight matrices; the same result for any number of threads."""

    @staticmethod
    def quantize(weights: Array, *, bits: int = 4, group_size: int = 64, symmetric: bool = False,
                 method: Method = "rtn", search: bool | None = None, hessian: Array | None = None,
                 damping: float = DAMPING, rank: int = 0, threads: int | None = None) -> PackedTensor:
        """The matrix `weights` (rows, columns) of any float type in codes of `bits` with a scale every `group_size`.

        method: "rtn" rounds to nearest, "hqq" is robust to outliers, "gptq" needs `hessian`, X^T X (columns, columns)
        over calibration activations X. search: each group's range is the one of least squared error, weighted by the
        diagonal of the Hessian if given; the default is yes for "gptq" alone. rank: of a residual in f16 for what is
        lost, weighted by the Hessian if given. BadInput for sizes that the packed order does not know and for weights
        that are not finite (named by place).
        """
        rows, columns = _shape(weights)
        packed = _empty(rows, columns, bits, group_size, symmetric)
        count = _threads(threads)
        curvature = _hessian(hessian, columns)
        _check_method(method, curvature, search, rank, min(rows, columns))
        if method == "gptq":
            _gptq(packed, weights, curvature, damping, search is not False, count)
        else:
            _by_rows(packed, weights, method, bool(search), curvature, count)
        return packed if rank == 0 else _with_residual(packed, weights, curvature, damping, rank, count)

    @staticmethod
    def dequantize(packed: PackedTensor, *, threads: int | None = None) -> Tensor:
        """The weights (rows, columns) f32 that `packed` stands for, its residual included."""
        import torch

        from aios import _native

        weights = torch.empty(packed.shape, dtype=torch.float32)
        with _refused():
            _native.quant_dequantize(_sizes(packed), _parts(packed), weights.numpy(), _threads(threads))
        if packed.left is not None and packed.right is not None:
            weights += packed.left.float() @ packed.right.float()
        return weights

    @staticmethod
    def pack(codes: Array, scales: Array, zeros: Array | None = None, *, bits: int, group_size: int,
             threads: int | None = None) -> PackedTensor:
        """Plain uint8 codes (rows, columns) with f16 scales and zeros (rows, groups), in the packed order.

        The weight of code c is zero + scale * c; without zeros it is scale * (c - 2^(bits - 1)).
        """
        import numpy as np

        from aios import _native

        rows, columns = _shape(codes)
        packed = _empty(rows, columns, bits, group_size, zeros is None)
        plain = (_array(codes, np.uint8), _halves(scales), None if zeros is None else _halves(zeros))
        with _refused():
            _native.quant_pack(_sizes(packed), plain, _parts(packed), _threads(threads))
        return packed

    @staticmethod
    def unpack(packed: PackedTensor, *, threads: int | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes (rows, columns) uint8, scales and zeros (rows, groups) f16 of `packed`: the inverse of `pack`."""
        import numpy as np
        import torch

        from aios import _native

        groups = -(-packed.columns // packed.group_size)
        codes = torch.empty(packed.shape, dtype=torch.uint8)
        scales = torch.empty((packed.rows, groups), dtype=torch.float16)
        zeros = None if packed.zeros is None else torch.empty_like(scales)
        halves = (scales.numpy().view(np.uint16), None if zeros is None else zeros.numpy().view(np.uint16))
        with _refused():
            _native.quant_unpack(_sizes(packed), _parts(packed), (codes.numpy(), *halves), _threads(threads))
        return codes, scales, zeros


def _check_method(method: str, hessian: NDArray[np.float64] | None, search: bool | None, rank: int, most: int) -> None:
    if method not in ("rtn", "hqq", "gptq"):
        raise BadInput(f"there is no method {method!r}", remedy="one of: rtn, hqq, gptq")
    if method == "gptq" and hessian is None:
        raise BadInput("gptq needs the Hessian of calibration activations", remedy="give hessian=X^T X, or use hqq")
    if method == "hqq" and search:
        raise BadInput("hqq finds its own ranges", remedy="leave search out")
    if not 0 <= rank <= min(RANK_MAX, most):
        raise BadInput(f"a residual has a rank of 0 to {min(RANK_MAX, most)} here, not {rank}",
                       remedy="a plain matrix is smaller beyond that")


def _by_rows(packed: PackedTensor, weights: Array, method: str, search: bool, hessian: NDArray[np.float64] | None,
             threads: int) -> None:
    """Methods that look at one row at a time, panel after panel."""
    import numpy as np

    from aios import _native

    importance = None
    if search and hessian is not None:
        importance = np.ascontiguousarray(hessian.diagonal(), dtype=np.float32)
    with _refused():
        for first, piece in _pieces(weights, packed.rows, packed.columns):
            out = _parts(packed, first, first + len(piece))
            if method == "hqq":
                _native.quant_hqq(piece, packed.bits, packed.group_size, out, threads, first_row=first)
            else:
                _native.quant_rtn(piece, packed.bits, packed.group_size, out, threads, search=search,
                                  importance=importance, first_row=first)


def _gptq(packed: PackedTensor, weights: Array, hessian: Any, damping: float, search: bool, threads: int) -> None:
    import numpy as np

    from aios import _native

    with _refused():
        _native.quant_gptq(_array(weights, np.float32), packed.bits, packed.group_size, _parts(packed), threads,
                           hessian=hessian, damping=damping, search=search)


def _with_residual(packed: PackedTensor, weights: Array, hessian: Any, damping: float, rank: int,
                   threads: int) -> PackedTensor:
    """`packed` with the factors of what it lost."""
    import numpy as np
    import torch

    from aios import _native

    lost = _array(weights, np.float32) - ArrowQuant.dequantize(packed, threads=threads).numpy()
    left = torch.empty((packed.rows, rank), dtype=torch.float16)
    right = torch.empty((rank, packed.columns), dtype=torch.float16)
    with _refused():
        _native.quant_residual(lost, left.numpy().view(np.uint16), right.numpy().view(np.uint16), threads,
                               hessian=hessian, damping=damping)
    return replace(packed, left=left, right=right)


def _hessian(hessian: Array | None, columns: int) -> NDArray[np.float64] | None:
    import numpy as np

    if hessian is None:
        return None
    if tuple(hessian.shape) != (columns, columns):
        raise BadInput(f"the Hessian of {columns} columns is not {tuple(hessian.shape)}", remedy="give X^T X")
    return _array(hessian, np.float64)


def _shape(matrix: Array) -> tuple[int, int]:
    if matrix.ndim != 2:
        raise BadInput(f"a weight matrix has two axes, not {matrix.ndim}", remedy="reshape it to (outputs, inputs)")
    return int(matrix.shape[0]), int(matrix.shape[1])


def _empty(rows: int, columns: int, bits: int, group_size: int, symmetric: bool) -> PackedTensor:
    """Buffers of the right sizes, their content undefined."""
    import torch

    if bits not in (2, 4, 8):
        raise BadInput(f"codes have 8, 4 or 2 bits, not {bits}", remedy="bits=4 suits most models")
    if group_size not in (32, 64, 128):
        raise BadInput(f"groups have 32, 64 or 128 columns, not {group_size}", remedy="group_size=64 suits most models")
    panels, groups = -(-rows // PANEL_ROWS), -(-columns // group_size)
    columns_padded = -(-columns // 32) * 32
    shape = (panels, groups, PANEL_ROWS)
    return PackedTensor(
        rows=rows, columns=columns, bits=bits, group_size=group_size,
        codes=torch.empty(panels * PANEL_ROWS * columns_padded * bits // 8, dtype=torch.uint8),
        scales=torch.empty(shape, dtype=torch.float16),
        zeros=None if symmetric else torch.empty(shape, dtype=torch.float16))


def _sizes(packed: PackedTensor) -> tuple[int, int, int, int]:
    if packed.order != 1:
        raise BadInput(f"packed order {packed.order} is not known here, only 1", remedy="update AIOS")
    return packed.rows, packed.columns, packed.bits, packed.group_size


def _parts(packed: PackedTensor, first: int = 0, end: int | None = None) -> tuple[Any, Any, Any]:
    """Codes, scales and zeros of the panels of rows first..end, over the same memory, as Rust takes them."""
    import numpy as np

    panels = slice(first // PANEL_ROWS, None if end is None else -(-end // PANEL_ROWS))
    count = packed.scales.shape[0]
    codes = packed.codes.reshape(count, -1) if packed.codes.numel() else packed.codes

    def halves(tensor: Tensor) -> NDArray[np.uint16]:
        return tensor[panels].numpy().view(np.uint16)

    return (codes[panels].numpy().reshape(-1), halves(packed.scales),
            None if packed.zeros is None else halves(packed.zeros))


def _pieces(weights: Array, rows: int, columns: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first row, rows as contiguous f32), in whole panels of at most `CHUNK_WEIGHTS` where a copy is needed."""
    import numpy as np

    plain = str(weights.dtype).endswith("float32")
    chunk = rows if plain else max(CHUNK_WEIGHTS // max(columns, 1) // PANEL_ROWS, 1) * PANEL_ROWS
    for first in range(0, rows, max(chunk, 1)):
        yield first, _array(weights[first:first + chunk], np.float32)


def _array(values: Array, dtype: type[Any]) -> NDArray[Any]:
    """`values` as a contiguous NumPy array of `dtype`, without a copy where it is one already."""
    import numpy as np
    import torch

    if not isinstance(values, np.ndarray):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if values.dtype.kind != np.dtype(dtype).kind:
        raise BadInput(f"{values.dtype} values cannot stand for {np.dtype(dtype)}", remedy="convert them first")
    with np.errstate(over="ignore"):   # what becomes infinite is refused by name later
        return np.ascontiguousarray(values, dtype=dtype)


def _halves(values: Array) -> NDArray[np.uint16]:
    """f16 values as their bits."""
    import numpy as np

    return _array(values, np.float16).view(np.uint16)


def _threads(threads: int | None) -> int:
    import torch

    return threads if threads is not None else torch.get_num_threads()


@contextmanager
def _refused() -> Iterator[None]:
    """What Rust refuses about values and sizes, as BadInput."""
    try:
        yield
    except (ValueError, BufferError, OverflowError) as error:
        raise BadInput(str(error), remedy="check the weights and the sizes given") from error
