"""What rust/arrow_quant computes, short and slow, as its sources write it. Weights (n, k); groups run along k."""

from __future__ import annotations

import torch
from torch import Tensor

PANEL = 32


def groups(weights: Tensor, size: int) -> list[slice]:
    """The columns of each group; the last one may be shorter."""
    return [slice(start, min(start + size, weights.shape[1])) for start in range(0, weights.shape[1], size)]


def half(values: Tensor) -> Tensor:
    """Rounded to f16, as stored."""
    return values.half().float()


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (n, k) in packed order 1, byte by byte from its definition."""
    rows, columns = (-(-size // PANEL) * PANEL for size in codes.shape)
    padded = torch.zeros(rows, columns, dtype=torch.int64)
    padded[:codes.shape[0], :codes.shape[1]] = codes
    # panel, row, block, u (code of the byte), q (byte of the word)
    parts = padded.reshape(rows // PANEL, PANEL, columns * bits // 32, 8 // bits, 4)
    shifted = parts << (bits * torch.arange(8 // bits))[:, None]
    return shifted.sum(3).permute(0, 2, 1, 3).reshape(-1).to(torch.uint8)


def pack_scales(scales: Tensor) -> Tensor:
    """Scales (n, groups) as (panels, groups, 32)."""
    panels = -(-len(scales) // PANEL)
    padded = torch.zeros(panels * PANEL, scales.shape[1], dtype=scales.dtype)
    padded[:len(scales)] = scales
    return padded.reshape(panels, PANEL, scales.shape[1]).transpose(1, 2).contiguous()


def span(weights: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero (n, 1) of one group (n, g) from its range, as stored."""
    low, high = weights.min(1, keepdim=True).values, weights.max(1, keepdim=True).values
    if symmetric:
        extreme = torch.where(-low >= high, low, high)
        scale = half(-extreme / 2 ** (bits - 1))
        return scale, -scale * 2 ** (bits - 1)
    zero = half(low)
    return half(((high - zero) / (2 ** bits - 1)).clamp(min=0)), zero


def nearest(weights: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest code of each weight, before rounding to a whole one."""
    at = (weights - zero) / torch.where(scale == 0, torch.inf, scale)
    return at.clamp(0, 2 ** bits - 1)


def rtn(weights: Tensor, bits: int, group_size: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Round to nearest: exact places between codes (n, k), scales and zeros (n, groups)."""
    places, scales, zeros = torch.zeros_like(weights), [], []
    for columns in groups(weights, group_size):
        scale, zero = span(weights[:, columns], bits, symmetric)
        places[:, columns] = nearest(weights[:, columns], scale, zero, bits)
        scales.append(scale)
        zeros.append(zero)
    return places, torch.cat(scales, 1), torch.cat(zeros, 1)


def rtn_weights(weights: Tensor, bits: int, group_size: int, symmetric: bool) -> Tensor:
    """The weights (n, k) that rounding to nearest leaves."""
    places, scales, zeros = rtn(weights, bits, group_size, symmetric)
    wide = [part.repeat_interleave(group_size, 1)[:, :weights.shape[1]] for part in (scales, zeros)]
    return wide[1] + wide[0] * places.round()


def hqq_weights(weights: Tensor, bits: int, group_size: int) -> Tensor:
    """Badri and Shaji (2023): p = 0.7, beta 10 growing by 1.01, 20 steps, zeros in units of codes, scales fixed."""
    result = torch.zeros_like(weights)
    for columns in groups(weights, group_size):
        group, beta = weights[:, columns], 10.0
        scale, low = span(group, bits, symmetric=False)
        zero = -low / scale
        for _ in range(20):
            codes = (group / scale + zero).round().clamp(0, 2 ** bits - 1)
            error = group - (codes - zero) * scale
            aside = error.sign() * (error.abs() - error.abs() ** -0.3 / beta).clamp(min=0)
            zero = (codes - (group - aside) / scale).mean(1, keepdim=True)
            beta *= 1.01
        codes = (group / scale + zero).round().clamp(0, 2 ** bits - 1)
        result[:, columns] = (codes - zero) * scale
    return result


def gptq_weights(weights: Tensor, hessian: Tensor, bits: int, group_size: int, damping: float = 0.01) -> Tensor:
    """Frantar et al. (2022), algorithm 1, columns in their natural order, each group's grid when its turn comes."""
    weights, hessian = weights.double().clone(), hessian.double()
    hessian = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian))
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    result = torch.zeros_like(weights)
    for columns in groups(weights, group_size):
        scale, zero = (part.double() for part in span(weights[:, columns].float(), bits, symmetric=False))
        for at in range(columns.start, columns.stop):
            column = weights[:, at:at + 1]
            result[:, at:at + 1] = zero + scale * nearest(column, scale, zero, bits).round()
            error = (column - result[:, at:at + 1]) / upper[at, at]
            weights[:, at:] -= error @ upper[at:at + 1, at:]
    return result.float()


def low_rank(lost: Tensor, rank: int, hessian: Tensor | None = None, damping: float = 0.01) -> Tensor:
    """The best approximation (n, k) of rank `rank` to `lost`, in the norm of the Hessian if given."""
    lost = lost.double()
    root = torch.eye(lost.shape[1], dtype=torch.float64)
    if hessian is not None:
        root = torch.linalg.cholesky(hessian.double() + damping * hessian.double().diagonal().mean() * root)
    u, s, v = torch.linalg.svd(lost @ root, full_matrices=False)
    best = u[:, :rank] * s[:rank] @ v[:rank]
    return torch.linalg.solve_triangular(root, best, upper=False, left=False).float()
