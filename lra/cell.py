"""Identify a cell, tell whether it is finished, and load a finished one."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lra import checkpoint
from lra.build import Model, build_model
from lra.checkpoint import BEST, Identity
from lra.compose import command, groups, place, recorded
from lra.config import Config, ConfigError, comparable, config_hash, differences
from lra.machine import resolve_threads
from lra.paths import PRETRAINING
from lra.record import RECORD, Record, RecordError, read_record
from lra.tasks import DataError, Task, cache
from lra.words import expand

log = logging.getLogger(__name__)


def finished(folder: Path, values: dict[str, Any]) -> bool:
    """Return whether a folder holds the finished record of a configuration.

    Options that are newer than the record count with their defaults.

    Raises:
        ConfigError: It holds the record of another configuration; the message shows where they
            differ.
    """
    if not (folder / RECORD).exists():
        return False
    try:
        record = read_record(folder / RECORD)
    except RecordError as error:
        log.warning("%s; the cell counts as not finished", error)
        return False
    data = record.config.get("data")
    keys = {key: getattr(record, key) for key in ("device", "threads")}
    try:
        there = comparable(recorded(record.config), **keys, data=data or values["data"])
    except ConfigError as error:
        raise ConfigError(
            f"{folder} holds the record of another configuration, from another version: {error}."
            " Give this one a name with variant=..., or replace the other with force=true"
        ) from error
    # The raw data may be gone by now; a record that was made from them still counts.
    here = values if values["data"] else values | {"data": there["data"]}
    if config_hash(there) != config_hash(here):
        raise ConfigError(
            f"{folder} holds the record of another configuration:\n"
            + "\n".join(differences(there, here))
            + "\nGive this one a name with variant=..., or replace the other with force=true"
        )
    return record.status == "ok"


def _located(task: Task, data_dir: Path | None) -> dict[str, Any] | None:
    """Return what distinguishes these data from others, or None if they are missing."""
    try:
        found = {"source": task.locate(data_dir).kind, "version": task.version}
    except DataError:
        return None
    # The version of a user's own task is its file.
    code = cache.code_of(task)
    return found | {"code": code} if code else found


def resolved_values(
    config: Config, task: Task, device: torch.device, folder: Path
) -> dict[str, Any]:
    """Return what a cell's hash covers: its configuration, completed by this machine and the data.

    Values that are left to the machine keep what the cell was started with: `threads=0` always,
    `device=auto` only for a finished cell that is not to be trained again, since it counts as
    finished on any machine. An unfinished one continues only on the kind of device that it was
    started on.

    Args:
        config: The cell.
        task: Its task.
        device: The device it would be trained on.
        folder: Its run folder; it need not exist.

    Raises:
        ConfigError: There are far more threads than the machine has processors.
    """
    begun = _started_with(folder)
    threads, device_type = config.threads, device.type
    if not threads:
        threads = begun.get("threads", torch.get_num_threads())
    if config.device == "auto" and begun.get("status") == "ok" and not config.force:
        device_type = begun["device"]
    data = _located(task, config.raw_data_dir())
    threads = resolve_threads(threads)
    return comparable(config, device=device_type, threads=threads, data=data)


def _started_with(folder: Path) -> dict[str, Any]:
    """Return what the machine decided when a cell was started, and the cell's status if any."""
    try:
        record = read_record(folder / RECORD)
        return {"threads": record.threads, "device": record.device, "status": record.status}
    except RecordError:
        pass
    # The newer first: the checkpoint of training is written after that of pretraining.
    config = checkpoint.read_config(folder) or checkpoint.read_config(folder / PRETRAINING)
    return {"threads": config["threads"]} if "threads" in config else {}


def identity(values: dict[str, Any], fingerprint: str, sources: str, code: str = "") -> Identity:
    """Return the identity of a checkpoint.

    Args:
        values: The configuration, as `resolved_values` returns it.
        fingerprint: Fingerprint of the data.
        sources: The files of the user's own backends, as `custom.sources` returns them.
        code: Version of the suite.
    """
    own = {"sources": sources} if sources else {}
    known = config_hash({"config": values, "data": fingerprint, **own})
    return Identity(known, values, code)


def run_folders(words: Sequence[str]) -> Iterator[Path]:
    """Yield the run folders that words select or name; a record's file stands for its folder.

    Raises:
        ConfigError: A word is neither an override nor a folder.
    """
    there = [word for word in words if Path(word).is_dir() or Path(word).name == RECORD]
    for word in words:
        if "=" not in word and word not in there:
            raise ConfigError(f"{word}: neither a run folder nor a word such as task=listops")
    yield from (Path(word) if Path(word).is_dir() else Path(word).parent for word in there)
    if ready := command([word for word in words if word not in there]):
        for each in expand(ready, groups(ready)):
            yield place(*each)[1]


def load_run(folder: Path) -> tuple[Config, Record, Model]:
    """Return a finished run's configuration, its record and the model that validation chose.

    Raises:
        RecordError: The folder holds no record, or a damaged one.
        ConfigError: The run failed or is from another version, or `best.pt` is missing, damaged or
            from other code.
    """
    record = read_record(folder / RECORD)
    if record.status != "ok":
        raise ConfigError(f"{folder}: this run failed ({record.reason}); there is nothing to test")
    try:
        config = recorded(record.config)
        model = build_model(config)
    except ConfigError as error:
        raise ConfigError(f"{folder / RECORD}: {error}") from error
    state = checkpoint.load_best(folder, torch.device("cpu"))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{folder / BEST} belongs to another model: {reason}") from error
    return config, record, model


def check_same_data(here: str, there: str) -> None:
    """Reject data that differ from those of a run.

    Args:
        here: Fingerprint of the data.
        there: Fingerprint in the run's record.

    Raises:
        ConfigError: The fingerprints differ.
    """
    if here != there:
        raise ConfigError(
            f"the data differ from those of the run: sha256 {here[:16]} here, {there[:16]} there"
        )
