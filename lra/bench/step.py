"""Measure where the time of an update goes, and what it could be at best, by task and backend.

    lra bench step task=listops,text attention=softmax,linear
    lra bench step task=text attention=softmax model.attention_dropout=0.0 --against old

The updates are real ones, with the cell's own model, batch and micro-batches. The table gives the
shares of getting the batch, forward, backward (with the loss), the optimiser, and logging
(schedule, bar, running loss, and curves at their cadence), and the ratio to the floor (see
`lra.bench.floor`). With `--against old`, updates alternate with their former form: the whole batch
at once, torch's dropout, and softmax with attention dropout by materialised weights. With
`--against one-thread`, they alternate with updates on one thread. Data are read from the cache if
they are there; otherwise ListOps is generated, and the other tasks get sequences of full length.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lra.batches import Batch
from lra.bench.floor import Products, large_products
from lra.bench.old import whole_batch, without_kernels
from lra.build import batches_for, build_model, build_task
from lra.compose import command, groups, load
from lra.config import Config, ConfigError
from lra.division import division_for
from lra.events import Events
from lra.flops import counter, training_flops
from lra.loop import LOG_EVERY
from lra.machine import (
    interleaved,
    machine,
    resolve_device,
    resolve_threads,
    seconds_of,
    synchronise,
)
from lra.markdown import markdown
from lra.optimiser import optimiser_for
from lra.plan.cost import full_length
from lra.precision import scaler_for
from lra.tasks import DataError, Split, cache
from lra.tasks.listops import ListOps
from lra.terminal import command_parser, refused
from lra.update import accumulate, apply, sharing
from lra.words import expand, with_defaults

PARTS = ("batch", "forward", "backward", "optimiser", "logging")
# Parts that an update should consist of, and the largest acceptable share of everything else.
WORK, MAX_OVERHEAD = ("forward", "backward", "optimiser"), 0.03
NUM_EXAMPLES = 1_000
_DEFAULTS = ("task=listops", "attention=softmax,linear,fourier,mra", "threads=1")


@dataclass
class Stopwatch:
    """Measure seconds by part, synchronising the device between parts."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start a part."""
        synchronise(self.device)
        self._at = time.perf_counter()

    def stop(self, part: str) -> None:
        """End a part, and start the next."""
        synchronise(self.device)
        now = time.perf_counter()
        self.seconds[part] += now - self._at
        self._at = now


def training_split(config: Config) -> tuple[Split, str]:
    """Return the training data of a cell, or their substitute, with the kind of data."""
    task = build_task(config)
    try:
        source = task.locate(config.raw_data_dir())
        found = cache.built(config.task.name, task, Path(config.cache_dir), source)
        if found is not None:
            return found.splits["train"], found.source.kind
    except DataError:
        pass
    if isinstance(task, ListOps):
        few = replace(task, source=None, num_train=NUM_EXAMPLES, num_validation=1, num_test=1)
        with tempfile.TemporaryDirectory() as folder:
            split = cache.load("listops", few, Path(folder)).splits["train"]
            # The memory-mapped data outlive their file.
            return split, "generated"
    examples = min(NUM_EXAMPLES, 4 * config.train.batch_size)
    return full_length(config, task, examples), "full length"


class Updates:
    """Perform updates of a cell as the training loop does.

    Args:
        config: The cell.
        split: Its training data.
        device: Device to compute on.
        events: Event writer for curves.
        old: Whether dropout uses torch's random numbers.
    """

    def __init__(
        self, config: Config, split: Split, device: torch.device, events: Events, old: bool = False
    ) -> None:
        self.config, self.device = config, device
        model = build_model(config).to(device).train()
        self.model = without_kernels(model) if old else model
        self.batches = batches_for(config, build_task(config), model, split)
        self.optimiser, self.schedule = optimiser_for(model, config.train)
        self.scaler = scaler_for(device, config.train.precision)
        self.division = division_for(config.train.micro_batch, model, device)
        self.events = events
        self.bar = tqdm(disable=None, leave=False)
        self.total = torch.zeros((), device=device)
        self.step = 0

    def parts(self) -> list[Batch]:
        """Return the micro-batches of the next update."""
        size, seed = self.config.train.batch_size, self.config.seed
        return self.batches.divided(self.step, size, seed, self.division)

    def __call__(self) -> None:
        """Perform an update, with micro-batches side by side if there are threads for that."""
        self._make(self.model, Stopwatch(self.device))

    def timed(self, watch: Stopwatch) -> None:
        """Perform an update under a stopwatch, with micro-batches one after the other."""

        def forward(tokens: Tensor, mask: Tensor | None) -> Tensor:
            watch.stop("backward")
            logits: Tensor = self.model(tokens, mask)
            watch.stop("forward")
            return logits

        self._make(forward, watch)

    def _make(self, forward: Callable[..., Tensor], watch: Stopwatch) -> None:
        train = self.config.train
        watch.start()
        parts = self.parts()
        watch.stop("batch")
        self.optimiser.zero_grad()
        # `accumulate` does this if it is given the model itself.
        with sharing(self.model, parts) if forward is not self.model else nullcontext():
            loss = accumulate(forward, parts, train.precision, self.scaler)
        watch.stop("backward")
        apply(self.optimiser, train, self.scaler)
        watch.stop("optimiser")
        self.total += loss
        self.step += 1
        self.schedule.step()
        self.bar.update()
        watch.stop("logging")
        curves = Stopwatch(self.device)
        for name in ("loss", "learning_rate", "steps_per_second"):
            self.events.add(f"train/{name}", float(self.total), self.step)
        curves.stop("logging")
        watch.seconds["logging"] += curves.seconds["logging"] / LOG_EVERY
        watch.start()


