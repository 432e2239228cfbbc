"""The recurrence x[t] = a x[t - 1] + v[t] along a sequence, one factor per state.

The sequence is cut into about sqrt(L) blocks of about sqrt(L) steps. All blocks first take their
steps together; then the state is carried from block to block, and finally added to each of them.
This takes twice sqrt(L) operations on long vectors instead of L on short ones, and about three
passes over the memory.

Axes: B batch, L length, N states, m blocks, b steps per block.
"""

from collections.abc import Iterable
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_recurrence(factors: Tensor, inputs: Tensor, reverse: bool = False) -> Tensor:
    """Compute `x[t] = factors x[t - 1] + inputs[t]` from x[-1] = 0, real or complex.

    Args:
        factors: `(N,)`, of modulus at most 1.
        inputs: `(B, L, N)`.
        reverse: Run from the end to the start instead: `x[t] = factors x[t + 1] + inputs[t]`.

    Returns:
        All states, `(B, L, N)`.
    """
    # torch leaves Function.apply untyped.
    states: Tensor = _Recurrence.apply(factors, inputs, reverse)  # type: ignore[no-untyped-call]
    return states


class _Recurrence(torch.autograd.Function):
    """The recurrence; its gradient is one in the opposite direction with conjugate factors."""

    @staticmethod
    def forward(ctx: Any, factors: Tensor, inputs: Tensor, reverse: bool) -> Tensor:
        states = _scan(factors, inputs, reverse)
        ctx.save_for_backward(factors, states)
        ctx.reverse = reverse
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        factors, states = ctx.saved_tensors
        gradient = _scan(factors.conj(), gradients[0], not ctx.reverse)
        before, after = states[:, :-1], gradient[:, 1:]
        if ctx.reverse:
            before, after = states[:, 1:], gradient[:, :-1]
        return (before.conj() * after).sum((0, 1)), gradient, None


def _scan(factors: Tensor, inputs: Tensor, reverse: bool) -> Tensor:
    batch, length, width = inputs.shape
    block = isqrt(length - 1) + 1
    blocks = -(-length // block)
    # Zeros at the end change no state before them, in either direction.
    x = F.pad(inputs, (0, 0, 0, blocks * block - length)).view(batch, blocks, block, width)
    x = x.clone() if blocks * block == length else x
    first, last, step = (block - 1, 0, -1) if reverse else (0, block - 1, 1)
    for i in range(first + step, last + step, step):
        x[:, :, i] += factors * x[:, :, i - step]
    powers = torch.cumprod(factors.expand(block, -1), 0)  # (b, N)
    order: Iterable[int] = range(blocks - 2, -1, -1) if reverse else range(1, blocks)
    ends = x[:, :, last].clone()
    for i in order:
        ends[:, i] += powers[-1] * ends[:, i - step]
    if reverse:
        x[:, :-1] += powers.flip(0) * ends[:, 1:, None]
    else:
        x[:, 1:] += powers * ends[:, :-1, None]
    return x.flatten(1, 2)[:, :length]


def linear_recurrence_reference(factors: Tensor, inputs: Tensor, reverse: bool = False) -> Tensor:
    """Compute `linear_recurrence` step by step: the plain form, for any axes after the first two.

    Args:
        factors: Anything that can multiply a state such as `inputs[:, t]`.
        inputs: `(B, L, ...)`.
        reverse: Run from the end to the start.
    """
    state = torch.zeros_like(inputs[:, 0] * factors)
    states = []
    steps = inputs.unbind(1)
    for step in reversed(steps) if reverse else steps:
        state = factors * state + step
        states.append(state)
    return torch.stack(states[::-1] if reverse else states, 1)
