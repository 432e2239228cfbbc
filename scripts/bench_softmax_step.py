"""Measure one ListOps training step of the softmax model in the forms in which people run it.

    python scripts/bench_softmax_step.py [--steps 5] [--threads 2]

The batch size is 32, at the paper scale with its real lengths (501 to 1,999 symbols). Fused
attention trimmed to the batch's longest sequence, as in this suite, is compared with materialised
attention padded to 2,048, as in the published code, each with and without attention dropout. The
script prints medians and ratios.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from lra.batches import Batches
from lra.build import build_model
from lra.compose import load
from lra.config import Config
from lra.machine import interleaved
from lra.markdown import markdown
from lra.optimiser import optimiser_for
from lra.tasks import Split, cache
from lra.tasks.listops import ListOps

CPU = torch.device("cpu")


def step_of(config: Config, split: Split, trim: bool) -> Callable[[], None]:
    """Return a function that takes the next update on real batches."""
    model = build_model(config).train()
    optimiser, _ = optimiser_for(model, config.train)
    batches = Batches(
        split,
        padded_length=config.model.max_length,
        truncate=config.task.truncate,
        id_shift=0,
        trim=trim,
        device=CPU,
    )
    updates = 0

    def step() -> None:
        nonlocal updates
        batch = batches.shuffled(updates, config.train.batch_size, config.seed)
        updates += 1
        optimiser.zero_grad()
        logits = model(batch.tokens, batch.mask)
        F.cross_entropy(logits, batch.labels).backward()
        optimiser.step()

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each form")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = load("task=listops", "attention=softmax")
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"num_train": 500, "num_validation": 1, "num_test": 1}
        split = cache.load("listops", ListOps(**sizes), Path(folder)).splits["train"]
        steps = {}
        for dropout in (0.0, 0.1):
            for name, fused in (("fused, trimmed", True), ("materialised, 2,048", False)):
                variant = replace(
                    config,
                    model=replace(config.model, attention_dropout=dropout),
                    attention=replace(config.attention, options={"fused": fused}),
                )
                steps[f"{name}, dropout {dropout}"] = step_of(variant, split, trim=fused)
        seconds = interleaved(steps, args.steps, CPU)
    slowest = seconds["materialised, 2,048, dropout 0.0"]
    rows = [[name, f"{s:.3f}", f"{slowest / s:.2f}"] for name, s in seconds.items()]
    print(markdown([["form", "s/step", "x materialised without dropout"], *rows]))
    print(f"{args.threads} threads, median of {args.steps} interleaved steps")


if __name__ == "__main__":
    main()
