"""A model's answers to every example of a split, and accuracy by a property of examples.

A run keeps its answers to the test set beside its record, so that two methods can be compared
example by example. Axes: B examples of a split, in the order of the split.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lra.folders import write_arrays

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.npz"
# Number of bins for accuracy by length or by another property.
BINS = 8


@dataclass(frozen=True)
class Predictions:
    """A model's answers, and the right answers.

    Args:
        predicted: `(B,)` integer classes.
        labels: `(B,)` integer classes.
        groups: `(B,)` integers by which the task groups examples; None if it does not.
        loss: Mean cross-entropy; NaN if it is not known, as when read from a file.
    """

    predicted: NDArray[np.integer]
    labels: NDArray[np.integer]
    groups: NDArray[np.integer] | None = None
    loss: float = math.nan

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each answer is right, `(B,)`."""
        right: NDArray[np.bool_] = self.predicted == self.labels
        return right

    @property
    def num_correct(self) -> int:
        """Number of right answers."""
        return int(self.right.sum())


def write_predictions(folder: Path, predictions: Predictions) -> None:
    """Write `predictions.npz` into a run folder, completely or not at all.

    Each class takes a byte or two.

    Raises:
        FolderError: The folder cannot be written to.
    """
    largest = max(int(predictions.predicted.max()), int(predictions.labels.max()))
    kind = np.min_scalar_type(largest)
    arrays = {name: getattr(predictions, name).astype(kind) for name in ("predicted", "labels")}
    if (groups := predictions.groups) is not None:
        arrays["groups"] = groups.astype(np.min_scalar_type(int(groups.max())))
    write_arrays(folder, PREDICTIONS, **arrays)


def read_predictions(folder: Path, correct: int | None, total: int | None) -> Predictions | None:
    """Return the test predictions of a run; None if it has none that match its record.

    Args:
        folder: Run folder.
        correct: Number of right answers according to the record.
        total: Number of answers according to the record.
    """
    file = folder / PREDICTIONS
    if not file.exists():
        return None
    try:
        with open(file, "rb") as source, np.load(source, allow_pickle=False) as arrays:
            groups = arrays.get("groups")
            found = Predictions(arrays["predicted"], arrays["labels"], groups)
    except Exception as error:  # zip and header are parsed by modules with errors of their own
        log.warning("left out: %s: not readable as predictions (%s)", file, error)
        return None
    arrays_there = (found.predicted, found.labels, found.predicted if groups is None else groups)
    shapes = {each.shape for each in arrays_there}
    whole = all(each.dtype.kind in "iu" for each in arrays_there)
    if not whole or shapes != {(total,)} or found.num_correct != correct:
        log.warning("left out: %s: not %s right answers out of %s", file, correct, total)
        return None
    return found


def by_group(
    values: NDArray[np.integer], right: NDArray[np.bool_]
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Yield every value that occurs, ascending, and which answers to its examples are right.

    Args:
        values: `(B,)` integers, a property of each example.
        right: `(B,)`, whether the answer to each example is right.

    Raises:
        ValueError: They differ in number.
    """
    if values.shape != right.shape:
        raise ValueError(f"values of shape {values.shape}: must be {right.shape}, one per answer")
    for value in np.unique(values):
        yield int(value), right[values == value]


def by_length(
    lengths: NDArray[np.integer], right: NDArray[np.bool_], bins: int = BINS
) -> list[dict[str, int]]:
    """Return accuracy in bins of a property, such as length, that hold equal numbers of examples.

    Examples of equal length stay together, so bins are only as equal as the lengths allow, and
    there are fewer of them if there are few lengths.

    Args:
        lengths: `(B,)`, the number of tokens of each example, or another property.
        right: `(B,)`, whether the answer to each example is right.
        bins: Number of bins.

    Returns:
        One dict per bin, short examples first: the `least` and `most` tokens of its examples, its
        right answers as `correct` and its examples as `total`; none if all are equally long.
    """
    ordered = np.sort(lengths)
    if ordered[0] == ordered[-1]:
        return []
    ends = -(-len(ordered) * np.arange(1, bins + 1) // bins) - 1
    return _in_bins(lengths, right, np.unique(ordered[ends]))


def by_value(
    values: NDArray[np.integer], right: NDArray[np.bool_], bins: int = BINS
) -> list[dict[str, int]]:
    """Return accuracy by value if there are few values, else as `by_length` does.

    Args:
        values: `(B,)` integers, a property of each example.
        right: `(B,)`, whether the answer to each example is right.
        bins: Largest number of values that counts as few.
    """
    few = np.unique(values)
    if len(few) > bins:
        return by_length(values, right, bins)
    return _in_bins(values, right, few)


def _in_bins(
    values: NDArray[np.integer], right: NDArray[np.bool_], most: NDArray[np.integer]
) -> list[dict[str, int]]:
    """Return accuracy in bins whose upper ends are `most`, ascending; see `by_length`."""
    places = np.searchsorted(most, values)
    found = []
    for place, part in by_group(places, right):
        there = values[places == place]
        edges = {"least": int(there.min()), "most": int(there.max())}
        found.append(edges | {"correct": int(part.sum()), "total": len(part)})
    return found
