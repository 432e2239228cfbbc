"""Batches as a pure function of seed and step, so that a run continues where it stopped.

Axes: B batch, S sequences per example (absent where it is 1), N length.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lra.seeds import derive
from lra.tasks import Split

# Trimmed lengths are multiples of this: kernels like it, and compiled models see fewer shapes.
TRIM = 32


@dataclass(frozen=True)
class Batch:
    """Examples, padded to a common length.

    Args:
        tokens: `(B, N)` or `(B, S, N)` int64 ids; 0 under the mask.
        mask: The same shape, True for real tokens; None when all are.
        labels: `(B,)` int64.
        num_tokens: Tokens of its sequences, before any is taken for padding.
    """

    tokens: Tensor
    mask: Tensor | None
    labels: Tensor
    num_tokens: int


class Batches:
    """Gather batches from a split.

    Args:
        split: The data.
        padded_length: The protocol's length.
        truncate: Longest part of a sequence that is read.
        id_shift: Added to a symbol to get its id.
        zero_is_padding: Mask id 0 wherever it is, as published code does with black pixels.
        trim: Pad to the longest sequence of a batch only; for backends that are pad-invariant.
        device: Where batches are wanted; on a GPU the split moves there once.
    """

    def __init__(
        self,
        split: Split,
        *,
        padded_length: int,
        truncate: int,
        id_shift: int,
        zero_is_padding: bool = False,
        trim: bool,
        device: torch.device,
    ) -> None:
        self._device = device
        self._padded_length, self._id_shift, self._trim = padded_length, id_shift, trim
        self._zero_is_padding = zero_is_padding
        self._per_example = len(split.lengths) // len(split)
        self._starts = split.offsets[:-1].reshape(len(split), self._per_example)
        self._lengths = np.minimum(split.lengths, truncate).reshape(len(split), -1)
        self._tokens = torch.from_numpy(split.tokens).to(device)
        self._labels = torch.from_numpy(split.labels)
        self._drawn: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._labels)

    def shuffled(self, step: int, batch_size: int, seed: int) -> Batch:
        """Return the batch of a training step, counted from 0.

        The stream of examples is one permutation after the other, each drawn from (seed, epoch);
        a batch may reach from one into the next, so that no example is ever left out.
        """
        start = step * batch_size
        indices: list[NDArray[np.int64]] = []
        while (missing := batch_size - sum(map(len, indices))) > 0:
            epoch, position = divmod(start + batch_size - missing, len(self))
            indices.append(self._permutation(seed, epoch)[position : position + missing])
        return self._gather(np.concatenate(indices))

    def once(self, batch_size: int) -> Iterator[Batch]:
        """Yield every example once, sorted by length, so that little is padding."""
        order = np.argsort(self._lengths.max(1), kind="stable")
        for start in range(0, len(self), batch_size):
            yield self._gather(order[start : start + batch_size])

    def _permutation(self, seed: int, epoch: int) -> NDArray[np.int64]:
        if self._drawn != (seed, epoch):
            generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
            self._order = torch.randperm(len(self), generator=generator).numpy()
            self._drawn = (seed, epoch)
        return self._order

    def _gather(self, indices: NDArray[np.int64]) -> Batch:
        lengths = self._lengths[indices]
        width = self._padded_length
        if self._trim:
            width = min(width, -(-int(lengths.max()) // TRIM) * TRIM)
        labels = self._labels[torch.from_numpy(indices)]
        starts = torch.from_numpy(self._starts[indices]).to(self._device)
        steps = torch.arange(width, device=self._device)
        places = starts[..., None] + steps
        mask = None
        if (lengths < width).any():
            mask = steps < torch.from_numpy(lengths).to(self._device)[..., None]
            tokens = self._tokens[places.where(mask, 0)].long() + self._id_shift
            tokens = tokens.where(mask, 0)
        else:
            tokens = self._tokens[places].long() + self._id_shift
        if self._zero_is_padding:
            mask = tokens != 0
        if self._per_example == 1:
            tokens, mask = tokens.squeeze(1), None if mask is None else mask.squeeze(1)
        return Batch(tokens, mask, labels.to(self._device), int(lengths.sum()))
