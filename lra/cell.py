"""What a cell is known by, whether it is finished, and a finished one read again."""

import logging
from pathlib import Path
from typing import Any

import torch

from lra import checkpoint
from lra.build import Model, build_model
from lra.checkpoint import BEST
from lra.config import Config, ConfigError, comparable, config_hash, recorded
from lra.record import RECORD, Record, RecordError, read_record
from lra.tasks import DataError, Task

log = logging.getLogger(__name__)


def finished(folder: Path, values: dict[str, Any]) -> bool:
    """Tell whether a folder holds the finished record of a configuration.

    Knobs that are younger than the record count with their defaults.

    Raises:
        ConfigError: It holds the record of another one; the message shows where they differ.
    """
    if not (folder / RECORD).exists():
        return False
    try:
        record = read_record(folder / RECORD)
    except RecordError as error:
        log.warning("%s; training again", error)
        return False
    stored = dict(record.config)
    data = stored.pop("data", None)
    keys = {key: stored[key] for key in ("device", "threads")}
    there = comparable(recorded(stored), **keys, data=data or values["data"])
    # Raw data may be gone by now; what was made of them still counts.
    here = values if values["data"] else values | {"data": there["data"]}
    if config_hash(there) != config_hash(here):
        raise ConfigError(
            f"{folder} holds the record of another configuration:\n"
            + "\n".join(_differences(there, here))
            + "\nGive this one a name by variant=..., or replace that one by force=true"
        )
    return record.status == "ok"


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key in sorted(there | here):
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"  {prefix}{key}: {old} there, {new} here")
    return lines


def _located(task: Task, data_dir: Path | None) -> dict[str, Any] | None:
    """Return what tells one kind of data from another, None where they are missing."""
    try:
        return {"source": task.locate(data_dir).kind, "version": task.version}
    except DataError:
        return None


def decided(config: Config, task: Task, device: torch.device) -> dict[str, Any]:
    """Return what a cell's hash covers: its configuration as this machine and its data decide it.

    Args:
        config: The cell.
        task: Its task.
        device: Where it would be trained.
    """
    threads = config.threads or torch.get_num_threads()
    data = _located(task, config.raw_data_dir())
    return comparable(config, device=device.type, threads=threads, data=data)


def identity(values: dict[str, Any], fingerprint: str, sources: str) -> str:
    """Return what a checkpoint is known by, a hash.

    Args:
        values: The configuration, as `decided`.
        fingerprint: Of the data.
        sources: The files of the user's own backends, as `custom.sources` tells them.
    """
    own = {"sources": sources} if sources else {}
    return config_hash({"config": values, "data": fingerprint, **own})


def load_run(folder: Path) -> tuple[Config, Record, Model]:
    """Return a finished run's configuration, its record and its model as validation chose it.

    Raises:
        RecordError: The folder holds no record, or a damaged one.
        ConfigError: The run failed, or `best.pt` is missing, damaged or of other code.
    """
    record = read_record(folder / RECORD)
    if record.status != "ok":
        raise ConfigError(f"{folder}: this run failed ({record.reason}); there is nothing to test")
    config = recorded({key: v for key, v in record.config.items() if key != "data"})
    model = build_model(config)
    state = checkpoint.load(folder / BEST, torch.device("cpu"))["model"]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{folder / BEST} is of another model: {reason}") from error
    return config, record, model
