"""Measure Fourier mixing, forward and backward, against autograd through the whole transform.

python scripts/bench_fourier.py [--repeats 15] [--threads 1]
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from lra.machine import interleaved
from lra.markdown import markdown
from models.fourier import fourier_mixing, fourier_mixing_reference

LENGTHS = (1000, 1024, 2048, 4096, 4099)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for length in LENGTHS:
        x = torch.randn(8, length, 64, requires_grad=True)
        gradient = torch.randn_like(x)

        def both(
            mix: Callable[[Tensor], Tensor], x: Tensor = x, gradient: Tensor = gradient
        ) -> Callable[[], None]:
            def step() -> None:
                x.grad = None
                mix(x).backward(gradient)

            return step

        seconds = interleaved(
            {
                "fft": both(fourier_mixing),
                "matrix": both(lambda x: fourier_mixing(x, method="matrix")),
                "autograd": both(fourier_mixing_reference),
            },
            args.repeats,
            torch.device("cpu"),
            warmup=2,
        )
        reference = seconds["autograd"]
        ratios = [f"{reference / seconds[name]:.2f}" for name in ("fft", "matrix")]
        rows.append([f"{length:,}", f"{1e3 * reference:.1f}", *ratios])
    print(markdown([["length", "autograd fft2 ms", "fft x", "matrix x"], *rows]))
    print(f"batch 8, width 64, {args.threads} threads, median of {args.repeats} interleaved calls")


if __name__ == "__main__":
    main()
