"""Train one cell, or a sweep of them, and leave a record each.

    python -m lra.train task=listops attention=fourier seed=1
    python -m lra.train -m task=listops,image attention=softmax,fourier seed=0,1

A finished cell is skipped, an unfinished one continues; `force=true` trains it again.
"""

import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

import hydra
import torch
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig
from tqdm.contrib.logging import logging_redirect_tqdm

from lra import custom, memory, results
from lra.batches import Batches
from lra.build import (
    batches_for,
    build_attention,
    build_model,
    build_task,
    machine,
    num_parameters,
    resolve_device,
)
from lra.config import (
    Config,
    ConfigError,
    comparable,
    config_hash,
    recorded,
    register,
    resolve,
    resolve_precision,
)
from lra.loop import BEST, CHECKPOINT, NotFiniteError, Run, StoppedError, count_correct
from lra.results import Record
from lra.seeds import derive
from lra.tasks import DataError, Task, cache

log = logging.getLogger(__name__)


class CellFailedError(RuntimeError):
    """A cell ended without a result; its record says why."""


def finished(folder: Path, values: dict[str, Any]) -> bool:
    """Tell whether a folder holds the finished record of a configuration.

    Knobs that are younger than the record count with their defaults.

    Raises:
        ConfigError: It holds the record of another one; the message shows where they differ.
    """
    if not (folder / results.NAME).exists():
        return False
    try:
        record = results.read(folder / results.NAME)
    except results.RecordError as error:
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


def run_cell(config: Config, folder: Path, place: str = "") -> Record | None:
    """Train a cell and write its record into `folder`.

    Args:
        config: The cell.
        folder: Its run folder; it exists.
        place: Where the cell stands in a sweep, such as `[3/20] `, for bar and log.

    Returns:
        The record; None when the cell was finished before.

    Raises:
        ConfigError: Something in the configuration is wrong; nothing was built.
        DataError: The task's data are missing or damaged.
        CellFailedError: Training failed; the record says so.
        StoppedError: The run was asked to stop; its checkpoint is written.
    """
    results.code_version()
    task = build_task(config)
    build_attention(config.attention)
    device = resolve_device(config.device)
    values = decided(config, task, device)
    if not config.force and finished(folder, values):
        there = results.read(folder / results.NAME).attention_source
        changed = there != custom.sources(config.attention)
        hint = ", with an attention that has changed since; force=true trains it again"
        log.info("%s%s is finished%s", place, config.cell, hint if changed else "")
        return None
    torch.set_num_threads(values["threads"])
    try:
        # Two processes in one folder would overwrite each other's checkpoints.
        with FileLock(folder / ".lock", blocking=False):
            record = _train(config, task, device, values, folder, place + config.cell)
    except Timeout as error:
        raise ConfigError(f"{folder}: another process trains this cell") from error
    if record.status == "failed":
        # Said here too, as a sweep tells its errors only at its end.
        log.error("%s%s failed: %s", place, config.cell, record.reason)
        raise CellFailedError(f"{config.cell} failed: {record.reason}")
    log.info(
        "%s%s: test %.4f (%d of %d, majority %.4f), %.0f s",
        place,
        config.cell,
        record.test_accuracy,
        record.test_correct,
        record.test_total,
        record.test_majority_rate,
        record.seconds,
    )
    return record


def _train(
    config: Config,
    task: Task,
    device: torch.device,
    values: dict[str, Any],
    folder: Path,
    label: str,
) -> Record:
    started = time.perf_counter()
    # Before the data, which may take long to build, so that a refused option is told at once.
    model = build_model(config)
    dataset = cache.load(config.task.name, task, Path(config.cache_dir), config.raw_data_dir())
    if config.force:
        for name in (CHECKPOINT, BEST, results.NAME):
            (folder / name).unlink(missing_ok=True)
    memory.reset(device)
    model.to(device)
    batches = {name: batches_for(config, task, model, s) for name, s in dataset.splits.items()}
    run = Run(
        model,
        config.train,
        {"train": batches["train"], "validation": batches[config.validation]},
        device,
        folder,
        config.seed,
        identity(values, dataset.fingerprint, custom.sources(config.attention)),
        label,
    )
    log.info(
        "%s: %d parameters, %d steps of %d on %s in %s, %s data %s",
        label,
        num_parameters(model),
        config.train.steps,
        config.train.batch_size,
        device,
        values["train"]["precision"],
        dataset.source.kind,
        dataset.fingerprint[:12],
    )
    setup = time.perf_counter() - started
    torch.manual_seed(derive(config.seed, "dropout"))
    outcome = _fit_and_test(run, batches["test"])
    record = Record(
        **_what(config, values, dataset),
        **_how_fast(run, setup + outcome.pop("test_seconds")),
        **_where(config, device, values["threads"]),
        **outcome,
        test_majority_rate=dataset.splits["test"].majority_rate,
    )
    results.write(folder, record)
    return record


