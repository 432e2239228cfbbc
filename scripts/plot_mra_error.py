"""Plot how far MRA-2 and MRA-2-s are from softmax attention, against the blocks a row they compute.

The error is ||out - softmax|| / ||softmax out||, a head at a time, averaged over heads and
sequences. Random queries and keys are N(0, 1), so that logits are too. Run

    python scripts/plot_mra_error.py --out results/mra_error.svg
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models.mra import Mode, mra_attention  # noqa: E402 (the line above finds it)
from models.softmax import softmax_attention  # noqa: E402

LABELS: dict[Mode, str] = {"full": "MRA-2", "sparse": "MRA-2-s"}


def relative_errors(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, blocks_per_row: list[int],
    block_size: int,
) -> dict[Mode, list[float]]:  # fmt: skip
    """Return the mean relative error to softmax of both modes for each budget.

    Args:
        q: Queries `(B, H, N, K)`.
        k: Keys, alike.
        v: Values, alike.
        mask: `(B, N)` bool, True for real tokens, or None.
        blocks_per_row: Pairs of blocks computed exactly, a block row on average.
        block_size: Tokens a block.
    """
    exact = softmax_attention(q, k, v, mask)
    if mask is not None:
        exact = exact.masked_fill(~mask[:, None, :, None], 0.0)
    size = exact.flatten(2).norm(dim=-1)
    rows = -(-q.shape[2] // block_size)
    errors: dict[Mode, list[float]] = {mode: [] for mode in LABELS}
    for mode, values in errors.items():
        for budget in blocks_per_row:
            out = mra_attention(
                q, k, v, mask, num_blocks=budget * rows, mode=mode, block_size=block_size
            )
            values.append(((out - exact).flatten(2).norm(dim=-1) / size).mean().item())
    return errors


def plot(panels: dict[str, tuple[list[int], dict[Mode, list[float]]]], rows: int) -> plt.Figure:
    """Draw one panel of error curves for each title; `rows` blocks a row are all there are."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5 * len(panels), 3.6), squeeze=False, sharey=True
    )
    for ax, (title, (budgets, errors)) in zip(axes[0], panels.items(), strict=True):
        for mode, values in errors.items():
            ax.plot(budgets, values, marker="o", label=LABELS[mode])
        ax.set(title=title, xlabel=f"blocks a row computed exactly (of {rows})", ylim=(0, None))
        ax.set_xscale("log", base=2)
        ax.set_xticks(budgets, [str(b) for b in budgets])
        ax.grid(alpha=0.3)
        ax.legend()
    axes[0, 0].set_ylabel("relative error to softmax")
    figure.tight_layout()
    return figure


def main() -> None:
    """Measure on random inputs, print the figures, and write the picture to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("mra_error.svg"))
    args = parser.parse_args()
    matplotlib.use("Agg")
    rows = -(-args.length // args.block_size)
    budgets = [2**i for i in range(rows.bit_length()) if 2**i < rows] + [rows]
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, args.heads, args.length, args.head_dim)
    errors = relative_errors(q, k, v, None, budgets, args.block_size)
    for mode, values in errors.items():
        print(LABELS[mode], " ".join(f"{b}:{e:.3f}" for b, e in zip(budgets, values, strict=True)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    plot({f"random queries and keys, N = {args.length:,}": (budgets, errors)}, rows).savefig(
        args.out
    )


if __name__ == "__main__":
    main()
