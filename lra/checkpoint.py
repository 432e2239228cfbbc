"""Checkpoints: everything a run needs to continue as if it had never stopped.

A checkpoint holds a checksum of the rest of its content, so that damage to any bit is noticed. Two
checkpoints are kept; if the last one cannot be read, the one before it is.
"""

import hashlib
import io
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lra.config import ConfigError, differences
from lra.division import is_out_of_memory
from lra.folders import replacing, writing
from lra.paths import CHECKPOINT as CHECKPOINT
from lra.paths import PRETRAINING

log = logging.getLogger(__name__)

# The checkpoint before the last, and the parameters that validation chose.
PREVIOUS, BEST = "checkpoint.previous.pt", "best.pt"
CHECKSUM = "checksum"
# The keys of a run's checkpoint; the optional ones were added later, and older files lack them.
REQUIRED = {"identity", "progress", "model", "optimiser", "schedule", "random", "best_model"}
OPTIONAL = {"scaler", "config", "code", "speed", "losses", "division", "micro_batch"}
OPTIONAL |= {"unvalidated", "first_division", "first_divided", "machines", "peak_memory"}


class DamagedError(ConfigError):
    """A file differs from the checkpoint that was written."""


@dataclass(frozen=True)
class Identity:
    """The identity of a checkpoint.

    Args:
        hash: Hash of the configuration, the data and the user's own backends.
        config: The configuration, as `resolved_values` returns it.
        code: Version of the suite, as `machine.code_name` returns it.
    """

    hash: str
    config: dict[str, Any]
    code: str

    def check(self, file: Path, state: dict[str, Any], steps: int) -> None:
        """Reject the checkpoint of another cell.

        Args:
            file: The file it was read from, for messages.
            state: Its content.
            steps: Updates in the whole run.

        Raises:
            ConfigError: It belongs to another cell; the message shows where the two differ.
        """
        if state["identity"] != self.hash:
            lines = differences(state.get("config", self.config), self.config)
            where = ":\n" + "\n".join(lines) + "\n" if lines else ": "
            raise ConfigError(
                f"{file} belongs to another configuration, other data or an attention that has"
                f" changed since{where}give this cell a name with variant=..., or delete the file"
            )
        if (step := state["progress"]["step"]) > steps:
            raise DamagedError(
                f"{file}: not a readable checkpoint (progress.step={step} of {steps}); delete it"
                " to start over"
            )


def checksum(value: Any) -> str:
    """Return the sha256 of nested dicts, lists, tensors and plain values, 64 hex digits."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", value: Any) -> None:
    if isinstance(value, dict):
        digest.update(f"{{{len(value)}".encode())
        for key, each in value.items():
            _feed(digest, key)
            _feed(digest, each)
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for each in value:
            _feed(digest, each)
    elif isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        # As bytes: numpy has no bfloat16.
        plain = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(plain.numpy().data)
    else:
        digest.update(f"{type(value).__name__} {value!r};".encode())


def save(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """Write `state` to `path` so that a reader finds the old file or the new one, never a part.

    Args:
        path: The file.
        state: Its content; a checksum is added.
        previous: Where an existing file is moved to; without it, that file is replaced.

    Raises:
        FolderError: The disk is full or cannot be written to; an existing file stays.
    """
    # In memory first: torch reports a full disk as an error of its own archive format.
    buffer = io.BytesIO()
    torch.save(state | {CHECKSUM: checksum(state)}, buffer)
    doing = f"writing {path.name}" + ("; the last checkpoint stays" if path.exists() else "")
    with writing("runs_dir", path.parent, doing), replacing(path, keep=previous) as file:
        file.write(buffer.getbuffer())


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Load onto `device` a file written by `save`; it may hold only tensors and plain values.

    A file without a checksum was written by an earlier version and is accepted as it is.

    Raises:
        DamagedError: The file is not readable, or differs from what was written.
        RuntimeError: It does not fit into memory.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises whatever the layer that failed raises
        if is_out_of_memory(error):
            raise
        reason = " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]])
        raise DamagedError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(state, dict):
        kind = type(state).__name__
        raise DamagedError(f"{path}: not a readable checkpoint (holds a {kind}, not a dict)")
    expected = state.pop(CHECKSUM, None)
    if expected is not None and expected != checksum(state):
        raise DamagedError(f"{path}: not a readable checkpoint (its content has changed)")
    return state


def load_best(folder: Path, device: torch.device) -> dict[str, Tensor]:
    """Return the parameters that validation chose in a finished run.

    Raises:
        DamagedError: `best.pt` is missing or damaged, and no checkpoint has them either.
    """
    try:
        state = load(folder / BEST, device)
        _check_keys(folder / BEST, state, {"model"}, set())
        model: dict[str, Tensor] = state["model"]
    except DamagedError as error:
        try:
            model = _load_run(folder / CHECKPOINT, device)["best_model"]
        except DamagedError:
            raise error from None
        log.warning("%s; reading the same parameters from %s", error, CHECKPOINT)
    return model


def load_last(folder: Path, device: torch.device) -> tuple[Path, dict[str, Any]] | None:
    """Return the file and content of a run's last readable checkpoint, or None if it has none.

    Raises:
        DamagedError: The run has checkpoints, but none is readable.
    """
    errors = []
    for name in (CHECKPOINT, PREVIOUS):
        # On a file system without links, only the previous one exists between two renames.
        if not (folder / name).exists():
            continue
        try:
            state = _load_run(folder / name, device)
        except DamagedError as error:
            errors.append(error)
            continue
        for damage in errors:
            log.warning("%s; continuing from the one before, %s", damage, name)
        return folder / name, state
    if errors:
        last = folder / PREVIOUS
        both = f", nor is {last.name}" if len(errors) > 1 else ""
        raise DamagedError(f"{errors[0]}{both}; delete what is damaged to start over")
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration that a run was started with; empty if no checkpoint holds it.

    Neither the tensors nor the checksum are read, so a large file costs no more than a small one.
    A fault in the file is reported when the run continues from it.
    """
    for name in (CHECKPOINT, PREVIOUS):
        try:
            state = torch.load(folder / name, map_location="cpu", weights_only=True, mmap=True)
            return dict(state["config"])
        except Exception:  # torch raises whatever the layer that failed raises
            continue
    return {}


def remove(folder: Path) -> None:
    """Delete a run's checkpoints and its chosen parameters, including those of pretraining."""
    for place in (folder, folder / PRETRAINING):
        for name in (CHECKPOINT, PREVIOUS, BEST):
            (place / name).unlink(missing_ok=True)


def _load_run(path: Path, device: torch.device) -> dict[str, Any]:
    state = load(path, device)
    _check_keys(path, state, REQUIRED, OPTIONAL)
    progress = state["progress"]
    step = progress.get("step") if isinstance(progress, dict) else None
    if type(step) is not int or step < 0:
        raise DamagedError(f"{path}: not a readable checkpoint (progress.step={step!r})")
    return state


def _check_keys(
    path: Path, state: dict[str, Any], required: Iterable[str], optional: Iterable[str]
) -> None:
    for state_of, keys in {
        "lacks": sorted(set(required) - set(state)),
        "holds an unknown": sorted(map(str, set(state) - set(required) - set(optional))),
    }.items():
        if keys:
            raise DamagedError(f"{path}: not a readable checkpoint ({state_of} {keys[0]!r})")


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of the generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put the generators back into the states that `random_state` returned."""
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["mps"].cpu())
