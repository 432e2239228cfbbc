"""Train a cell and write its record."""

import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lra import checkpoint, custom, memory, requeue
from lra.batches import Batches
from lra.build import (
    BackendError,
    Model,
    batches_for,
    build_attention,
    build_model,
    build_task,
    num_parameters,
)
from lra.cell import finished, identity, resolved_values
from lra.classification import Classification
from lra.compose import describe_departures
from lra.config import Config, ConfigError, config_hash, resolve_precision
from lra.division import is_out_of_memory, needs_whole_batch
from lra.evaluation import predict
from lra.events import BEST_ACCURACY, TEST_ACCURACY, Events
from lra.folders import writing
from lra.isolation import seed_others, settings_restored
from lra.lock import Holder, held, read_note
from lra.loop import Run
from lra.machine import code_name, code_version, machine, resolve_device
from lra.optimiser import describe_groups
from lra.paths import PRETRAINING
from lra.precision import NotFiniteError
from lra.predictions import PREDICTIONS, Predictions, by_length, by_value, write_predictions
from lra.processes import Processes, joined, own_device
from lra.record import LOCK, NOTE, RECORD, Record, Status, read_record, set_aside, write_record
from lra.restoration import Restoration, optimisation, restoration
from lra.seeds import derive
from lra.signals import Stop, listening
from lra.tasks import Groups, Split, Task, cache, groups_of
from lra.trajectory import TRAJECTORY, fingerprint, write_trajectory
from lra.variant import NO_PRETRAINING

log = logging.getLogger(__name__)


class CellFailedError(RuntimeError):
    """A cell ended without a result; its record says why."""


def finished_message(config: Config, folder: Path) -> str:
    """Return a line that says a cell is finished, or an empty string if it is not; write nothing.

    Raises:
        ConfigError: There is no such task or device, or the folder holds another configuration.
    """
    device = resolve_device(own_device(config.device))
    if config.force or not finished(
        folder, resolved_values(config, build_task(config), device, folder)
    ):
        return ""
    return f"{config.cell} is finished{_hint_of_change(config, folder)}"


def _hint_of_change(config: Config, folder: Path) -> str:
    there = read_record(folder / RECORD).attention_source
    hint = ", but its attention has changed since; force=true trains it again"
    return hint if there != custom.sources(config.attention) else ""


def run_cell(config: Config, folder: Path, place: str = "") -> Record | None:
    """Train a cell and write its record into `folder`.

    Args:
        config: The cell.
        folder: Its run folder, which exists.
        place: The cell's place in a sweep, such as `[3/20] `, for the progress bar and the log.

    Returns:
        The record; None if the cell was already finished.

    Raises:
        ConfigError: Something in the configuration is wrong, and nothing was built; or the backend
            returns something that a block cannot take.
        DataError: The task's data are missing or damaged.
        CellFailedError: Training failed; the record says so.
        StoppedError: The run was asked to stop; its checkpoint is written.
    """
    code_version()
    task = build_task(config)
    build_attention(config.attention)
    device = resolve_device(own_device(config.device))
    values = resolved_values(config, task, device, folder)
    note = read_note(folder / NOTE)
    if config.force and note is not None and requeue.was_requeued(note.forced, config_hash(values)):
        log.info("%s%s was started over by this job, which now continues it", place, config.cell)
        config = replace(config, force=False)
    if not config.force and finished(folder, values):
        hint = _hint_of_change(config, folder)
        # From Python, only warnings are shown.
        level = logging.WARNING if hint else logging.INFO
        log.log(level, "%s%s is finished%s", place, config.cell, hint)
        return None
    record = _train_alone(config, task, device, values, folder, place + config.cell)
    if record.status == "failed":
        # Logged here too, as a sweep reports its errors only at its end.
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


def train(config: Config) -> Record:
    """Train a cell in its own folder, unless it is finished; return its record.

    Raises:
        ConfigError: Something in the configuration is wrong.
        DataError: The task's data are missing or damaged.
        CellFailedError: Training failed; the record says so.
        StoppedError: The run was asked to stop; its checkpoint is written.
    """
    config.folder.mkdir(parents=True, exist_ok=True)
    return run_cell(config, config.folder) or read_record(config.folder / RECORD)


