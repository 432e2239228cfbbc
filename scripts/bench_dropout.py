"""Time dropout on the CPU against what it replaces, forward and backward, in turn in one process.

It prints three tables of times: dropout of activations against torch's, per element; training steps
of an encoder with either; and attention dropout without stored weights against materialised weights
and against `scaled_dot_product_attention` with and without dropout. A fourth table shows memory.
Inputs are random float32; after a warm-up, the forms take turns, and their medians are compared.
Each thread count runs in a process of its own. Run

    python scripts/bench_dropout.py --out results/bench/dropout_cpu.json

(about 4 minutes with the default lengths). One thread is timed by its processor time, which a busy
neighbour does not advance; several threads are timed by the wall clock and need a quiet machine.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import ATTENTION
from models.dropout import Dropout, drop
from models.dropped_attention import dropped_attention
from models.encoder import Classifier
from models.sizes import ModelConfig
from models.softmax import softmax_attention

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
    """Return nanoseconds per element, forward and backward, of either dropout."""
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
            nn.functional.cross_entropy(model(tokens, None), labels).backward()
            optimiser.step()

        return step

    seconds = medians({"torch": build(False), "compiled": build(True)}, repeats)
    return {name: 1e3 * value for name, value in seconds.items()}


def attention_forms(length: int) -> dict[str, Callable[[], object]]:
    """Return a forward and backward of each form of softmax attention."""
    *qkv, towards = torch.randn(4, BATCH, HEADS, length, HEAD_DIM)
    inputs = [x.requires_grad_() for x in qkv]
    sdpa = nn.functional.scaled_dot_product_attention
    forms: dict[str, Callable[[], torch.Tensor]] = {
        "materialised": lambda: softmax_attention(*inputs, None, P),
        "sdpa with dropout": lambda: sdpa(*inputs, dropout_p=P),
        "compiled": lambda: dropped_attention(*inputs, None, P),
        "sdpa without": lambda: sdpa(*inputs),
    }

    def step(form: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(form(), inputs, towards)

    return {name: step(form) for name, form in forms.items()}


def attention_dropout(length: int, repeats: int) -> dict[str, float]:
    """Return milliseconds of each form of softmax attention, forward and backward."""
    seconds = medians(attention_forms(length), repeats)
    return {name: 1e3 * value for name, value in seconds.items()}


def peak_mib(form: str, length: int) -> float:
    """Return by how many MiB one step of attention raises this process's peak resident memory."""
    # Load libraries and compiled loops at a size that needs hardly any memory.
    attention_forms(64)[form]()
    step = attention_forms(length)[form]
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    # Writing 5 resets the peak of the process, which otherwise counts from its start.
    Path("/proc/self/clear_refs").write_text("5")
    step()
    status = Path("/proc/self/status").read_text()
    return (int(status.split("VmHWM:")[1].split()[0]) * 1024 - before) / 2**20


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
        "ms of attention": {
            f"{BATCH} x {HEADS} x {n} x {HEAD_DIM}": attention_dropout(n, repeats) for n in lengths
        },
    }


def in_new_process(threads: int, *arguments: str) -> Any:
    """Run this script with `arguments` in a process with its own thread count."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def show(tables: dict[str, Rows], threads: int) -> None:
    """Print the tables of one thread count; ratios are relative to the last form of a row."""
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
    parser.add_argument("--weigh", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.lengths, args.repeats)))
        return
    if args.weigh:
        print(json.dumps(peak_mib(args.weigh, args.lengths[0])))
        return
    results, lengths = {}, ["--lengths", *map(str, args.lengths)]
    for threads in args.threads:
        options = ["--measure", "--repeats", str(args.repeats), *lengths]
        results[f"{threads}"] = in_new_process(threads, *options)
        show(results[f"{threads}"], threads)
    memory: Rows = {}
    for length in args.lengths:
        weigh = {form: ["--weigh", form, "--lengths", str(length)] for form in attention_forms(1)}
        memory[str(length)] = {form: in_new_process(1, *w) for form, w in weigh.items()}
    show({"MiB of attention": memory}, 1)
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
            "memory_mib": memory,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