def shares(updates: Updates, repeats: int) -> tuple[dict[str, float], float]:
    """Return the median seconds of every part of an update, and of its floor.

    Args:
        updates: Updates of a cell.
        repeats: Number of timed updates.
    """
    # The first update does the one-time setup.
    updates()
    shapes = [part.tokens.shape for part in updates.parts()]
    with Products() as products, counter() as counted:
        updates()
    within_kernels = max(0, training_flops(updates.model, *shapes) - counted.get_total_flops())
    rest = products.again(), large_products(within_kernels, updates.device)

    def least() -> None:
        for each in rest:
            each()

    least()
    found, floors = [], []
    for _ in range(repeats):
        watch = Stopwatch(updates.device)
        updates.timed(watch)
        found.append(watch.seconds)
        floors.append(seconds_of(least, updates.device))
    medians = {part: statistics.median(each[part] for each in found) for part in PARTS}
    return medians, statistics.median(floors)


def share_row(seconds: dict[str, float], floor: float) -> list[str]:
    """Return an update's seconds, the shares of its parts, and the ratio to its floor."""
    whole = sum(seconds.values())
    texts = [f"{seconds[part] / whole:.1%}" for part in PARTS]
    outside = 1 - sum(seconds[part] for part in WORK) / whole
    mark = " (!)" if outside > MAX_OVERHEAD else ""
    ratio = f"{whole / floor:.2f}" if floor else "-"
    return [f"{whole:.3g}", *texts, f"{outside:.2%}{mark}", ratio]


SHARE_HEADER = ["s/update", *PARTS, "outside", "x floor"]
RATIO_HEADER = ["updates/s", "{0}: updates/s", "x {0}"]


def with_threads(updates: Callable[[], None], number: int) -> Callable[[], None]:
    """Return updates that run with the given number of threads."""

    def update() -> None:
        torch.set_num_threads(number)
        updates()

    return update


def ratio_row(new: Callable[[], None], old: Callable[[], None], repeats: int) -> list[str]:
    """Return the updates per second of two forms, run in turn, and their ratio."""
    # An update synchronises its device itself.
    seconds = interleaved({"new": new, "old": old}, repeats, torch.device("cpu"))
    speeds = [f"{1 / each:.3g}" for each in seconds.values()]
    return [*speeds, f"{seconds['old'] / seconds['new']:.2f}"]


def row(config: Config, args: argparse.Namespace, threads: int, device: torch.device) -> list[str]:
    """Measure a cell.

    Args:
        config: The cell.
        args: The command line.
        threads: CPU threads.
        device: Device to compute on.
    """
    split, kind = training_split(config)
    with tempfile.TemporaryDirectory() as folder, Events(Path(folder), 1) as events:
        updates = Updates(config, split, device, events)
        names = [config.task.name, config.attention.name, kind, str(len(updates.parts()))]
        if args.against == "old":
            old = Updates(whole_batch(config), split, device, events, old=True)
            return [*names, *ratio_row(updates, old, args.repeats)]
        if args.against == "one-thread":
            one = with_threads(Updates(config, split, device, events), 1)
            return [*names, *ratio_row(with_threads(updates, threads), one, args.repeats)]
        return [*names, *share_row(*shares(updates, args.repeats))]


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("bench step", __doc__)
    parser.add_argument(
        "words", nargs="*", help=f"key=value, as for lra train; by default {' '.join(_DEFAULTS)}"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="timed updates, of which the median is taken"
    )
    parser.add_argument("--against", choices=("old", "one-thread"), help="form to compare with")
    args = parser.parse_intermixed_args(words)
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats}: must be at least 1")
    return args


def cells(words: Sequence[str]) -> list[Config]:
    """Return the cells to measure, those of a sweep.

    Raises:
        ConfigError: A word is invalid, or threads, device or scale has several values.
    """
    ready = command(with_defaults(words, _DEFAULTS))
    found = [load(*cell) for cell in expand(ready, groups(ready))]
    for key in ("threads", "device", "scale"):
        if len(values := {str(getattr(each, key)) for each in found}) > 1:
            raise ConfigError(f"{key}={','.join(sorted(values))}: must be one value in one table")
    return found


def main(words: Sequence[str]) -> None:
    """Measure the cells that the command line names, and print their table."""
    args = _arguments(words)
    with refused(ConfigError):
        configs = cells(args.words)
        threads = resolve_threads(configs[0].threads) or torch.get_num_threads()
        device = resolve_device(configs[0].device)
        if threads > 1 and not args.against:
            raise ConfigError(
                f"threads={threads}: shares are measured on one thread; use more with --against"
            )
        torch.set_num_threads(threads)
        rows = [
            row(config, args, threads, device) for config in tqdm(configs, "cells", disable=None)
        ]
    header = [each.format(args.against) for each in RATIO_HEADER] if args.against else SHARE_HEADER
    print(markdown([["task", "attention", "data", "micro-batches", *header], *rows]))
    where = f"{machine(device)}, {device.type}, {threads} threads, torch {torch.__version__}"
    print(f"{configs[0].scale} scale, median of {args.repeats} updates, {where}")
