"""Dropout (Srivastava et al. 2014), on the CPU at the cost of reading and writing the tensor.

Torch's generator draws random numbers one after the other, which takes a CPU ten times as long as
the product they decide on. Here each call draws one seed (`models/randomness.py`), and a hash of
(seed, row, column) decides whether an element is kept, in the same compiled loop as the product.
The backward pass computes the hash again instead of storing a mask. The loop is in
`models/dropout_kernel.py`; `kept_reference` is the plain form of the hash.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.randomness import draw_seed

# Elements of a tensor that form one row of the hash, which counts columns in 32 bits.
ROW_LENGTH = 2**20
_COMPUTED = (torch.float32, torch.float64)
_ROUNDED = (torch.bfloat16, torch.float16)


def check_probability(p: float) -> None:
    """Check that `p` is a probability of dropping.

    Raises:
        ValueError: `p` is outside [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p={p}: must be a probability, at least 0 and at most 1")


def threshold(p: float) -> int:
    """Return the smallest value of 32 random bits that keeps an element, for `p` < 1.

    An element is then dropped with probability `p` to within 2^-33.
    """
    return min(round(p * 2**32), 2**32 - 1)


def kept_reference(seed: int, num_rows: int, num_columns: int, p: float) -> Tensor:
    """Compute which elements a seed keeps, `(num_rows, num_columns)` bool, in plain numpy.

    The key of a row is the output of the generator SplitMix64, started from `seed`, with the row's
    number. With the two halves of the key, triple32 (see `models.compiled.random_bits`) hashes a
    column to 32 bits, which are compared with the threshold.
    """
    rows = np.arange(1, num_rows + 1, dtype=np.uint64)
    key = np.uint64(seed % 2**64) + rows * np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    key ^= key >> np.uint64(31)
    first, second = key.astype(np.uint32), (key >> np.uint64(32)).astype(np.uint32)
    bits = np.arange(num_columns, dtype=np.uint32) ^ first[:, None]
    bits = (bits ^ (bits >> np.uint32(17))) * np.uint32(0xED5AD4BB)
    bits ^= (bits >> np.uint32(11)) ^ second[:, None]
    bits *= np.uint32(0xAC4C1B51)
    bits = (bits ^ (bits >> np.uint32(15))) * np.uint32(0x31848BAB)
    bits ^= bits >> np.uint32(14)
    return torch.from_numpy(bits >= threshold(p))


def dropout_reference(x: Tensor, p: float, seed: int) -> Tensor:
    """Drop elements of `x` with a mask and a product: the plain form, for `p` < 1."""
    num_rows, short = divmod(x.numel(), ROW_LENGTH)
    columns = ROW_LENGTH if num_rows else short
    kept = kept_reference(seed, num_rows + (short > 0), columns, p).flatten()[: x.numel()]
    return torch.where(kept.view(x.shape), x / (1 - p), 0.0)


class _Drop(torch.autograd.Function):
    """The compiled loop; since it is linear in `x`, it is its own derivative at any order."""

    @staticmethod
    def forward(x: Tensor, seed: int, p: float) -> Tensor:
        # Not imported above, because a machine that computes on a GPU may lack numba.
        from models.dropout_kernel import drop_rows

        given = x.detach().contiguous()
        if x.dtype in _ROUNDED:
            given = given.float()
        out = torch.empty_like(given)
        factor = 1 / (1 - p)
        arrays = given.view(-1).numpy(force=True), out.view(-1).numpy()
        drop_rows(arrays[0], seed, threshold(p), factor, ROW_LENGTH, arrays[1])
        return out.to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, float], output: Tensor) -> None:
        _, ctx.seed, ctx.p = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _apply(grads[0], ctx.seed, ctx.p), None, None


def _apply(x: Tensor, seed: int, p: float) -> Tensor:
    dropped: Tensor = _Drop.apply(x, seed, p)  # type: ignore[no-untyped-call]  # torch has no type
    return dropped


def is_for_kernels(x: Tensor) -> bool:
    """Return whether `x` has contents on the CPU that compiled loops can read as an array.

    This is not the case on another device, under `torch.compile`, or for a tensor without
    contents, such as those of `FakeTensorMode`.
    """
    plain = type(x) in (Tensor, nn.Parameter)
    return plain and x.device.type == "cpu" and not torch.compiler.is_compiling()


def drop(x: Tensor, p: float, training: bool = True, compiled: bool = True) -> Tensor:
    """Set elements of `x` to 0 with probability `p` and divide the others by 1 - `p`.

    Args:
        x: A tensor of any shape and strides. On the CPU, in float32, float64, bfloat16 or float16,
            the compiled loop is used; elsewhere and under `torch.compile`, torch's dropout.
        p: Probability of dropping an element, which the compiled loop meets to within 2^-33.
        training: If False, return `x` unchanged.
        compiled: If False, use torch's dropout everywhere.

    Returns:
        A tensor with the shape and dtype of `x`. The compiled loop draws one number from
        `models.randomness`, which determines the mask regardless of the strides, the dtype and the
        number of threads.

    Raises:
        ValueError: `p` is outside [0, 1].
    """
    check_probability(p)
    if not training or p == 0:
        return x
    if p < 1 and compiled and x.dtype in _COMPUTED + _ROUNDED and is_for_kernels(x):
        return _apply(x, draw_seed(), p)
    return F.dropout(x, p)


class Dropout(nn.Module):
    """Drop activations in training: `drop` as a module.

    Args:
        p: Probability of dropping an element.
        compiled: If False, use torch's dropout, as this suite once did everywhere.

    Raises:
        ValueError: `p` is outside [0, 1].
    """

    def __init__(self, p: float, *, compiled: bool = True) -> None:
        super().__init__()
        check_probability(p)
        self.p, self.compiled = p, compiled

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of `x` in training; in evaluation, return it unchanged."""
        return drop(x, self.p, self.training, self.compiled)

    def extra_repr(self) -> str:
        """Show the probability."""
        return f"p={self.p}"


class TiedDropout(Dropout):
    """Drop whole channels of a sequence: one decision for all of its positions, as in S4.

    Args:
        p: Probability of dropping a channel.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop channels of `x` `(B, N, D)` in training; in evaluation, return it unchanged."""
        if not self.training or self.p == 0:
            return x
        return x * drop(torch.ones_like(x[:, :1]), self.p, compiled=self.compiled)
