"""What a model answered to every example of a split, and accuracy by a property of examples.

A run keeps the answers to its test set beside its record, so that two methods can be compared
example by example. Axes: B examples of a split, in its order.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lra.folders import writing

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.npz"
# Bins of accuracy by length.
BINS = 8


@dataclass(frozen=True)
class Predictions:
    """Answers and what would have been right.

    Args:
        predicted: `(B,)` integer classes.
        labels: `(B,)` integer classes.
    """

    predicted: NDArray[np.integer]
    labels: NDArray[np.integer]

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
    """Write `predictions.npz` into a run folder, whole or not at all: a byte or two for each class.

    Raises:
        FolderError: The folder cannot be written to.
    """
    largest = max(int(predictions.predicted.max()), int(predictions.labels.max()))
    kind = np.min_scalar_type(largest)
    partial = folder / f"{PREDICTIONS}.partial"
    with writing("runs_dir", folder, f"writing {PREDICTIONS}"), open(partial, "wb") as file:
        np.savez_compressed(
            file,
            predicted=predictions.predicted.astype(kind),
            labels=predictions.labels.astype(kind),
        )
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / PREDICTIONS)


def read_predictions(folder: Path, correct: int | None, total: int | None) -> Predictions | None:
    """Return the test predictions of a run; None where there are none, or not its record's.

    Args:
        folder: Run folder.
        correct: Right answers that the record tells of.
        total: Answers that it tells of.
    """
    file = folder / PREDICTIONS
    if not file.exists():
        return None
    try:
        with open(file, "rb") as source, np.load(source, allow_pickle=False) as arrays:
            found = Predictions(arrays["predicted"], arrays["labels"])
    except Exception as error:  # zip and header are parsed by modules with errors of their own
        log.warning("left out: %s: not readable as predictions (%s)", file, error)
        return None
    shapes = {found.predicted.shape, found.labels.shape}
    if shapes != {(total,)} or found.num_correct != correct:
        log.warning("left out: %s: not %s right answers of %s", file, correct, total)
        return None
    return found


def by_group(
    values: NDArray[np.integer], right: NDArray[np.bool_]
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Yield every value there is, ascending, with what is right among its examples.

    Args:
        values: `(B,)` integers, a property of each example.
        right: `(B,)`, whether its answer is right.

    Raises:
        ValueError: Their numbers differ.
    """
    if values.shape != right.shape:
        raise ValueError(f"values of shape {values.shape}: must be {right.shape}, one per answer")
    for value in np.unique(values):
        yield int(value), right[values == value]


def by_length(
    lengths: NDArray[np.integer], right: NDArray[np.bool_], bins: int = BINS
) -> list[dict[str, int]]:
    """Return accuracy in bins of length that hold equal numbers of examples.

    Examples of equal length stay together, so that bins are equal as far as lengths allow, and
    fewer where these are few.

    Args:
        lengths: `(B,)` tokens of each example.
        right: `(B,)`, whether its answer is right.
        bins: Number of bins.

    Returns:
        A dict a bin, short examples first: its `least` and `most` tokens, both of examples in it,
        its right answers as `correct` and its examples as `total`; none where all are as long.
    """
    ordered = np.sort(lengths)
    ends = -(-len(ordered) * np.arange(1, bins + 1) // bins) - 1
    bounds = np.unique(ordered[ends])
    if ordered[0] == ordered[-1]:
        return []
    places = np.searchsorted(bounds, lengths)
    found = []
    for place, part in by_group(places, right):
        there = lengths[places == place]
        edges = {"least": int(there.min()), "most": int(there.max())}
        found.append(edges | {"correct": int(part.sum()), "total": len(part)})
    return found
