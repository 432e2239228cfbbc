"""Batches as a pure function of seed and step, so that a run continues where it stopped.

Axes: B batch, S sequences per example (absent if there is only 1), N length.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lra.division import WHOLE, Division
from lra.seeds import derive
from lra.tasks import Split

# Trimmed lengths are multiples of this, which suits kernels and shows compiled models fewer shapes.
TRIM = 32


@dataclass(frozen=True)
class Batch:
    """Examples, padded to a common length.

    Args:
        tokens: `(B, N)` or `(B, S, N)` int64 ids; 0 under the mask.
        mask: The same shape, True for real tokens; None if all are real.
        labels: `(B,)` int64.
        num_tokens: Number of tokens in the sequences, before any token is treated as padding.
        whole: Number of examples in the whole batch that this is a micro-batch of; None if this is
            the whole batch.
        weights: `(B,)`, 1 for an example and 0 for one that only fills the shape; None if all
            examples count.
        examples: Indices of the examples in the split, without those that only fill the shape; on
            the CPU.
    """

    tokens: Tensor
    mask: Tensor | None
    labels: Tensor
    num_tokens: int
    whole: int | None = None
    weights: Tensor | None = None
    examples: NDArray[np.int64] | None = None


class Batches:
    """Gather batches from a split.

    Args:
        split: The data.
        padded_length: The protocol's length.
        truncate: Largest number of tokens of a sequence that are read.
        id_shift: Added to a symbol to get its id.
        zero_is_padding: Mask id 0 wherever it occurs, as published code does with black pixels.
        trim: Pad only to the longest sequence of a batch; for backends that are pad-invariant.
        device: The device of the batches; for a GPU, the split is moved there once.

    Attributes:
        labels: `(num_examples,)` int64, in the split's order.
        zero_is_padding: As given.
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
        self.zero_is_padding = zero_is_padding
        self._per_example = len(split.lengths) // len(split)
        self._lengths = np.minimum(split.lengths, truncate).reshape(len(split), -1)
        self._ragged = bool((self._lengths < padded_length).any())
        # The whole split is on the device, so a batch is gathered there from its indices alone.
        starts = split.offsets[:-1].reshape(len(split), self._per_example)
        self._starts = torch.from_numpy(starts).to(device)
        self._counts = torch.from_numpy(self._lengths).to(device)
        self._tokens = torch.from_numpy(split.tokens).to(device)
        self._labels = torch.from_numpy(split.labels).to(device)
        self.labels = split.labels
        self._drawn: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens read from each example's longest sequence, `(num_examples,)`."""
        longest: NDArray[np.int64] = self._lengths.max(1)
        return longest

    @property
    def every_length(self) -> NDArray[np.int64]:
        """Number of tokens read from each sequence, `(num_examples, S)`."""
        return self._lengths

    def shuffled(self, step: int, batch_size: int, seed: int) -> Batch:
        """Return the batch of a training step, counted from 0.

        The stream of examples is one permutation after another, each drawn from (seed, epoch);
        a batch may extend from one permutation into the next, so that no example is ever left out.
        """
        [batch] = self.divided(step, batch_size, seed, WHOLE)
        return batch

    def divided(
        self,
        step: int,
        batch_size: int,
        seed: int,
        division: Division,
        share: tuple[int, int] = (0, 1),
    ) -> list[Batch]:
        """Return the batch of a training step in micro-batches, the longest examples first.

        Args:
            step: Number of the step, from 0.
            batch_size: Number of examples in the whole batch.
            seed: Seed of the order of examples.
            division: How much is computed at once.
            share: Which part of the batch, counted from 0, and the number of parts, all of about
                equal lengths.
        """
        indices, (part, parts) = self.drawn(step, batch_size, seed), share
        if division.is_whole:
            whole = batch_size if parts > 1 else None
            return [self.gather(indices[part::parts], whole=whole)]
        indices = indices[np.argsort(-self._lengths[indices].max(1), kind="stable")][part::parts]
        widths = [self._width(indices[row : row + 1], division) for row in range(len(indices))]
        batches = []
        for rows_of in division.divide(widths, self._per_example):
            rows = division.rows(widths[rows_of.start], self._per_example)
            fill = min(rows, -(-batch_size // parts)) if division.shapes else 0
            batches.append(self.gather(indices[rows_of], division, fill, batch_size))
        return batches

    def num_tokens(self, step: int, batch_size: int, seed: int) -> int:
        """Return the number of tokens in the sequences of a whole batch."""
        return int(self._lengths[self.drawn(step, batch_size, seed)].sum())

    def drawn(self, step: int, batch_size: int, seed: int) -> NDArray[np.int64]:
        """Return the indices of the examples of a training step, `(batch_size,)`."""
        start = step * batch_size
        indices: list[NDArray[np.int64]] = []
        while (missing := batch_size - sum(map(len, indices))) > 0:
            epoch, position = divmod(start + batch_size - missing, len(self))
            indices.append(self._permutation(seed, epoch)[position : position + missing])
        return np.concatenate(indices)

    def once(self, batch_size: int, division: Division = WHOLE) -> Iterator[Batch]:
        """Yield every example once, sorted by length to keep padding small.

        Args:
            batch_size: Largest number of examples in a batch.
            division: Further limits on what is computed at once.
        """
        yield from map(self.gather, self.groups(batch_size, division))

    def groups(self, batch_size: int, division: Division = WHOLE) -> list[NDArray[np.int64]]:
        """Return the examples of every batch of `once`, as indices for `gather`."""
        order = np.argsort(self.lengths, kind="stable")
        if division.is_whole:
            return [order[start : start + batch_size] for start in range(0, len(self), batch_size)]
        limited = replace(division, examples=min(batch_size, division.examples or batch_size))
        longest = self.lengths[order]
        unit = TRIM if self._trim else self._padded_length
        widths = np.minimum(-(-longest // unit) * unit, self._padded_length)[::-1]
        parts = limited.divide(widths.tolist(), self._per_example)
        return [order[::-1][part][::-1] for part in reversed(parts)]

    def _permutation(self, seed: int, epoch: int) -> NDArray[np.int64]:
        if self._drawn != (seed, epoch):
            generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
            self._order = torch.randperm(len(self), generator=generator).numpy()
            self._drawn = (seed, epoch)
        return self._order

    def _width(self, indices: NDArray[np.int64], division: Division) -> int:
        """Return the length that examples are padded to."""
        if not self._trim:
            return self._padded_length
        unit = TRIM
        if division.shapes:
            unit = -(-self._padded_length // (TRIM * division.shapes)) * TRIM
        longest = max(1, int(self._lengths[indices].max()))
        return min(self._padded_length, -(-longest // unit) * unit)

    def on_device(self, array: NDArray[Any]) -> Tensor:
        """Copy an array to the device; with a GPU, the copy runs while this process goes on."""
        there = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cuda":
            there = there.pin_memory()
        return there.to(self._device, non_blocking=True)

    def gather(
        self,
        indices: NDArray[np.int64],
        division: Division = WHOLE,
        fill: int = 0,
        whole: int | None = None,
    ) -> Batch:
        """Return examples as a batch.

        Args:
            indices: Indices of the examples, at least one.
            division: How the batch that they belong to is divided.
            fill: Number of examples up to which the last one is repeated, so that shapes recur.
            whole: Number of examples in the whole batch that they are part of.
        """
        lengths, width = self._lengths[indices], self._width(indices, division)
        num_tokens, missing = int(lengths.sum()), max(0, fill - len(indices))
        rows = self.on_device(np.append(indices, indices[-1:].repeat(missing)))
        weights = None
        if fill:
            weights = (torch.arange(fill, device=self._device) < len(indices)).float()
        steps = torch.arange(width, device=self._device)
        places = self._starts[rows][..., None] + steps
        mask = None
        # If the number of shapes is limited, there is either always a mask or never one.
        if (lengths < width).any() or (fill and self._ragged):
            mask = steps < self._counts[rows][..., None]
            tokens = self._tokens[places.where(mask, 0)].long() + self._id_shift
            tokens = tokens.where(mask, 0)
        else:
            tokens = self._tokens[places].long() + self._id_shift
        if self.zero_is_padding:
            mask = tokens != 0
        if self._per_example == 1:
            tokens, mask = tokens.squeeze(1), None if mask is None else mask.squeeze(1)
        return Batch(tokens, mask, self._labels[rows], num_tokens, whole, weights, indices)
