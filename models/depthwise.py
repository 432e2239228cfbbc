"""Correlation along length with one filter per channel, its adjoint and its filter gradient.

Everything works on `(B, N, C)` in its own memory layout: viewed as `(B, C, 1, N)`, it is a
channels-last image one pixel high, for which a depthwise convolution needs no transpose. Autocast
is switched off inside: wavelet coefficients cancel in these sums, which are too few to be worth a
shorter type.

Axes: B batch, N signal length, K output length, C channels, F taps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.precision import unrounded


def correlate(signal: Tensor, taps: Tensor, stride: int) -> Tensor:
    """Compute `out[k] = sum_m taps[m] signal[stride k + m]` in each channel.

    Args:
        signal: `(B, N, C)`.
        taps: `(F, C)`.
        stride: Step between outputs.

    Returns:
        `(B, K, C)` with K = (N - F) // stride + 1.
    """
    with unrounded(signal):
        out = F.conv2d(_image(signal), _kernel(taps), stride=(1, stride), groups=taps.shape[1])
    return _sequence(out)


def spread(coefficients: Tensor, taps: Tensor, stride: int) -> Tensor:
    """Compute `out[t] = sum_k taps[t - stride k] coefficients[k]`, the adjoint of `correlate`.

    Args:
        coefficients: `(B, K, C)`.
        taps: `(F, C)`.
        stride: Step between the filters' positions.

    Returns:
        `(B, stride (K - 1) + F, C)`.
    """
    with unrounded(coefficients):
        out = F.conv_transpose2d(
            _image(coefficients), _kernel(taps), stride=(1, stride), groups=taps.shape[1]
        )
    return _sequence(out)


def tap_gradient(signal: Tensor, gradient: Tensor, num_taps: int, stride: int) -> Tensor:
    """Compute `out[m] = sum_{b, k} gradient[b, k] signal[b, stride k + m]` in each channel.

    The signal is read as an image `stride` pixels wide, on which the strided correlation becomes
    one without a stride, whose kernel has F / stride rows. For such upright kernels, oneDNN's
    gradient of a depthwise weight costs as little as the convolution; for a kernel with a single
    row, it costs 30 times as much.

    Args:
        signal: `(B, stride (K - 1) + F, C)`, as given to `correlate`.
        gradient: Gradient `(B, K, C)` of `correlate`'s output.
        num_taps: F, a multiple of `stride`.
        stride: As given to `correlate`.

    Returns:
        `(F, C)`, the gradient of `taps`.
    """
    rows, channels = num_taps // stride, signal.shape[2]
    assert num_taps == rows * stride, (num_taps, stride)
    with unrounded(signal):
        kernel: Tensor = torch.ops.aten.convolution_backward(
            _upright(gradient, 1),
            _upright(signal, stride),
            signal.new_empty(channels, 1, rows, stride),
            None,
            (1, 1),
            (0, 0),
            (1, 1),
            False,
            (0, 0),
            channels,
            (False, True, False),
        )[1]
    return kernel.flatten(1).t()  # (F, C)


def _image(sequence: Tensor) -> Tensor:
    return sequence.unsqueeze(1).permute(0, 3, 1, 2)  # (B, C, 1, N)


def _upright(sequence: Tensor, width: int) -> Tensor:
    batch, length, channels = sequence.shape
    image = sequence.reshape(batch, length // width, width, channels)
    return image.permute(0, 3, 1, 2)  # (B, C, N / width, width)


def _sequence(image: Tensor) -> Tensor:
    return image[:, :, 0].transpose(1, 2)  # (B, N, C)


def _kernel(taps: Tensor) -> Tensor:
    return taps.t().contiguous()[:, None, None, :]  # (C, 1, 1, F)
