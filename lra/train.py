"""Train one cell, or a sweep of them, and leave a record each.

    python -m lra.train task=listops attention=fourier seed=1
    python -m lra.train -m task=listops,image attention=softmax,fourier seed=0,1

A finished cell is skipped, an unfinished one continues; `force=true` trains it again.
"""

import inspect
import logging
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig
from torch import nn
from tqdm.contrib.logging import logging_redirect_tqdm

from lra import memory, results
from lra.batches import Batches
from lra.config import (
    AttentionConfig,
    Config,
    ConfigError,
    bind,
    comparable,
    config_hash,
    register,
    resolve,
)
from lra.loop import BEST, CHECKPOINT, NotFiniteError, Run, StoppedError, count_correct
from lra.results import Record
from lra.seeds import derive
from lra.tasks import Split, Task, cache
from lra.tasks.registry import STAND_INS, TASKS
from models import ATTENTION
from models.encoder import Attention, Classifier, PairClassifier

log = logging.getLogger(__name__)


class CellFailedError(RuntimeError):
    """A cell ended without a result; its record says why."""


def build_task(config: Config) -> Task:
    """Return the task with its options checked.

    Raises:
        ConfigError: There is no such task or option, or a value is out of range.
    """
    tasks = STAND_INS if config.task.stand_in else TASKS
    name = config.task.name
    if name not in tasks:
        kind = "stand-in for" if config.task.stand_in else "task"
        raise ConfigError(f"task.name={name}: no such {kind}; known are {', '.join(tasks)}")
    options = bind(tasks[name], config.task.options, "task.options")
    try:
        return tasks[name](**options)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def build_attention(config: AttentionConfig, where: str = "attention") -> Attention:
    """Return what builds a backend from its shape, options checked.

    Raises:
        ConfigError: There is no such backend or option.
    """
    if config.name not in ATTENTION:
        raise ConfigError(
            f"{where}.name={config.name}: no such backend; known are {', '.join(ATTENTION)}"
        )
    backend = ATTENTION[config.name]
    options = bind(backend, config.options, f"{where}.options")
    nests = "inner" in inspect.signature(backend).parameters
    if nests != (config.inner is not None):
        state = "needs a backend, such as softmax" if nests else "takes no backend inside"
        raise ConfigError(f"{where}.inner: {config.name} {state}")
    if config.inner is not None:
        options["inner"] = build_attention(config.inner, f"{where}.inner")
    return partial(backend, **options)


