"""Checkpoints: everything a run needs to go on as if it had never stopped."""

import os
from pathlib import Path
from typing import Any

import torch

from lra.config import ConfigError

# To continue from, and the parameters that validation chose.
CHECKPOINT, BEST = "checkpoint.pt", "best.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` so that a reader finds the old file or the new, never a part."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint onto `device`, tensors and plain values only.

    Raises:
        ConfigError: The file is not a readable checkpoint.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises whatever the layer that failed raises
        raise ConfigError(
            f"{path}: not a readable checkpoint ({error}); delete it to start anew"
        ) from error
    return state


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of the generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put the generators back into the states that `random_state` returned."""
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
