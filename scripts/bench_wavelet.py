"""Measure what the wavelet transforms and WavSpA cost, relative to a softmax attention layer.

    python scripts/bench_wavelet.py [--out results/bench/wavelet.json] [--threads 1] [--repeats 9]

Everything is timed forward and backward in float32, including gradients of the filters. Within a
table, the candidates take turns, and each figure is the median of its turns after one warm-up turn,
so read ratios rather than milliseconds. The script takes about a minute on one core.

Freed memory is kept for the next turn. By default, glibc hands blocks above 32 MB back to the
kernel and fetches them again page by page: beyond that size, the page faults cost more than the
transform, and the doubling that crosses it takes about 2.5 times as long.
"""

import argparse
import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pywt
import torch
from torch import Tensor, nn

from models.heads import AttentionShape
from models.lifting import lift53_dec, lift53_rec, lifting_dec, lifting_rec
from models.linear import Linear
from models.softmax import Softmax
from models.wavelet import wavedec, waverec
from models.wavspa import WavSpA, daubechies

BATCH, WIDTH, LENGTH = 8, 64, 4096
SHAPE = AttentionShape(dim=WIDTH, heads=2, head_dim=32, max_length=LENGTH)
TAPS = (8, 16, 40)
DOUBLINGS = tuple(2**power for power in range(10, 17))

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

Run = Callable[[], Tensor]


def main() -> None:
    """Measure, print the tables and, if asked, write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    figures = {
        "machine": f"{platform.processor() or platform.machine()}, {arguments.threads} thread(s)",
        "torch": torch.__version__,
        "shares": shares_of_softmax(arguments.repeats),
        "doublings": growth_with_length(arguments.repeats),
        "ptwt": against_ptwt(arguments.repeats),
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory; do nothing with another allocator."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 2**31 - 1)


def shares_of_softmax(repeats: int) -> dict[str, float]:
    """Return the milliseconds of transforms and whole layers, and of one softmax layer."""
    x = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)
    layers: dict[str, nn.Module] = {"softmax layer": Softmax(SHAPE)}
    runs: dict[str, Run] = {}
    for taps in TAPS:
        runs[f"transform F={taps}"] = partial(decompose_and_reconstruct, x, trained_filters(taps))
        layers[f"wavspa layer F={taps}"] = WavSpA(SHAPE, inner=Softmax, wlen=taps)
    filters = trained_filters(16), trained_filters(16)
    runs["transform adalift F=16"] = partial(lift_and_back, x, *filters)
    runs["transform lift53"] = partial(lift53_and_back, x)
    layers["wavspa layer lift53"] = WavSpA(SHAPE, inner=Softmax, wavelet="lift53")
    layers["wavspa layer F=16, linear"] = WavSpA(SHAPE, inner=Linear, wlen=16)
    runs.update({name: partial(layer, x) for name, layer in layers.items()})
    times = medians(runs, repeats)
    softmax = times["softmax layer"]
    print(f"forward + backward, B {BATCH}, N {LENGTH}, D {WIDTH}, level 1")
    for name, seconds in sorted(times.items(), key=lambda item: item[1]):
        print(f"  {name:24} {1e3 * seconds:8.1f} ms {100 * seconds / softmax:7.1f} % of softmax")
    return {name: 1e3 * seconds for name, seconds in times.items()}


def growth_with_length(repeats: int) -> dict[int, float]:
    """Return the milliseconds that the transform takes at lengths that double."""
    filters = trained_filters(16)
    runs: dict[str, Run] = {}
    for length in DOUBLINGS:
        x = torch.randn(BATCH, length, WIDTH, requires_grad=True)
        runs[str(length)] = partial(decompose_and_reconstruct, x, filters)
    times = list(medians(runs, repeats).values())
    print(f"transform F=16, B {BATCH}, D {WIDTH}: time, and its ratio to that of half the length")
    for i, length in enumerate(DOUBLINGS):
        ratio = f"{times[i] / times[i - 1]:6.2f}" if i else ""
        print(f"  N {length:6} {1e3 * times[i]:8.2f} ms {ratio}")
    return {length: 1e3 * seconds for length, seconds in zip(DOUBLINGS, times, strict=True)}


def against_ptwt(repeats: int) -> dict[str, float]:
    """Time the transform against PyTorch-Wavelet-Toolbox's, for one fixed filter in all channels.

    Each gets the memory layout that it is written for: ours `(B, N, D)`, ptwt's `(B, D, N)`.
    """
    import ptwt

    x = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)
    across = torch.randn(BATCH, WIDTH, LENGTH, requires_grad=True)

    def theirs(wavelet: pywt.Wavelet) -> Tensor:
        return ptwt.waverec(ptwt.wavedec(across, wavelet, mode="reflect", level=1), wavelet)

    runs: dict[str, Run] = {}
    for taps in TAPS:
        runs[f"ours F={taps}"] = partial(decompose_and_reconstruct, x, daubechies(taps, WIDTH))
        runs[f"ptwt F={taps}"] = partial(theirs, pywt.Wavelet(f"db{taps // 2}"))
    times = medians(runs, repeats)
    print(f"shared fixed filter, forward + backward, B {BATCH}, N {LENGTH}, D {WIDTH}, level 1")
    for taps in TAPS:
        ours, ptwts = times[f"ours F={taps}"], times[f"ptwt F={taps}"]
        print(f"  F={taps:2} ours {1e3 * ours:7.1f} ms, ptwt {1e3 * ptwts:7.1f} ms", end="")
        print(f", {ptwts / ours:5.1f} times as fast")
    return {name: 1e3 * seconds for name, seconds in times.items()}


def trained_filters(taps: int) -> Tensor:
    """Return Daubechies filters of `taps` taps for every channel, with gradients enabled."""
    return daubechies(taps, WIDTH).requires_grad_()


def decompose_and_reconstruct(x: Tensor, filters: Tensor) -> Tensor:
    """Decompose and reconstruct by one level of a filter bank."""
    return waverec(wavedec(x, filters, 1), filters, x.shape[1])


def lift_and_back(x: Tensor, w_est: Tensor, w_pred: Tensor) -> Tensor:
    """Decompose and reconstruct by one level of learned lifting."""
    return lifting_rec(lifting_dec(x, w_est, w_pred, 1), w_est, w_pred, x.shape[1])


def lift53_and_back(x: Tensor) -> Tensor:
    """Decompose and reconstruct by one level of 5/3 lifting."""
    return lift53_rec(lift53_dec(x, 1), x.shape[1])


def medians(runs: dict[str, Run], repeats: int) -> dict[str, float]:
    """Let the runs take turns forward and backward; return each one's median seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            out = run()
            out.backward(torch.ones_like(out))
            if turn:
                seconds[name].append(time.perf_counter() - start)
            del out
    return {name: statistics.median(taken) for name, taken in seconds.items()}


if __name__ == "__main__":
    main()
