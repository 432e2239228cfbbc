"""Batches for pretraining: some tokens are hidden, and labels give the tokens to predict.

They are a pure function of seed and step, like the batches themselves: which tokens of an example
are hidden follows from (seed, step, example), whatever else is in its micro-batch, on any device.

Axes: B batch, S sequences per example (absent if there is only 1), N length.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lra.batches import Batch, Batches
from lra.division import Division
from lra.seeds import derive
from models.restorer import HIDDEN

# The label of a position where nothing is to be predicted; `cross_entropy` ignores it.
NOTHING = -100
# The step that stands for validation, which hides the same tokens every time.
_VALIDATION = -1


class HiddenBatches:
    """Batches in which tokens are hidden, or in which each token's successor is to be predicted.

    Padding is never hidden and never to be predicted. Black pixels that a protocol treats as
    padding stay padding while they are visible; a pixel that is hidden, or from which the next one
    is to be predicted, is real.

    Args:
        batches: Batches of the task; their labels are not used.
        share: Probability that a token is hidden; with None, sequences are shown whole and the next
            token is to be predicted instead.
        seed: Seed of the hiding.
    """

    def __init__(self, batches: Batches, share: float | None, seed: int) -> None:
        self._batches, self._share, self._seed = batches, share, seed

    def divided(
        self,
        step: int,
        batch_size: int,
        seed: int,
        division: Division,
        share: tuple[int, int] = (0, 1),
    ) -> list[Batch]:
        """Return the batch of a training step in micro-batches; see `Batches.divided`.

        Labels are `(B, N)` or `(B, S, N)`: the token to predict, or `NOTHING`; `whole` is the
        number of tokens to predict in the whole batch.
        """
        drawn = self._batches.drawn(step, batch_size, seed).tolist()
        masks = {number: self._asked(step, number) for number in set(drawn)}
        whole = sum(int(masks[number].sum()) for number in drawn)
        parts = self._batches.divided(step, batch_size, seed, division, share)
        return [self._hide(part, masks, whole) for part in parts]

    def num_tokens(self, step: int, batch_size: int, seed: int) -> int:
        """Return the number of tokens in the sequences of a whole batch."""
        return self._batches.num_tokens(step, batch_size, seed)

    def groups(self, batch_size: int, division: Division) -> list[NDArray[np.int64]]:
        """Return the examples of every batch of a validation, as `Batches.groups` does."""
        return self._batches.groups(batch_size, division)

    def gather(self, examples: NDArray[np.int64]) -> Batch:
        """Return examples for validation, with the same tokens hidden every time.

        Its `whole` is the number of tokens to predict in the whole split.
        """
        masks = {number: self._asked(_VALIDATION, number) for number in examples.tolist()}
        return self._hide(self._batches.gather(examples), masks, self._whole)

    @cached_property
    def _whole(self) -> int:
        every = range(len(self._batches.every_length))
        return sum(int(self._asked(_VALIDATION, number).sum()) for number in every)

    def _asked(self, step: int, number: int) -> NDArray[np.bool_]:
        """Return at which positions of an example a token is to be predicted, `(S, longest)`."""
        lengths = self._batches.every_length[number][:, None]
        places = np.arange(lengths.max())
        if self._share is None:
            # No token follows the last one.
            follows: NDArray[np.bool_] = places < lengths - 1
            return follows
        real: NDArray[np.bool_] = places < lengths
        key = np.array([derive(self._seed, "hidden", step), number], dtype=np.uint64)
        drawn = np.random.Generator(np.random.Philox(key=key)).random(real.shape)
        return real & (drawn < self._share)

    def _hide(self, part: Batch, masks: Mapping[int, NDArray[np.bool_]], whole: int) -> Batch:
        assert part.examples is not None
        sequences, width = self._batches.every_length.shape[1], part.tokens.shape[-1]
        # In examples that only fill the shape, nothing is to be predicted.
        asked = np.zeros((len(part.tokens), sequences, width), dtype=np.bool_)
        for row, number in enumerate(part.examples.tolist()):
            asked[row, :, : masks[number].shape[1]] = masks[number]
        there = self._batches.on_device(asked).view_as(part.tokens)
        hides, tokens, mask = self._share is not None, part.tokens, part.mask
        labels = (tokens if hides else tokens.roll(-1, -1)).where(there, NOTHING)
        if hides:
            tokens = tokens.masked_fill(there, HIDDEN)
        if mask is not None and self._batches.zero_is_padding:
            mask = mask | there
        whole = max(1, whole)
        return replace(part, tokens=tokens, mask=mask, labels=labels, whole=whole, weights=None)
