"""Train the first updates of a record's cell again, and compare their losses with the stored ones.

    lra verify results/runs/small/nystromformer/listops/softmax/default/seed0
    lra verify task=listops attention=softmax scale=small --updates 50

A run is given by its words, its folder, or its result.json; several words give several runs. The
command needs `result.json`, `trajectory.npz` beside it, and the data; it writes nothing into the
run folder.

The losses of a run's first updates belong to its configuration and its data: another learning rate,
seed or order of examples gives different losses. On the same processor, with the same threads,
torch and code, they must be bitwise equal; elsewhere, they must agree within rounding; see
docs/verify.md. The exit code is 0 if they agree, 1 if they do not, and 2 if they cannot be
compared.
"""

import re
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lra import custom
from lra.build import build_model, build_task
from lra.cell import check_same_data, run_folders
from lra.compose import recorded
from lra.config import Config, ConfigError, config_hash
from lra.division import Division
from lra.isolation import seed_others, settings_restored
from lra.lock import Holder
from lra.machine import code_name, described, machine, resolve_device, resolve_threads
from lra.paths import cache_dir
from lra.processes import ALONE
from lra.record import NOTE, RECORD, Record, contradiction, read_record
from lra.runner import Work, run_of
from lra.signals import Stop
from lra.stamp import version_text
from lra.tasks import DataError, cache
from lra.terminal import command_parser, refused, run
from lra.trajectory import TRAJECTORY, loss_distance, read_trajectory, rounding_tolerance
from lra.variant import NO_PRETRAINING
from lra.words import printable

# Updates after which rounding can have grown to any size, in the least stable training measured.
UNSTABLE = 50


