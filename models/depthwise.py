"""Correlation along length with one filter a channel, its adjoint and its filter gradient.

Everything works on `(B, N, C)` as it lies in memory: seen as `(B, C, 1, N)` it is a channels-last
image one pixel high, for which a depthwise convolution needs no transpose. Autocast is switched
off inside: these are the sums by which wavelet coefficients cancel, and they are too few to be
worth a shorter type.

Axes: B batch, N signal length, K output length, C channels, F taps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# On the CPU, oneDNN's gradient of a depthwise weight costs three to ten times less a tap for
# kernels of exactly three taps than for longer ones or a single one.
CPU_TAPS = 3


def correlate(signal: Tensor, taps: Tensor, stride: int) -> Tensor:
    """Compute `out[k] = sum_m taps[m] signal[stride k + m]` in each channel.

    Args:
        signal: `(B, N, C)`.
        taps: `(F, C)`.
        stride: Step between outputs.

    Returns:
        `(B, K, C)` with K = (N - F) // stride + 1.
    """
    with torch.autocast(signal.device.type, enabled=False):
        out = F.conv2d(_image(signal), _kernel(taps), stride=(1, stride), groups=taps.shape[1])
    return _sequence(out)


def spread(coefficients: Tensor, taps: Tensor, stride: int) -> Tensor:
    """Compute `out[t] = sum_k taps[t - stride k] coefficients[k]`, the adjoint of `correlate`.

    Args:
        coefficients: `(B, K, C)`.
        taps: `(F, C)`.
        stride: Step between the filters' places.

    Returns:
        `(B, stride (K - 1) + F, C)`.
    """
    with torch.autocast(coefficients.device.type, enabled=False):
        out = F.conv_transpose2d(
            _image(coefficients), _kernel(taps), stride=(1, stride), groups=taps.shape[1]
        )
    return _sequence(out)


def tap_gradient(signal: Tensor, gradient: Tensor, num_taps: int, stride: int) -> Tensor:
    """Compute `out[m] = sum_{b, k} gradient[b, k] signal[b, stride k + m]` in each channel.

    The batch is laid end to end, with zeros in `gradient` where a window would straddle two
    sequences: a window of fewer taps is then a view of the signal, not a copy.

    Args:
        signal: `(B, N, C)`, as given to `correlate`; N a multiple of `stride`.
        gradient: `(B, K, C)`, of `correlate`'s output.
        num_taps: F.
        stride: As given to `correlate`.

    Returns:
        `(F, C)`, the gradient of `taps`.
    """
    batch, length, channels = signal.shape
    assert length % stride == 0, (length, stride)
    row = signal.reshape(1, batch * length, channels)
    steps = F.pad(gradient, (0, 0, 0, length // stride - gradient.shape[1]))
    steps = steps.reshape(1, batch * length // stride, channels)
    width = min(num_taps, CPU_TAPS) if signal.device.type == "cpu" else num_taps
    pieces = []
    for first in range(0, num_taps, width):
        # The last piece reaches back over taps already known, rather than be a short one.
        start = min(first, num_taps - width)
        count = (row.shape[1] - start - width) // stride + 1
        window = row[:, start : start + stride * (count - 1) + width]
        pieces.append(_kernel_gradient(window, steps[:, :count], width, stride)[first - start :])
    return torch.cat(pieces)


def _kernel_gradient(signal: Tensor, gradient: Tensor, num_taps: int, stride: int) -> Tensor:
    channels = signal.shape[2]
    with torch.autocast(signal.device.type, enabled=False):
        kernel: Tensor = torch.ops.aten.convolution_backward(
            _image(gradient),
            _image(signal),
            signal.new_empty(channels, 1, 1, num_taps),
            None,
            (1, stride),
            (0, 0),
            (1, 1),
            False,
            (0, 0),
            channels,
            (False, True, False),
        )[1]
    return kernel[:, 0, 0].t()  # (F, C)


def _image(sequence: Tensor) -> Tensor:
    return sequence.unsqueeze(1).permute(0, 3, 1, 2)  # (B, C, 1, N)


def _sequence(image: Tensor) -> Tensor:
    return image[:, :, 0].transpose(1, 2)  # (B, N, C)


def _kernel(taps: Tensor) -> Tensor:
    return taps.t().contiguous()[:, None, None, :]  # (C, 1, 1, F)
