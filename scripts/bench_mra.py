"""Time MRA-2 against softmax attention on the CPU, forward and backward, and measure its memory.

Inputs are random float32; both are measured in turn within one process, after a warm-up, and their
medians are compared. Each thread count runs in a process of its own; `disturbed` is two threads
while another process keeps one core busy. Memory is the growth of the peak resident memory of a
fresh process beyond what its inputs take. Run

    python scripts/bench_mra.py --out results/bench/mra_cpu.json

on a quiet machine (about 10 minutes; `--lengths 1024 2048` takes one).
"""

import argparse
import json
import math
import mmap
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.mra import Mode, Selection, mra_attention
from models.softmax import softmax_attention

HEADS, HEAD_DIM, BLOCKS_PER_ROW, BLOCK_SIZE = 2, 32, 8, 32


def step(form: str, batch: int, length: int) -> Callable[[], None]:
    """Return one forward and backward of `form` on inputs `(B, H, N, K)` made here."""
    torch.manual_seed(0)
    q, k, v, towards = torch.randn(4, batch, HEADS, length, HEAD_DIM)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    budget = -(-length // BLOCK_SIZE) * BLOCKS_PER_ROW
    selection = Selection(num_blocks=budget, block_size=BLOCK_SIZE)

    def mra(mode: Mode) -> Tensor:
        return mra_attention(*inputs, None, selection, mode)

    forms: dict[str, Callable[[], Tensor]] = {
        "sdpa": lambda: F.scaled_dot_product_attention(*inputs),
        "materialised": lambda: softmax_attention(*inputs, None),
        "mra": lambda: mra("full"),
        "mra_sparse": lambda: mra("sparse"),
    }

    def run() -> None:
        torch.autograd.grad(forms[form](), inputs, towards)

    return run


def time_in_turn(length: int, batch: int, repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each form, measured in turn."""
    steps = {form: step(form, batch, length) for form in ("sdpa", "mra", "mra_sparse")}
    times: dict[str, list[float]] = {form: [] for form in steps}
    for repeat in range(repeats + 2):
        for form, run in steps.items():
            start = time.perf_counter()
            run()
            # The first two warm up caches, thread pools and the allocator.
            if repeat >= 2:
                times[form].append(1e3 * (time.perf_counter() - start))
    return {form: statistics.median(values) for form, values in times.items()}


def peak_mib(form: str, batch: int, length: int) -> float:
    """Return by how many MiB one step raises this process's peak resident memory, on Linux."""
    run = step(form, batch, length)
    # Load libraries and thread pools at a size that needs hardly any memory.
    step(form, 1, 4 * BLOCK_SIZE)()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    # Writing 5 resets the peak of the process, which otherwise counts from its start.
    Path("/proc/self/clear_refs").write_text("5")
    run()
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    return (peak - before) / 2**20


def in_new_process(arguments: list[str], threads: int) -> dict[str, float]:
    """Run this script's hidden `--measure` in a process with its own thread count."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--measure", *arguments]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def spin() -> None:
    """Keep one core busy until killed."""
    while True:
        pass


def exponent(lengths: list[int], times: list[float]) -> float:
    """Fit t = c N^a by least squares of the logarithms and return a."""
    x, y = [math.log(n) for n in lengths], [math.log(t) for t in times]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def measure_speed(args: argparse.Namespace) -> list[dict[str, float | int | str]]:
    """Measure every load at every length, and print a line for each."""
    loads = [(f"{threads} thread{'s' * (threads > 1)}", threads, False) for threads in args.threads]
    loads += [("2 threads, disturbed", 2, True)] if 2 in args.threads else []
    rows: list[dict[str, float | int | str]] = []
    print("| load | N | SDPA ms | MRA-2 ms | ratio | MRA-2-s ms | ratio |")
    print("|---|---|---|---|---|---|---|")
    for load, threads, disturbed in loads:
        busy = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
        if disturbed:
            busy.start()
        for length in args.lengths:
            sizes = [str(x) for x in (length, args.batch, args.repeats)]
            ms = in_new_process(["speed", *sizes], threads)
            ratios = {f: ms["sdpa"] / ms[f] for f in ("mra", "mra_sparse")}
            rows.append({"load": load, "length": length, **{f"{f}_ms": t for f, t in ms.items()}})
            print(
                f"| {load} | {length:,} | {ms['sdpa']:.1f} | {ms['mra']:.1f} | {ratios['mra']:.2f} "
                f"| {ms['mra_sparse']:.1f} | {ratios['mra_sparse']:.2f} |",
                flush=True,
            )
        if disturbed:
            busy.kill()
    return rows


def main() -> None:
    """Measure, print two tables, and write them to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory-length", type=int, default=4096)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        kind, *values = args.measure
        if kind == "speed":
            length, batch, repeats = map(int, values)
            print(json.dumps(time_in_turn(length, batch, repeats)))
        else:
            print(json.dumps({"mib": peak_mib(values[0], int(values[1]), int(values[2]))}))
        return

    rows = measure_speed(args)
    exponents = {}
    for load in dict.fromkeys(row["load"] for row in rows):
        times = [float(row["mra_ms"]) for row in rows if row["load"] == load]
        if len(times) > 1:
            exponents[str(load)] = exponent(args.lengths, times)
            print(f"{load}: time of MRA-2 grows as N^{exponents[str(load)]:.2f}")
    memory = {}
    for form in ("mra", "sdpa", "materialised"):
        sizes = [form, str(args.batch), str(args.memory_length)]
        memory[form] = in_new_process(["memory", *sizes], 1)["mib"]
        print(f"peak at {args.memory_length:,}: {form} {memory[form]:.0f} MiB")
    if args.out:
        record = {
            "machine": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "batch": args.batch,
            "heads": HEADS,
            "head_dim": HEAD_DIM,
            "blocks_per_row": BLOCKS_PER_ROW,
            "block_size": BLOCK_SIZE,
            "speed": rows,
            "exponent": exponents,
            "memory_length": args.memory_length,
            "memory_mib": memory,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