def _fit_and_test(run: Run, test: Batches) -> dict[str, Any]:
    """Train, then test the chosen parameters once; a bad loss or a full GPU ends both."""
    try:
        run.fit()
    except (NotFiniteError, torch.OutOfMemoryError) as error:
        reason = str(error).splitlines()[0]
        return {"status": "failed", "reason": reason, "test_seconds": 0.0}
    started = time.perf_counter()
    correct = count_correct(run.model, test, run.train_config)
    return {
        "status": "ok",
        "test_accuracy": correct / len(test),
        "test_correct": correct,
        "test_total": len(test),
        "test_seconds": time.perf_counter() - started,
    }


def _what(config: Config, values: dict[str, Any], dataset: cache.Dataset) -> dict[str, Any]:
    return {
        "task": config.task.name,
        "attention": config.attention.name,
        "attention_source": custom.sources(config.attention),
        "variant": config.variant,
        "protocol": config.protocol.name,
        "scale": config.scale,
        "seed": config.seed,
        "selected_on": config.validation,
        "deviations": config.protocol.deviations,
        "config": values,
        "config_hash": config_hash(values),
        "data_fingerprint": dataset.fingerprint,
        "data_source": dataset.source.kind,
        "data_description": dataset.source.description,
        "data_skipped_rows": sum(dataset.num_skipped.values()),
    }


def _how_fast(run: Run, other_seconds: float) -> dict[str, Any]:
    progress = run.progress
    validated = progress.best_step > 0
    return {
        "best_accuracy": progress.best_accuracy if validated else None,
        "best_step": progress.best_step if validated else None,
        "steps": progress.step,
        "skipped_updates": run.num_skipped,
        "train_seconds": progress.train_seconds,
        "seconds": progress.seconds + other_seconds,
        "steps_per_second": progress.step / progress.train_seconds,
        "tokens_per_second": progress.tokens / progress.train_seconds,
        "peak_memory_bytes": memory.peak(run.device),
        "parameters": num_parameters(run.model),
    }


def _where(config: Config, device: torch.device, threads: int) -> dict[str, Any]:
    commit, dirty = results.code_version()
    return {
        "machine": machine(device),
        "device": device.type,
        "dtype": resolve_precision(config.train.precision, device.type),
        "compiled": config.train.compile,
        "threads": threads,
        "torch": torch.__version__,
        "commit": commit,
        "dirty": dirty,
    }


def _place_in_sweep() -> str:
    """Return `[3/20] ` for the third of twenty cells, nothing for a single one."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN:
        return ""
    number = hydra_config.job.num + 1
    words = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    parsed = [o for o in OverridesParser.create().parse_overrides(words) if o.is_sweep_override()]
    # A launcher's workers have other command lines, and a glob counts only what it finds.
    if not parsed or any(not override.is_choice_sweep() for override in parsed):
        return f"[{number}] "
    total = math.prod(len(list(override.sweep_iterator())) for override in parsed)
    return f"[{number}/{total}] " if number <= total else f"[{number}] "


register()


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")  # type: ignore[untyped-decorator]  # Hydra has no types
def main(composed: DictConfig) -> None:
    """Train the cell that Hydra composed, in the folder that Hydra made for it."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        with logging_redirect_tqdm():
            run_cell(resolve(composed), folder, _place_in_sweep())
    except (ConfigError, DataError) as error:
        # A traceback would bury the line that helps; in a sweep the other cells go on.
        log.error("%s", error)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        sys.exit(2)
    except StoppedError as error:
        log.warning("%s", error)
        sys.exit(143)


if __name__ == "__main__":
    main()
