"""Time dropout on the CPU against what it replaces, forward and backward, in turn in one process.

Two tables: dropout of activations against torch's, by the element, and training steps of an encoder
with either. Inputs are random float32; after a warm-up, forms take turns and the
medians are compared. Each thread count has a process of its own. Run

    python scripts/bench_dropout.py --out results/bench/dropout_cpu.json

(some 4 minutes with the default lengths). One thread is timed by its processor's clock, which a
busy neighbour does not advance; several are timed by the wall's and want a quiet machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from models import ATTENTION
from models.dropout import Dropout, drop
from models.encoder import Classifier
from models.sizes import ModelConfig

HEADS, HEAD_DIM, BATCH = 2, 32, 4
WIDTH, LAYERS, P = 64, 2, 0.1
Rows = dict[str, dict[str, float]]


def medians(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each step, measured in turn."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 2):
        for name, run in steps.items():
            start = clock()
            run()
            # The first two warm up caches, compiled loops and the allocator.
            if repeat >= 2:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def activations(length: int, repeats: int) -> dict[str, float]:
    """Return nanoseconds an element, forward and backward, of either dropout."""
    x = torch.randn(BATCH, length, WIDTH, requires_grad=True)
    towards = torch.randn(BATCH, length, WIDTH)

    def step(compiled: bool) -> Callable[[], object]:
        return lambda: torch.autograd.grad(drop(x, P, compiled=compiled), x, towards)

    seconds = medians({"torch": step(False), "compiled": step(True)}, repeats)
    return {name: 1e9 * value / x.numel() for name, value in seconds.items()}


def training_step(attention: str, length: int, repeats: int) -> dict[str, float]:
    """Return milliseconds of a step, optimiser included, with either dropout of activations."""

    def build(compiled: bool) -> Callable[[], object]:
        torch.manual_seed(0)
        config = ModelConfig(
            layers=LAYERS, dim=WIDTH, heads=HEADS, head_dim=HEAD_DIM, mlp_dim=2 * WIDTH,
            max_length=length, vocab_size=256, dropout=P,
        )  # fmt: skip
        model = Classifier(config, ATTENTION[attention], 10).train()
        for module in model.modules():
            if isinstance(module, Dropout):
                module.compiled = compiled
        optimiser = torch.optim.AdamW(model.parameters())
        tokens, labels = torch.randint(256, (BATCH, length)), torch.randint(10, (BATCH,))

        def step() -> None:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(tokens, None, length), labels).backward()
            optimiser.step()

        return step

    seconds = medians({"torch": build(False), "compiled": build(True)}, repeats)
    return {name: 1e3 * value for name, value in seconds.items()}


def measure(lengths: list[int], repeats: int) -> dict[str, Rows]:
    """Measure everything with the threads of this process."""
    return {
        "ns an element": {
            f"dropout, {BATCH} x {n} x {WIDTH}": activations(n, 3 * repeats) for n in lengths
        },
        "ms per step": {
            f"{attention}, {lengths[-1]}": training_step(attention, lengths[-1], repeats)
            for attention in ("fourier", "linear")
        },
    }


def in_a_fresh_process(lengths: list[int], repeats: int, threads: int) -> dict[str, Rows]:
    """Run `measure` in a process with its own thread count."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--measure", "--repeats", str(repeats)]
    command += ["--lengths", *map(str, lengths)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Rows] = json.loads(done.stdout)
    return result


def show(tables: dict[str, Rows], threads: int) -> None:
    """Print the tables of one thread count; ratios are to the last form of a row."""
    for unit, rows in tables.items():
        forms = list(next(iter(rows.values())))
        print(f"\n| {unit}, {threads} thread{'s' * (threads > 1)} | {' | '.join(forms)} | ratios |")
        print("|---" * (len(forms) + 2) + "|")
        for name, times in rows.items():
            *others, last = times.values()
            ratios = ", ".join(f"{value / last:.2f}" for value in others)
            cells = " | ".join(f"{value:.2f}" for value in times.values())
            print(f"| {name} | {cells} | {ratios} |", flush=True)


def main() -> None:
    """Measure, print the tables, and write them to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.lengths, args.repeats)))
        return
    results = {}
    for threads in args.threads:
        results[f"{threads}"] = in_a_fresh_process(args.lengths, args.repeats, threads)
        show(results[f"{threads}"], threads)
    if args.out:
        record = {
            "machine": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "batch": BATCH,
            "heads": HEADS,
            "head_dim": HEAD_DIM,
            "dropout": P,
            "by_threads": results,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