def main() -> None:
    """Verify the runs that the command line names."""
    parser = command_parser("verify", __doc__)
    parser.add_argument("words", nargs="+", help="key=value, as for lra train, or run folders")
    parser.add_argument("--updates", type=int, default=200, help="updates to repeat (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: the run's")
    parser.add_argument(
        "--rounding", action="store_true", help="accept rounding differences even here"
    )
    parser.add_argument("--data-dir", help="folder of raw data; overrides LRA_DATA_DIR")
    parser.add_argument("--cache-dir", default=cache_dir(), help="folder of built data sets")
    args = parser.parse_intermixed_args()
    for name, least in (("updates", 1), ("threads", 0)):
        if (value := getattr(args, name)) < least:
            parser.error(f"--{name} {value}: must be at least {least}")
    with refused(ValueError):
        folders = list(run_folders(args.words))
    codes = [0]
    for folder in folders:
        try:
            verdict = verify(folder, args.updates, args.threads, args.data_dir, args.cache_dir)
            print(verdict)
            codes.append(not (verdict.agrees or (args.rounding and verdict.beyond is None)))
        except (ValueError, DataError) as error:
            named = str(folder) in str(error)
            print(error if named else f"{folder}: {error}", file=sys.stderr)
            codes.append(2)
    sys.exit(max(codes))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a run's first losses, computed again, compare with the stored ones.

    Args:
        cell: Name of the cell.
        steps: Updates of the whole run.
        stored: Losses that the run kept, `(updates,)`; NaN before the first one that it kept.
        losses: Losses computed here, `(updates,)`; NaN after one that was not finite.
        dtype: Precision.
        differences: What differs from when the run was made, in words.
    """

    cell: str
    steps: int
    stored: NDArray[np.float32]
    losses: NDArray[np.float32]
    dtype: str
    differences: list[str]

    @property
    def to_the_bit(self) -> bool:
        """Whether all losses are equal."""
        return not loss_distance(self.stored, self.losses).any()

    @property
    def beyond(self) -> int | None:
        """First update, from 1, that is further apart than rounding allows, or None."""
        far = loss_distance(self.stored, self.losses) > rounding_tolerance(
            len(self.stored), self.dtype
        )
        return int(far.argmax()) + 1 if far.any() else None

    @property
    def agrees(self) -> bool:
        """Whether the record may belong to its configuration, code and data."""
        return self.to_the_bit or (self.beyond is None and bool(self.differences))

    def __str__(self) -> str:
        """Return the verdict in words: one line, and what else there is to know."""
        updates, there = len(self.stored), "; ".join(self.differences)
        what = f"{self.cell}: the losses of the first {updates:,} of {self.steps:,} updates"
        if unknown := int(np.isfinite(self.stored).argmax()):
            what += f", without {unknown:,} that an earlier version did not keep,"
        if self.to_the_bit:
            return f"{what} are bitwise equal"
        distance, most = (
            loss_distance(self.stored, self.losses),
            rounding_tolerance(updates, self.dtype),
        )
        if self.beyond is None:
            at = int((distance / most).argmax())
            line = (
                f"{what} are within rounding: at update {at + 1}, they are {distance[at]:.1e}"
                f" apart, and {most[at]:.1e} is allowed"
            )
            if there:
                return f"{line}\n  not bitwise equal: {there}"
            return (
                f"{line}\n  NOT BITWISE EQUAL, though processor, threads, torch and code have the"
                " same names as then; if this is another processor of the same name, --rounding"
                " accepts it"
            )
        at = self.beyond - 1
        line = (
            f"{self.cell}: DIFFERS at update {at + 1} of {updates:,}: loss {self.stored[at]:.6f}"
            f" there, {self.losses[at]:.6f} here, {distance[at]:.1e} apart, and {most[at]:.1e} is"
            " allowed\n  the record does not belong to its configuration, code and data"
        )
        if there and at >= UNSTABLE:
            line += f", or training is so unstable that rounding alone grew to that in {at} updates"
        return f"{line}\n  different here: {there}" if there else line


def verify(
    folder: Path, updates: int, threads: int, data_dir: str | None, cache_dir: str
) -> Verdict:
    """Repeat a run's first updates, and compare their losses with the stored ones.

    Args:
        folder: Folder with `result.json` and `trajectory.npz`.
        updates: How many updates to repeat, at most those of the run.
        threads: CPU threads; 0 takes those of the run.
        data_dir: Folder of raw data; None takes LRA_DATA_DIR.
        cache_dir: Folder of built data sets.

    Raises:
        ConfigError: The record cannot be verified here; the message says why.
        RecordError: There is no record, or a damaged one.
        TrajectoryError: It has no trajectory, or that of another run.
        DataError: The data are missing or damaged.
    """
    if not (folder / RECORD).exists():
        raise ConfigError(f"{folder}: there is no {RECORD}; only a run that has ended has one")
    record = read_record(folder / RECORD)
    if not record.steps:
        raise ConfigError(f"{folder}: this run failed before its first update ({record.reason})")
    config = _config(folder, record)
    # Updates that were divided otherwise have other dropout, so only those before are compared.
    updates = min(updates, record.first_micro_batch_updates or record.steps)
    stored = read_trajectory(folder, record.steps, record.loss_fingerprint)[:updates]
    if not np.isfinite(stored).any():
        raise ConfigError(
            f"{folder / TRAJECTORY}: no loss of the first {len(stored)} updates is known; an"
            " earlier version made them, or all are infinite or NaN"
        )
    threads = resolve_threads(threads or record.threads)
    config = replace(config, data_dir=data_dir, cache_dir=cache_dir, threads=threads)
    losses = np.full_like(stored, np.nan)
    replayed = _replayed_losses(config, record, len(stored))
    losses[: len(replayed)] = replayed
    return Verdict(
        cell=config.cell,
        steps=record.steps,
        stored=stored,
        losses=losses,
        dtype=record.dtype,
        differences=_differences(record, threads),
    )


def _differences(record: Record, threads: int) -> list[str]:
    """Return, in words, what differs here from when the run was made and can change rounding."""
    # The code that began the run, if other code continued it.
    code = record.earlier_code.split(", ")[0] or version_text(record.commit, record.dirty)
    device = resolve_device(record.device)
    pairs = {
        "processor": (record.machine, machine(device)),
        "threads": (str(record.threads), str(threads)),
        "torch": (record.torch, torch.__version__),
        "code": (_short(code), _short(code_name())),
    }
    if record.earlier_machines:
        del pairs["processor"], pairs["torch"]
        pairs["processor and torch"] = (record.earlier_machines.split("; ")[0], described(device))
    differences = [
        printable(f"{key} {there} there, {here} here")
        for key, (there, here) in pairs.items()
        if there != here
    ]
    if "local changes" in code and code == code_name():
        differences.append(f"code {_short(code)} there, which may differ from the changes here")
    if record.device != "cpu":
        differences.append(f"a {record.device} device sums in an order of its own")
    return differences


def _short(code: str) -> str:
    """Return a version of the code with ten digits of its commit."""
    return re.sub(r"\b([0-9a-f]{10})[0-9a-f]{30}\b", r"\1", code)


def _config(folder: Path, record: Record) -> Config:
    """Return the configuration of a record, which can be trained again here.

    Raises:
        ConfigError: It was changed after the run, contradicts the record, is from another version,
            or cannot be trained here.
    """
    if config_hash(record.config) != record.config_hash:
        raise ConfigError(
            f"{folder / RECORD}: its configuration was changed: it has the hash"
            f" {config_hash(record.config)}, but the record says {record.config_hash}"
        )
    # Tables and the tolerance go by the record's own keys; the configuration is trained again.
    if wrong := contradiction(record):
        raise ConfigError(f"{folder / RECORD}: {wrong}")
    if record.processes > 1:
        raise ConfigError(
            f"{folder}: {record.processes} processes trained this cell, each with dropout of its"
            " own; only a run of one process can be verified"
        )
    if record.pretrain != NO_PRETRAINING:
        raise ConfigError(
            f"{folder}: its first updates depend on {record.pretrain_steps:,} updates of"
            " pretraining; only a cell without pretraining can be verified"
        )
    try:
        config = recorded(record.config)
    except ConfigError as error:
        raise ConfigError(
            f"{folder / RECORD}: from another version of the suite: {error}"
        ) from error
    if custom.sources(config.attention) != record.attention_source:
        raise ConfigError(f"{folder}: {config.attention.name} has changed since this run")
    if record.device == "cuda" and config.model.drops:
        # The number of its multiprocessors decides which random number an element gets.
        first = record.earlier_machines.split("; ")[0].rpartition(", torch ")[0] or record.machine
        if first != (here := machine(resolve_device("cuda"))):
            raise ConfigError(
                f"{folder}: it has dropout, and what a GPU drops depends on its model; the run was"
                f" made on {first}, and this is {here}"
            )
    return config


def _replayed_losses(config: Config, record: Record, updates: int) -> NDArray[np.float32]:
    """Return the losses of a cell's first updates, trained here; fewer if one is not finite.

    Raises:
        ConfigError: The data are different, or there is no device of the run's kind, or none with
            enough memory.
        DataError: The data are missing or damaged.
    """
    task, device = build_task(config), resolve_device(config.device)
    with tempfile.TemporaryDirectory(prefix="lra-verify-") as temporary, settings_restored():
        folder = Path(temporary)
        torch.set_num_threads(config.threads)
        seed_others(config.seed)
        model = build_model(config)
        data = cache.load(config.task.name, task, Path(config.cache_dir), config.raw_data_dir())
        check_same_data(data.fingerprint, record.data_fingerprint)
        work = Work(Holder(folder / NOTE, "runs_dir"), Stop(), config.cell, ALONE)
        again = run_of(config, task, model, data, device, record.config, folder, work)
        # A batch that is divided differently would have different dropout.
        division = Division.parse(record.first_micro_batch or record.micro_batch)
        again.division = division
        losses = again.first_losses(updates)
    if config.model.drops and again.division != division:
        raise ConfigError(
            f"{config.cell}: the run computed {division} at once, which does not fit into memory"
            " here; in smaller parts, dropout would not be the same"
        )
    return losses


if __name__ == "__main__":
    run(main)
