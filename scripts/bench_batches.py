"""Measure the share of a training step that is spent on getting its batch; the target is below 3 %.

    python scripts/bench_batches.py [--scale mini] [--tasks T] [--attentions A] [--threads 2]
    python scripts/bench_batches.py --scale paper --tasks listops,image

Getting a batch, from the memory-mapped cache to the device, is timed against the whole step (batch,
forward, backward and update) of the same cell, in turn. The mini scale uses its own data; the paper
scale uses generated examples of the published lengths, so that nothing is downloaded.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, product
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from lra.batches import Batch
from lra.build import batches_for, build_model, build_task
from lra.compose import load
from lra.config import Config, ConfigError
from lra.machine import interleaved, resolve_device
from lra.markdown import markdown
from lra.optimiser import optimiser_for
from lra.precision import autocast
from lra.tasks import Source, Split, Task, Writer, cache
from lra.tasks.listops import ListOps
from lra.tasks.registry import TASKS
from models import ATTENTION

NUM_EXAMPLES = 1_000
TARGET = 0.03


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Random symbols at full length, in the shape of a task that is read from files.

    Args:
        length: Symbols per sequence.
        sequences: Sequences per example.
        num_classes: Number of labels.
        num_symbols: Number of symbols, which count from 0.
    """

    version: ClassVar[int] = 1
    id_shift: ClassVar[int] = 0

    length: int
    sequences: int
    num_classes: int
    num_symbols: int

    def locate(self, data_dir: Path | None) -> Source:
        """Return a stand-in; nothing is read."""
        return Source("stand-in", "random symbols")

    def write(self, source: Source, splits: Mapping[str, Writer]) -> None:
        """Write every split; see `lra.tasks.Task`."""
        generator = np.random.default_rng(0)
        shape = (self.sequences, self.length)
        for name, size in {"train": NUM_EXAMPLES, "validation": 1, "test": 1}.items():
            for index in range(size):
                symbols = generator.integers(self.num_symbols, size=shape, dtype=np.uint8)
                splits[name].add(index % self.num_classes, *symbols)


def generated(config: Config) -> Task:
    """Return a task with few examples, whose lengths are those of a cell's own task."""
    task = build_task(config)
    if config.scale == "mini":
        return task
    if isinstance(task, ListOps):
        return replace(task, num_train=NUM_EXAMPLES, num_validation=1, num_test=1)
    return Noise(
        length=config.task.truncate,
        sequences=config.task.sequences,
        num_classes=config.task.num_classes,
        num_symbols=min(config.task.num_symbols, 256),
    )


def steps_of(
    config: Config, task: Task, split: Split, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Return two functions: one gets the next batch, the other gets it and takes the update."""
    model = build_model(config).to(device).train()
    optimiser, _ = optimiser_for(model, config.train)
    forward = torch.compile(model) if config.train.compile else model
    batches = batches_for(config, task, model, split)

    def stream() -> Iterator[Batch]:
        for number in count():
            yield batches.shuffled(number, config.train.batch_size, config.seed)

    alone, trained = stream(), stream()

    def step() -> None:
        batch = next(trained)
        with autocast(device, config.train.precision):
            logits = forward(batch.tokens, batch.mask)
        optimiser.zero_grad()
        F.cross_entropy(logits.float(), batch.labels).backward()
        optimiser.step()

    return {"batch": lambda: next(alone), "step": step}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--scale", choices=("mini", "paper"), default="mini")
    parser.add_argument("--protocol", default="nystromformer")
    parser.add_argument("--tasks", default=",".join(TASKS), help="names separated by commas")
    parser.add_argument("--attentions", default=",".join(ATTENTION))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    rows, shares = [], []
    cells = list(product(args.tasks.split(","), args.attentions.split(",")))
    with tempfile.TemporaryDirectory() as folder:
        for name, attention in tqdm(cells, "cells", disable=None):
            words = [f"task={name}", f"attention={attention}", f"scale={args.scale}"]
            try:
                config = load(*words, f"protocol={args.protocol}")
            except ConfigError as error:
                raise SystemExit(str(error)) from error
            task = generated(config)
            split = cache.load(name, task, Path(folder)).splits["train"]
            seconds = interleaved(steps_of(config, task, split, device), args.repeats, device)
            shares.append(seconds["batch"] / seconds["step"])
            milliseconds = [f"{1e3 * seconds[each]:.2f}" for each in ("batch", "step")]
            rows.append([name, attention, *milliseconds, f"{shares[-1]:.2%}"])
    print(markdown([["task", "attention", "batch ms", "step ms", "share"], *rows]))
    print(
        f"{args.scale} scale, {device}, {args.threads} threads, median of {args.repeats}"
        f" interleaved calls; {sum(share < TARGET for share in shares)} of {len(shares)} cells are"
        f" below {TARGET:.0%}"
    )


if __name__ == "__main__":
    main()