def build_model(config: Config) -> Classifier | PairClassifier:
    """Return the classifier of a cell, its parameters drawn from the seed.

    Raises:
        ConfigError: The backend refuses its options.
    """
    attention = build_attention(config.attention)
    torch.manual_seed(derive(config.seed, "parameters"))
    classifier = PairClassifier if config.task.sequences == 2 else Classifier
    try:
        return classifier(config.model, attention, config.task.num_classes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def resolve_device(name: str) -> torch.device:
    """Return the device: `auto` is a GPU where there is one.

    Raises:
        ConfigError: A GPU is asked for and there is none of that index.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name}: torch sees {torch.cuda.device_count()} GPUs")
    return device


def batches_for(
    config: Config, task: Task, model: Classifier | PairClassifier, split: Split
) -> Batches:
    """Return the batches of a split as a cell reads them."""
    return Batches(
        split,
        padded_length=config.model.max_length,
        truncate=config.task.truncate,
        id_shift=task.id_shift,
        trim=model.encoder.pad_invariant,
        device=next(model.parameters()).device,
    )


def finished(folder: Path, values: dict[str, Any]) -> bool:
    """Tell whether a folder holds the finished record of a configuration.

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
    if record.config_hash != config_hash(values):
        other, this = _flat(record.config), _flat(values)
        lines = [
            f"  {key}: {other.get(key)} there, {this.get(key)} here"
            for key in sorted(other | this)
            if other.get(key) != this.get(key)
        ]
        raise ConfigError(
            f"{folder} holds the record of another configuration:\n"
            + "\n".join(lines)
            + "\nGive this one a name by variant=..., or replace that one by force=true"
        )
    return record.status == "ok"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


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
    started = time.perf_counter()
    task = build_task(config)
    build_attention(config.attention)
    device = resolve_device(config.device)
    threads = config.threads or torch.get_num_threads()
    values = comparable(config, device=device.type, threads=threads)
    if not config.force and finished(folder, values):
        log.info("%s%s is finished", place, config.cell)
        return None
    if config.force:
        for name in (CHECKPOINT, BEST, results.NAME):
            (folder / name).unlink(missing_ok=True)
    torch.set_num_threads(threads)
    dataset = cache.load(config.task.name, task, Path(config.cache_dir), config.raw_data_dir())
    memory.reset(device)
    model = build_model(config).to(device)
    batches = {name: batches_for(config, task, model, s) for name, s in dataset.splits.items()}
    run = Run(
        model,
        config.train,
        {"train": batches["train"], "validation": batches[config.validation]},
        device,
        folder,
        config.seed,
        config_hash(values),
        place + config.cell,
    )
    log.info(
        "%s: %d parameters, %d steps of %d on %s, %s data %s",
        run.label,
        num_parameters(model),
        config.train.steps,
        config.train.batch_size,
        device,
        dataset.source.kind,
        dataset.fingerprint[:12],
    )
    setup = time.perf_counter() - started
    torch.manual_seed(derive(config.seed, "dropout"))
    outcome = _train_and_test(run, batches["test"])
    record = Record(
        **_what(config, values, dataset),
        **_how_fast(run, setup + outcome.pop("test_seconds")),
        **_where(config, device, threads),
        **outcome,
        test_majority_rate=dataset.splits["test"].majority_rate,
    )
    results.write(folder, record)
    if record.status == "failed":
        # Said here too, as a sweep tells its errors only at its end.
        log.error("%s failed: %s", run.label, record.reason)
        raise CellFailedError(f"{config.cell} failed: {record.reason}")
    log.info(
        "%s: test %.4f (%d of %d, majority %.4f), %.0f s",
        run.label,
        record.test_accuracy,
        record.test_correct,
        record.test_total,
        record.test_majority_rate,
        record.seconds,
    )
    return record


def num_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _train_and_test(run: Run, test: Batches) -> dict[str, Any]:
    """Train, then test the chosen parameters once; a loss that is not finite ends both."""
    try:
        run.fit()
    except NotFiniteError as error:
        return {"status": "failed", "reason": str(error), "test_seconds": 0.0}
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
        "train_seconds": progress.train_seconds,
        "seconds": progress.seconds + other_seconds,
        "steps_per_second": progress.step / progress.train_seconds,
        "tokens_per_second": progress.tokens / progress.train_seconds,
        "peak_memory_bytes": memory.peak(run.device),
        "parameters": num_parameters(run.model),
    }


def _where(config: Config, device: torch.device, threads: int) -> dict[str, Any]:
    commit, dirty = results.code_version()
    cuda = device.type == "cuda"
    return {
        "machine": torch.cuda.get_device_name(device) if cuda else results.processor(),
        "device": device.type,
        "dtype": config.train.precision,
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
    words = [word for word in sys.argv[1:] if "=" in word]
    parsed = [o for o in OverridesParser.create().parse_overrides(words) if o.is_sweep_override()]
    # A launcher's workers have other command lines, and a glob counts only what it finds.
    if any(not override.is_choice_sweep() for override in parsed):
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
    except ConfigError as error:
        # A traceback would bury the one line that helps.
        log.error("%s", error)
        sys.exit(2)
    except StoppedError as error:
        log.warning("%s", error)
        sys.exit(143)


if __name__ == "__main__":
    main()
