"""The loss at every update of a run and its validations, kept beside its record.

If a few updates are trained again from the record's own configuration, their losses are the same if
the record belongs to that configuration, and different if a learning rate, a seed or the data are
not those that it names. The validations are the run's learning curve.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lra.folders import write_arrays

TRAJECTORY = "trajectory.npz"


class TrajectoryError(ValueError):
    """A run has no trajectory, or a file is not the one that its run wrote."""


def fingerprint(losses: NDArray[np.float32]) -> str:
    """Return the sha256 of losses as little-endian float32, 64 hex digits.

    Args:
        losses: `(steps,)`, the loss of every update.
    """
    return hashlib.sha256(losses.astype("<f4").tobytes()).hexdigest()


def write_trajectory(
    folder: Path, losses: NDArray[np.float32], validations: Sequence[tuple[int, float]] = ()
) -> None:
    """Write `trajectory.npz` into a run folder, completely or not at all.

    Args:
        folder: Run folder.
        losses: `(steps,)`, the loss of every update; NaN where it is unknown.
        validations: Updates made and share right, 0 to 1, for each validation in order.

    Raises:
        FolderError: The folder cannot be written to.
    """
    points = np.array(validations, np.float64).reshape(-1, 2)
    write_arrays(folder, TRAJECTORY, loss=losses.astype(np.float32), validations=points)


def read_trajectory(folder: Path, steps: int, expected: str) -> NDArray[np.float32]:
    """Return the loss at every update of a run, `(steps,)`; NaN where it is unknown.

    Args:
        folder: Run folder.
        steps: Number of updates according to its record.
        expected: Fingerprint according to its record; empty if the record is older than that.

    Raises:
        TrajectoryError: There is none, or it is not the one that the record describes.
    """
    file = folder / TRAJECTORY
    losses = _read(file, "loss")
    if losses is None:
        raise TrajectoryError(f"{file}: holds no losses")
    if losses.shape != (steps,) or losses.dtype != np.float32:
        found = f"{losses.dtype} of shape {losses.shape}"
        raise TrajectoryError(f"{file}: {found}, but the record has {steps} float32 losses")
    if expected and (found := fingerprint(losses)) != expected:
        raise TrajectoryError(
            f"{file}: not the losses that the run had: their fingerprint is {found[:16]}, but the"
            f" record has {expected[:16]}"
        )
    return losses


def read_validations(folder: Path) -> dict[int, float]:
    """Return the share right at each validation of a run, 0 to 1, by updates made.

    It is empty if the run is from an earlier version, which kept none.

    Raises:
        TrajectoryError: There is no trajectory, or it is damaged.
    """
    file = folder / TRAJECTORY
    points = _read(file, "validations")
    if points is None:
        return {}
    if points.ndim != 2 or points.shape[1] != 2 or points.dtype != np.float64:
        found = f"{points.dtype} of shape {points.shape}"
        raise TrajectoryError(f"{file}: validations are {found}, should be pairs of float64")
    steps, shares = points.T
    is_whole = np.isfinite(points).all() and (steps % 1 == 0).all()
    is_rising = is_whole and (np.diff(steps, prepend=0) > 0).all()
    if not (is_rising and ((shares >= 0) & (shares <= 1)).all()):
        raise TrajectoryError(
            f"{file}: validations must be ascending updates with shares from 0 to 1"
        )
    return {int(step): float(share) for step, share in points}


def _read(file: Path, name: str) -> NDArray[Any] | None:
    """Return an array of a trajectory; None if it has none of that name."""
    try:
        with open(file, "rb") as source, np.load(source, allow_pickle=False) as arrays:
            found: NDArray[Any] | None = arrays.get(name)
    except FileNotFoundError as error:
        raise TrajectoryError(
            f"{file}: no such file; runs of earlier versions kept none"
        ) from error
    except Exception as error:  # zip and header are parsed by modules with errors of their own
        raise TrajectoryError(f"{file}: not readable as a trajectory ({error})") from error
    return found


def loss_distance(stored: NDArray[np.float32], losses: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how far losses are from the stored ones, `(updates,)`.

    Args:
        stored: `(updates,)`; losses that an earlier version did not keep are NaN before the first
            number, and count as 0 apart from any loss.
        losses: `(updates,)`, computed again; one that is not finite where a number is stored is
            infinitely far apart.
    """
    both = np.stack([stored, losses]).astype(np.float64)
    same = (both[0] == both[1]) | np.isnan(both).all(0)
    unknown = np.isnan(stored) & (np.cumsum(np.isfinite(stored)) == 0)
    with np.errstate(invalid="ignore"):
        distance = np.nan_to_num(np.abs(both[0] - both[1]), nan=np.inf)
    return np.where(same | unknown, 0.0, distance)


# How far rounding may move the loss of the first update, in float32 and in coarser precisions, and
# in how many updates that doubles as training carries it on; docs/verify.md says what was measured.
NEAR, COARSE, DOUBLES = 3e-6, 3e-3, 10


def rounding_tolerance(updates: int, dtype: str) -> NDArray[np.float64]:
    """Return how far rounding may move the loss of each update, `(updates,)`.

    Args:
        updates: Number of updates, from the first.
        dtype: Precision of the run, such as `float32`.
    """
    first = NEAR if dtype == "float32" else COARSE
    return first * 2.0 ** (np.arange(updates) / DOUBLES)
