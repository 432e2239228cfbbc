"""Plot how far MRA-2 and MRA-2-s are from softmax attention, against exact blocks per row.

    python scripts/plot_mra_error.py --out results/mra_error.png
    python scripts/plot_mra_error.py --run RUN  (the folder of a finished softmax cell)

The error is ||out - softmax|| / ||softmax out||, one head at a time, averaged over heads and
sequences. Random queries and keys are N(0, 1), so that logits are too. With `--run`, those of every
layer of a trained softmax cell on validation sequences are shown beside them.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from lra.build import batches_for, build_task
from lra.cell import load_run
from lra.paths import cache_dir
from lra.tasks import DataError, cache
from models.mra import Mode, Selection, mra_attention
from models.softmax import Softmax, softmax_attention

LABELS: dict[Mode, str] = {"full": "MRA-2", "sparse": "MRA-2-s"}


def relative_errors(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, blocks_per_row: list[int],
    block_size: int,
) -> dict[Mode, list[float]]:  # fmt: skip
    """Return the mean relative error to softmax of both modes for each budget.

    Args:
        q: Queries `(B, H, N, K)`.
        k: Keys of the same shape.
        v: Values of the same shape.
        mask: `(B, N)` bool, True for real tokens, or None.
        blocks_per_row: Pairs of blocks computed exactly per block row, on average.
        block_size: Tokens per block.
    """
    exact = softmax_attention(q, k, v, mask)
    if mask is not None:
        exact = exact.masked_fill(~mask[:, None, :, None], 0.0)
    size = exact.flatten(2).norm(dim=-1)
    rows = -(-q.shape[2] // block_size)
    errors: dict[Mode, list[float]] = {mode: [] for mode in LABELS}
    for mode, values in errors.items():
        for budget in blocks_per_row:
            selection = Selection(num_blocks=budget * rows, block_size=block_size)
            out = mra_attention(q, k, v, mask, selection, mode)
            values.append(((out - exact).flatten(2).norm(dim=-1) / size).mean().item())
    return errors


@dataclass
class Inputs:
    """The inputs on which attention is computed.

    Args:
        title: What they are, for the panel's title.
        q: Queries `(B, H, N, K)`.
        k: Keys of the same shape.
        v: Values of the same shape.
        mask: `(B, N)` bool, True for real tokens, or None.
        block_size: Tokens per block.
    """

    title: str
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    block_size: int

    @property
    def rows(self) -> int:
        """Number of blocks per row of the whole map."""
        return -(-self.q.shape[2] // self.block_size)

    @property
    def budgets(self) -> list[int]:
        """Powers of two below the whole map, and the whole map."""
        return [2**i for i in range(self.rows.bit_length()) if 2**i < self.rows] + [self.rows]


def random_inputs(length: int, block_size: int) -> Inputs:
    """Draw normal queries, keys and values."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 8, length, 32)
    return Inputs(f"random, N = {length:,}", q, k, v, None, block_size)


@torch.inference_mode()
def trained_inputs(run: Path, cache_dir: Path, block_size: int) -> list[Inputs]:
    """Return what every layer of a trained softmax cell attends to in 16 validation sequences.

    Raises:
        ValueError: The run is not finished or its attention is not softmax.
        DataError: Its data are missing.
    """
    config, _, model = load_run(run)
    if config.attention.name != "softmax":
        raise ValueError(f"{run}: attention is {config.attention.name}, must be softmax")
    task = build_task(config)
    data = cache.load(config.task.name, task, cache_dir, config.raw_data_dir())
    batches = batches_for(config, task, model, data.splits["validation"])
    # The longest sequences, which come last.
    *_, batch = batches.once(16)
    found: list[Inputs] = []

    def capture(module: torch.nn.Module, arguments: tuple[Tensor, Tensor | None]) -> None:
        assert isinstance(module, Softmax)
        x, mask = arguments
        title = f"{config.task.name}, layer {len(found)}, N = {x.shape[1]:,}"
        found.append(Inputs(title, *module.projections.split(x), mask, block_size))

    for block in model.eval().encoder.blocks:
        block.attention.register_forward_pre_hook(capture)
    model(batch.tokens, batch.mask)
    return found


def plot(panels: list[tuple[Inputs, dict[Mode, list[float]]]]) -> plt.Figure:
    """Draw one panel of error curves for each kind of inputs."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.5 * len(panels), 3.6), squeeze=False, sharey=True
    )
    for ax, (inputs, errors) in zip(axes[0], panels, strict=True):
        for mode, values in errors.items():
            ax.plot(inputs.budgets, values, marker="o", label=LABELS[mode])
        xlabel = f"exact blocks of {inputs.block_size} per row (of {inputs.rows})"
        ax.set(title=inputs.title, xlabel=xlabel, ylim=(0, None))
        ax.set_xscale("log", base=2)
        ax.set_xticks(inputs.budgets, [str(b) for b in inputs.budgets])
        ax.grid(alpha=0.3)
        ax.legend()
    axes[0, 0].set_ylabel("relative error to softmax")
    figure.tight_layout()
    return figure


def main() -> None:
    """Measure, print the figures, and write the picture to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--length", type=int, default=1024, help="length of the random inputs")
    parser.add_argument("--block-size", type=int, default=32, help="for the random inputs")
    parser.add_argument("--run", type=Path, help="folder of a finished softmax run")
    parser.add_argument("--run-block-size", type=int, default=8, help="for the run's inputs")
    parser.add_argument("--cache-dir", type=Path, default=Path(cache_dir()))
    parser.add_argument("--out", type=Path, default=Path("mra_error.png"))
    args = parser.parse_args()
    kinds = [random_inputs(args.length, args.block_size)]
    try:
        if args.run is not None:
            kinds += trained_inputs(args.run, args.cache_dir, args.run_block_size)
    except (ValueError, DataError) as error:
        sys.exit(f"{error}")
    panels = []
    for inputs in kinds:
        qkv = (inputs.q, inputs.k, inputs.v)
        errors = relative_errors(*qkv, inputs.mask, inputs.budgets, inputs.block_size)
        panels.append((inputs, errors))
        for mode, values in errors.items():
            line = " ".join(f"{b}:{e:.3f}" for b, e in zip(inputs.budgets, values, strict=True))
            print(f"{inputs.title}, {LABELS[mode]}: {line}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    plot(panels).savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