@dataclass(frozen=True)
class Work:
    """What a cell in training shares with whoever watches it.

    Args:
        holder: Notes in the run folder how far it is.
        stop: Says when it is asked to stop.
        label: Its name, for the progress bar and the log.
        processes: The processes that train it together.
    """

    holder: Holder
    stop: Stop
    label: str
    processes: Processes


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How training and test ended.

    Args:
        status: `ok`, or `failed`.
        reason: Why it failed.
        test: Answers to the test set; None if nothing was tested.
        by_length: Right answers by length, as in `Record.test_by_length`.
        by_group: The same by group, as in `Record.test_by_group`.
        group: What examples are grouped by.
        seconds: Seconds that the test took.
    """

    status: Status
    reason: str = ""
    test: Predictions | None = None
    by_length: list[dict[str, int]] = field(default_factory=list)
    by_group: list[dict[str, int]] = field(default_factory=list)
    group: str = ""
    seconds: float = 0.0


def _train_alone(
    config: Config,
    task: Task,
    device: torch.device,
    values: dict[str, Any],
    folder: Path,
    label: str,
) -> Record:
    """Train with the run folder locked, signals handled, and settings restored afterwards."""
    with (
        joined(device, config.train.batch_size) as processes,
        _lock(folder, processes) as holder,
        listening() as stop,
        settings_restored(),
    ):
        torch.set_num_threads(values["threads"])
        seed_others(config.seed)
        try:
            work = Work(holder, stop, label, processes)
            record = _train(config, task, device, values, folder, work)
        except BackendError as error:
            raise ConfigError(f"attention {config.attention.name}: {error}") from error
        holder.ended = f"{record.status}: {record.reason}" if record.reason else record.status
    return record


@contextmanager
def _lock(folder: Path, processes: Processes) -> Iterator[Holder]:
    """Lock a run folder for the processes of a cell, and make it ready for them."""
    if not processes.writes:
        yield Holder(folder / NOTE, "runs_dir")
        return
    # Two processes in one folder would overwrite each other's checkpoints.
    with held(folder / LOCK, folder / NOTE, "runs_dir", "trains this cell") as holder:
        set_aside(folder)
        yield holder


def _check_num_classes(config: Config, splits: Mapping[str, Split]) -> None:
    """Reject a number of classes that is too small for the labels of the data."""
    least = 1 + max(int(split.labels.max()) for split in splits.values())
    if (given := config.task.num_classes) < least:
        raise ConfigError(
            f"task.num_classes={given}: the labels of {config.task.name} are 0 to {least - 1}, so"
            f" it must be at least {least}"
        )


def _train(
    config: Config,
    task: Task,
    device: torch.device,
    values: dict[str, Any],
    folder: Path,
    work: Work,
) -> Record:
    started = time.perf_counter()
    # Before the data, which may take long to build, so that a refused option is reported at once.
    model = build_model(config)
    dataset = cache.load(config.task.name, task, Path(config.cache_dir), config.raw_data_dir())
    if config.task.path is not None:
        custom.check_data(task, dataset.splits)
    _check_num_classes(config, dataset.splits)
    if work.processes.size > 1 and needs_whole_batch(model):
        raise ConfigError(
            "torchrun: this model computes statistics over the batch, which must be in one process"
        )
    _remove_earlier(folder, work, config_hash(values) if config.force else "")
    memory.reset(device)
    run = run_of(config, task, model, dataset, device, values, folder, work)
    validation = batches_for(config, task, model, dataset.splits["validation"])
    before = _pretraining(config, model, run, validation)
    runs = [each for each in (before, run) if each is not None]
    work.holder.progress = lambda: (
        sum(each.progress.step for each in runs),
        sum(each.train_config.steps for each in runs),
    )
    log.info(
        "%s: %s parameters, %d updates of %d examples (at once: %s) on %s in %s, %s data %s",
        work.label,
        f"{num_parameters(model):,}",
        config.train.steps,
        config.train.batch_size,
        run.division,
        device,
        values["train"]["precision"],
        dataset.source.kind,
        dataset.fingerprint[:12],
    )
    log.info("%s: parameters by learning rate: %s", work.label, describe_groups(run.optimiser))
    setup = time.perf_counter() - started
    groups = groups_of(task, dataset.splits["test"])
    test = batches_for(config, task, model, dataset.splits["test"])
    outcome = _fit_and_test(run, before, test, groups)
    if outcome.status == "ok" and cache.changed(dataset):
        reason = f"the data in {dataset.folder} were overwritten while this run read them"
        outcome = Outcome(status="failed", reason=reason, seconds=outcome.seconds)
    record = _record(config, values, dataset, run, before, outcome, setup)
    if work.processes.writes:
        _write(folder, record, outcome, run)
    work.processes.wait()
    return record


def _remove_earlier(folder: Path, work: Work, forced: str) -> None:
    """Remove what an earlier run left.

    Args:
        folder: Run folder.
        work: What the cell shares with whoever watches it.
        forced: Hash of a cell that starts over, whose checkpoints are removed too; else empty.
    """
    with writing("runs_dir", folder, "removing what an earlier run left"):
        if forced and work.processes.writes:
            # The record first: without its checkpoints, it would count as a finished cell.
            (folder / RECORD).unlink(missing_ok=True)
            checkpoint.remove(folder)
            # Only now is nothing of the old run left that could be mistaken for the new one.
            work.holder.forced = requeue.jobs(forced)
        # They belong to an earlier end of this cell, not to the one that the record will describe.
        for name in (PREDICTIONS, TRAJECTORY, RECORD):
            (folder / name).unlink(missing_ok=True)


def run_of(
    config: Config,
    task: Task,
    model: Model,
    dataset: cache.Dataset,
    device: torch.device,
    values: dict[str, Any],
    folder: Path,
    work: Work,
) -> Run:
    """Return a run ready for its first update: the model is on its device, and dropout is seeded.

    Args:
        config: The cell.
        task: Its task.
        model: Its network, as initialised from the seed.
        dataset: Its data.
        device: Where it is trained.
        values: The configuration, as `resolved_values` returns it.
        folder: Run folder.
        work: What it shares with whoever watches it.
    """
    model.to(device)
    run = Run(
        model,
        config.train,
        Classification(
            batches_for(config, task, model, dataset.splits["train"]),
            batches_for(config, task, model, dataset.splits[config.validation]),
        ),
        device,
        folder,
        seed=config.seed,
        identity=identity(
            values, dataset.fingerprint, custom.sources(config.attention), code_name()
        ),
        label=work.label,
        stop=work.stop,
        processes=work.processes,
        to_continue=f"start again{' without force=true' if config.force else ''} to continue",
        about=_about(config),
    )
    torch.manual_seed(derive(config.seed, "dropout"))
    return run


def _about(config: Config) -> dict[str, str]:
    """Return the values by which TensorBoard compares cells: as many as it shows by default."""
    # The scale comes first, because long values are cut off at the end.
    scale = "" if config.scale == "paper" else f"{config.scale} "
    return {
        "task": config.task.name,
        "attention": config.attention.name,
        "variant": config.variant,
        "protocol": scale + config.protocol.name,
        "seed": str(config.seed),
    }


def _write(folder: Path, record: Record, outcome: Outcome, run: Run) -> None:
    # Both are written before the record, which marks a cell as finished.
    if outcome.test is not None:
        write_predictions(folder, outcome.test)
    if len(run.losses):
        write_trajectory(folder, run.losses, run.progress.validations)
    if record.test_accuracy is not None and run.has_curves:
        with Events(folder, record.steps + 1) as events:
            events.add(BEST_ACCURACY, record.best_accuracy or 0.0, record.steps)
            events.add(TEST_ACCURACY, record.test_accuracy, record.steps)
    write_record(folder, record)
    if record.status == "ok":
        # The previous checkpoint is no longer of use, and is as large as the last one.
        with writing("runs_dir", folder, f"removing {checkpoint.PREVIOUS}"):
            for place in (folder, folder / PRETRAINING):
                (place / checkpoint.PREVIOUS).unlink(missing_ok=True)


def _pretraining(config: Config, model: Model, run: Run, validation: Batches) -> Run | None:
    """Return the run that pretrains the encoder of a model, or None if there is no pretraining.

    Args:
        config: The cell.
        model: Its network.
        run: The run that trains it afterwards.
        validation: Batches of the split on which the pretrained parameters are chosen.
    """
    if config.pretrain.name == NO_PRETRAINING:
        return None
    assert isinstance(run.objective, Classification)
    restorer, objective = restoration(config, model, run.objective.train, validation)
    folder, label = run.folder / PRETRAINING, f"{run.label}, pretraining"
    with writing("runs_dir", run.folder, f"making {PRETRAINING}"):
        folder.mkdir(exist_ok=True)
    log.info(
        "%s: %d updates of %d examples, predicting %s tokens by %s",
        label,
        config.pretrain.steps,
        config.pretrain.batch_size,
        objective.asks,
        config.pretrain.loss,
    )
    return Run(
        restorer,
        optimisation(config.pretrain, config.train),
        objective,
        run.device,
        folder,
        seed=derive(config.seed, "pretraining"),
        identity=run.identity,
        label=label,
        stop=run.stop,
        processes=run.processes,
        to_continue=run.to_continue,
    )


def _fit(run: Run, before: Run | None) -> None:
    """Train, after pretraining the same encoder if that is asked for."""
    if before is not None:
        torch.manual_seed(derive(before.seed, "dropout"))
        try:
            before.fit()
        except NotFiniteError as error:
            raise NotFiniteError(f"pretraining: {error}") from error
        # As `run_of` left the generator, from which pretraining has drawn.
        torch.manual_seed(derive(run.seed, "dropout"))
    run.fit()


def _fit_and_test(run: Run, before: Run | None, test: Batches, groups: Groups | None) -> Outcome:
    """Train, then test the chosen parameters once; an error that the model raises ends both.

    Args:
        run: The run to train.
        before: The run that pretrains it, if there is one.
        test: The test set.
        groups: What its examples are grouped by.
    """
    try:
        _fit(run, before)
        started = time.perf_counter()
        predictions = predict(run.model, test, run.train_config, run.processes)
    except (ConfigError, BackendError, OSError):
        # Nothing that need happen again in this cell: a folder, a disk, another cell's checkpoint.
        raise
    except (Exception, SystemExit) as error:
        if run.processes.size > 1 and not isinstance(error, NotFiniteError):
            # The other processes wait for this one; torchrun ends them when this one ends.
            raise
        reason = " ".join(str(error).splitlines()[:1])
        if not (isinstance(error, NotFiniteError) or is_out_of_memory(error)):
            # An error in a user's own code, or a defect of ours: it ends this cell, not the others.
            log.exception("%s", run.label)
            reason = f"{type(error).__name__}: {reason}"
        return Outcome(status="failed", reason=reason)
    right = predictions.right
    outcome = Outcome(
        status="ok",
        test=predictions,
        by_length=by_length(test.lengths, right),
        seconds=time.perf_counter() - started,
    )
    if groups is None:
        return outcome
    return replace(
        outcome,
        test=replace(predictions, groups=groups.values),
        by_group=by_value(groups.values, right),
        group=groups.name,
    )


def _record(
    config: Config,
    values: dict[str, Any],
    dataset: cache.Dataset,
    run: Run,
    before: Run | None,
    outcome: Outcome,
    setup_seconds: float,
) -> Record:
    runs = [run] if before is None else [before, run]
    progress, test = run.progress, dataset.splits["test"]
    correct = None if outcome.test is None else outcome.test.num_correct
    validated = progress.best_step > 0
    low, high = run.speed.quartiles or (0.0, 0.0)
    commit, dirty = code_version()
    return Record(
        task=config.task.name,
        attention=config.attention.name,
        attention_source=custom.sources(config.attention),
        variant=config.variant,
        protocol=config.protocol.name,
        scale=config.scale,
        seed=config.seed,
        status=outcome.status,
        reason=outcome.reason,
        **_pretraining_fields(config, before),
        test_accuracy=None if correct is None else correct / len(test),
        test_correct=correct,
        test_total=None if correct is None else len(test),
        test_majority_rate=test.majority_rate,
        test_by_length=outcome.by_length,
        test_by_group=outcome.by_group,
        group=outcome.group,
        selected_on=config.validation,
        best_accuracy=progress.best_accuracy if validated else None,
        best_step=progress.best_step if validated else None,
        steps=progress.step,
        loss_fingerprint=fingerprint(run.losses),
        skipped_updates=run.num_skipped,
        train_seconds=progress.train_seconds,
        seconds=sum(each.progress.seconds for each in runs) + setup_seconds + outcome.seconds,
        steps_per_second=run.steps_per_second,
        steps_per_second_low=low,
        steps_per_second_high=high,
        speed_windows=len(run.speed.windows),
        tokens_per_second=run.tokens_per_second,
        first_call_seconds=run.speed.first_seconds,
        micro_batch=str(run.division),
        first_micro_batch=str(run.first_division) if run.first_divided else "",
        first_micro_batch_updates=run.first_divided,
        micro_batches=progress.micro_batches / max(1, progress.step),
        compiled_shapes=progress.compiled_shapes,
        peak_memory_bytes=max(each.peak_memory for each in runs),
        parameters=num_parameters(run.model),
        data_fingerprint=dataset.fingerprint,
        data_source=dataset.source.kind,
        data_description=dataset.source.description,
        data_skipped_rows=sum(dataset.num_skipped.values()),
        deviations=config.protocol.deviations,
        config=values,
        config_hash=config_hash(values),
        machine=machine(run.device),
        device=run.device.type,
        dtype=resolve_precision(config.train.precision, run.device.type),
        compiled=config.train.compile,
        threads=values["threads"],
        processes=run.processes.size,
        torch=torch.__version__,
        commit=commit,
        dirty=dirty,
        earlier_code=", ".join(_in_order(each.earlier_code for each in runs)),
        earlier_machines="; ".join(_in_order(each.earlier_machines for each in runs)),
        departures=describe_departures(config),
    )


def _in_order(lists: Iterable[list[str]]) -> list[str]:
    """Return the names in lists one after another, without immediate repetitions."""
    return [name for name, _ in itertools.groupby(itertools.chain.from_iterable(lists))]


def _pretraining_fields(config: Config, before: Run | None) -> dict[str, Any]:
    """Return what a record says about pretraining."""
    if before is None:
        return {}
    progress = before.progress
    assert isinstance(before.objective, Restoration)
    return {
        "pretrain": config.pretrain.name,
        "pretrain_objective": before.objective.asks,
        "pretrain_steps": progress.step,
        "pretrain_seconds": progress.seconds,
        "pretrain_loss": progress.best_accuracy if progress.best_step else None,
    }
