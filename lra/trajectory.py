"""The loss at every update of a run, kept beside its record so that anyone can train it again.

A few updates, trained again from the record's own configuration, have the same losses where the
record belongs to it, and others where a learning rate, a seed or the data are not those it names.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lra.folders import writing

TRAJECTORY = "trajectory.npz"


class TrajectoryError(ValueError):
    """A run has no trajectory, or a file is not the one that its run wrote."""


def fingerprint(losses: NDArray[np.float32]) -> str:
    """Return the sha256 of losses as little-endian float32, 64 hex digits.

    Args:
        losses: `(steps,)`, of every update.
    """
    return hashlib.sha256(losses.astype("<f4").tobytes()).hexdigest()


def write_trajectory(folder: Path, losses: NDArray[np.float32]) -> None:
    """Write `trajectory.npz` into a run folder, whole or not at all.

    Args:
        folder: Run folder.
        losses: `(steps,)`, of every update; NaN where it is unknown.

    Raises:
        FolderError: The folder cannot be written to.
    """
    partial = folder / f"{TRAJECTORY}.partial"
    with writing("runs_dir", folder, f"writing {TRAJECTORY}"), open(partial, "wb") as file:
        np.savez_compressed(file, loss=losses.astype(np.float32))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / TRAJECTORY)


def read_trajectory(folder: Path, steps: int, expected: str) -> NDArray[np.float32]:
    """Return the loss at every update of a run, `(steps,)`; NaN where it is unknown.

    Args:
        folder: Run folder.
        steps: Updates that its record tells of.
        expected: Fingerprint that it tells of; empty where it is older than that.

    Raises:
        TrajectoryError: There is none, or not the one that the record tells of.
    """
    file = folder / TRAJECTORY
    try:
        with open(file, "rb") as source, np.load(source, allow_pickle=False) as arrays:
            losses: NDArray[np.float32] = arrays["loss"]
    except FileNotFoundError as error:
        raise TrajectoryError(
            f"{file}: there is none; runs of earlier versions kept none"
        ) from error
    except Exception as error:  # zip and header are parsed by modules with errors of their own
        raise TrajectoryError(f"{file}: not readable as a trajectory ({error})") from error
    if losses.shape != (steps,) or losses.dtype != np.float32:
        found = f"{losses.dtype} of shape {losses.shape}"
        raise TrajectoryError(f"{file}: {found}, the record tells of {steps} float32 losses")
    if expected and (found := fingerprint(losses)) != expected:
        raise TrajectoryError(
            f"{file}: not the losses that the run had: fingerprint {found[:16]}, the record tells"
            f" of {expected[:16]}"
        )
    return losses
