"""The examples of a split one by one, for use in a user's own code.

Training itself reads `lra.batches`, which gathers whole batches at once.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lra.batches import Batches
from lra.tasks import Split

if TYPE_CHECKING:
    import datasets


class Example(NamedTuple):
    """One example.

    Args:
        tokens: `(N,)` int64 ids as the model reads them, without padding; a pair of such arrays
            for a task with two sequences per example.
        label: Class, from 0.
    """

    tokens: NDArray[np.int64] | tuple[NDArray[np.int64], ...]
    label: int


class Examples:
    """The examples of a split, by index or in order.

    Args:
        split: Its sequences and labels.
        batches: The same split as batches of one length on the CPU.
        truncate: Largest number of tokens of a sequence that are read.
        id_shift: Added to a stored symbol to get its id.
    """

    def __init__(self, split: Split, batches: Batches, truncate: int, id_shift: int) -> None:
        self._split, self._batches = split, batches
        self._truncate, self._id_shift = truncate, id_shift
        self._per_example = len(split.lengths) // len(split)

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> Example:
        """Return an example; a negative index counts from the end.

        Raises:
            IndexError: The index is out of range.
        """
        index = _within(index, len(self))
        first = index * self._per_example
        tokens = tuple(self._sequence(first + k) for k in range(self._per_example))
        label = int(self._split.labels[index])
        return Example(tokens if self._per_example > 1 else tokens[0], label)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Examples({len(self):,})"

    def to_torch(self) -> "Padded":
        """Return a data set for `torch.utils.data.DataLoader`: tokens, mask and label, padded."""
        return Padded(self._batches)

    def to_hf(self) -> "datasets.Dataset":
        """Return a `datasets.Dataset` with the columns `tokens` and `label`, without padding."""
        import datasets

        token_list: Any = datasets.List(datasets.Value("int64"))
        if self._per_example > 1:
            token_list = datasets.List(token_list)
        features = datasets.Features({"tokens": token_list, "label": datasets.Value("int64")})
        # From a dictionary, since a generator's rows would be stored on disk under a random name.
        columns = {
            "tokens": [example.tokens for example in self],
            "label": self._split.labels.tolist(),
        }
        return datasets.Dataset.from_dict(columns, features=features)

    def _sequence(self, number: int) -> NDArray[np.int64]:
        start, stop = self._split.offsets[number : number + 2].tolist()
        symbols = self._split.tokens[start : min(stop, start + self._truncate)]
        return symbols.astype(np.int64) + self._id_shift


class Padded(torch.utils.data.Dataset[tuple[Tensor, Tensor, Tensor]]):
    """A split as tensors of one length, which a `DataLoader` stacks.

    Args:
        batches: Batches of the split, not trimmed.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens and mask, `(N,)` or `(S, N)`, and the label, a scalar.

        Args:
            index: Index of the example; a negative one counts from the end.

        Raises:
            IndexError: The index is out of range.
        """
        batch = self._batches.gather(np.array([_within(index, len(self))]))
        mask = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.mask is None else batch.mask
        return batch.tokens[0], mask[0], batch.labels[0]


def _within(index: int, length: int) -> int:
    if not -length <= index < length:
        raise IndexError(f"example {index}: out of range, there are {length:,}")
    return index % length
