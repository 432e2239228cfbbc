"""Orthonormal filters from a lattice of rotations, one filter per channel.

Axes: F taps (even), L = F / 2 angles, C channels.
"""

import torch
from torch import Tensor


def lattice_filter(thetas: Tensor) -> Tensor:
    """Build the analysis lowpass filters that lattice angles parametrise.

    Whatever the angles, each filter is orthonormal to its own even shifts. It sums to
    `sqrt(2) cos(pi / 4 - sum(thetas))`, so it is a lowpass only for some angles.

    Args:
        thetas: Angles `(L, C)` in radians.

    Returns:
        `(2 L, C)` in the tap order of PyWavelets' `dec_lo`: OrthoWavSpA of arXiv 2210.01989, as
        computed by its released code.
    """
    sin, cos = thetas.sin(), thetas.cos()
    zeros = torch.zeros_like(thetas[:1])
    taps = torch.stack([sin[0], cos[0]])
    for step in range(1, len(thetas)):
        # Shifted by one tap, the filter so far straddles the pairs of the next rotations.
        even, odd = torch.cat([zeros, taps[1::2]]), torch.cat([taps[0::2], zeros])
        pairs = [sin[step] * even + cos[step] * odd, cos[step] * even - sin[step] * odd]
        taps = torch.stack(pairs, dim=1).flatten(0, 1)  # (2 step + 2, C)
    return taps


def lattice_angles(dec_lo: Tensor) -> Tensor:
    """Find angles from which `lattice_filter` builds the given orthonormal filters.

    Args:
        dec_lo: Lowpass filters `(2 L, C)`, each orthonormal to its even shifts.

    Returns:
        `(L, C)` radians in (-pi, pi], computed in float64 and returned in the filters' type.
    """
    taps = dec_lo.double()
    thetas = []
    for _ in range(len(taps) // 2 - 1):
        # Either end of the filter determines the angle; the larger one loses fewer digits.
        left = torch.atan2(-taps[1], taps[0])
        right = torch.atan2(taps[-2], taps[-1])
        larger = taps[:2].square().sum(0) > taps[-2:].square().sum(0)
        theta = torch.where(larger, left, right)
        even, odd = taps[0::2], taps[1::2]
        even, odd = theta.sin() * even + theta.cos() * odd, theta.cos() * even - theta.sin() * odd
        taps = torch.stack([odd[:-1], even[1:]], dim=1).flatten(0, 1)
        thetas.append(theta)
    thetas.append(torch.atan2(taps[0], taps[1]))
    return torch.stack(thetas[::-1]).to(dec_lo.dtype)
