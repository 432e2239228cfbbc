"""Kernels that are sums of geometric series, `K[t] = sum_n w[n] z[n]^t`, without a table of powers.

A table of every power of every z has H N L entries; at Path-X (256 x 32 x 16,384) that is a
gigabyte per layer. With t = b i + j, `z^t = z^(b i) z^j`: only L / b + b powers of each z are
computed, with b near the square root of L, and one matrix product turns them into all L values.

Axes: C kernels with the same z, H features, N modes, L length, b steps per block, m blocks.
"""

import torch
from torch import Tensor

from models.precision import without_autocast


def geometric_sums(weights: Tensor, log_z: Tensor, length: int) -> Tensor:
    """Compute `Re sum_n weights[..., n] exp(t log_z[n])` for t = 0 .. L - 1.

    Args:
        weights: `(C, H, N)`, real or complex.
        log_z: `(H, N)`, logarithms of the ratios, real or complex like the weights.
        length: L, at least 1.

    Returns:
        `(C, H, L)`, real.
    """
    real = torch.empty((), dtype=log_z.dtype, device="meta").real.dtype
    block = 1 << ((length - 1).bit_length() + 1) // 2
    blocks = -(-length // block)
    steps = torch.arange(max(block, blocks), device=log_z.device, dtype=real)
    with without_autocast(log_z):
        within = torch.exp(log_z[..., None] * steps[:block])  # (H, N, b)
        starts = torch.exp(log_z[..., None, :] * (block * steps[:blocks, None]))  # (H, m, N)
        starts = (weights[:, :, None] * starts).transpose(0, 1)  # (H, C, m, N)
        if log_z.is_complex():
            # The real part of a complex product is a real product with twice as many terms.
            starts = torch.cat([starts.real, -starts.imag], -1)
            within = torch.cat([within.real, within.imag], -2)
        sums = starts.flatten(1, 2) @ within  # (H, C m, b)
    kernels = sums.view(len(sums), len(weights), blocks * block).transpose(0, 1)
    return kernels[..., :length]


def geometric_sums_reference(weights: Tensor, log_z: Tensor, length: int) -> Tensor:
    """Compute `geometric_sums` from the table of all powers: the plain form."""
    steps = torch.arange(length, device=log_z.device)
    powers = torch.exp(log_z[..., None] * steps)  # (H, N, L)
    sums = torch.einsum("chn,hnl->chl", weights, powers)
    return sums.real if sums.is_complex() else sums
