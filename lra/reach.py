"""Measure how far a trained model looks: how an output depends on inputs at a distance.

    lra reach task=listops attention=softmax,mra scale=mini
    lra reach results/runs/mini/nystromformer/listops/softmax/default/seed0

A run is given by its words or its folder; several runs share one table and, with `--out`, one
picture. The command reads a finished run's `best.pt` and inputs from its test set, and prints how
the influence of inputs is distributed over distance, beside the same model at initialisation. It
measures the parameters that validation chose; their name says after how many updates.

The influence of input position j on output position i is the Frobenius norm of the Jacobian
d h_i / d x_j, where x is what the embedding feeds into the first block and h is what the last norm
returns. Its square is the mean of the squared norm of u^T (d h_i / d x_j) over standard normal u,
estimated from a few of them. This estimate is unbiased, but its root is too small: most of all if
the Jacobian has rank 1, by 11 % of the norm with two directions u and 6 % with four, and by less
the higher the rank. Every row i is divided by its sum over j, so that it is a distribution over
distances |i - j|; this removes any bias that all j share.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lra.batches import Batches
from lra.build import Model, batches_for, build_model, build_task
from lra.cell import check_same_data, load_run, run_folders
from lra.config import Config, ConfigError
from lra.folders import writing
from lra.machine import resolve_device
from lra.markdown import Table, markdown
from lra.paths import cache_dir
from lra.seeds import derive
from lra.tasks import DataError, cache
from lra.terminal import command_parser, refused, run

# Distances, in tokens, beyond which the influence is summed.
BEYOND = (64, 256, 1024)
# Ends the name of an untrained model.
UNTRAINED = " at initialisation"


@dataclass(frozen=True)
class Profile:
    """Influence by distance, averaged over output positions and examples.

    Args:
        weights: `(N,)`: the share of the influence from each distance 0 to N - 1; sums to 1.
    """

    weights: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Mean distance, in tokens."""
        return float(self.weights @ np.arange(len(self.weights)))

    @property
    def median(self) -> int:
        """Smallest distance, in tokens, within which half of the influence lies."""
        return int(np.searchsorted(self.weights.cumsum(), 0.5 - 1e-12))

    def beyond(self, distance: int) -> float:
        """Return the share of the influence that comes from beyond `distance` tokens."""
        return float(self.weights[distance + 1 :].sum())

    def binned(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the centres of the logarithmic bins 0, 1, 2-3, 4-7, ..., and the share of each."""
        edges = [0, 1]
        while edges[-1] < len(self.weights):
            edges.append(2 * edges[-1])
        shares = np.add.reduceat(self.weights, edges[:-1])
        centres = [(low + high - 1) / 2 for low, high in zip(edges, edges[1:], strict=False)]
        return np.array(centres), shares


def influence(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    positions: Sequence[int],
    projections: int,
    generator: torch.Generator,
) -> Tensor:
    """Return how strongly outputs at some positions depend on the input at every position.

    Args:
        function: Maps `(B, N, D)` to `(B, N, E)`, without dropout.
        x: Input, `(B, N, D)`.
        positions: Output positions, P of them.
        projections: Number of random output directions from which the norm is estimated.
        generator: Generator of these directions, on the CPU.

    Returns:
        `(B, P, N)`: estimates of the Frobenius norm of d h_i / d x_j, whose squares are unbiased.
    """
    x = x.detach().requires_grad_()
    outputs = function(x)
    rows = []
    for position in positions:
        squares = torch.zeros(x.shape[:2], dtype=torch.float64, device=x.device)
        for _ in range(projections):
            shape = (len(x), outputs.shape[-1])
            direction = torch.randn(shape, generator=generator).to(x)
            scalar = (outputs[:, position] * direction).sum()
            (gradient,) = torch.autograd.grad(scalar, x, retain_graph=True)
            squares += gradient.double().square().sum(-1)
        rows.append((squares / projections).sqrt())
    return torch.stack(rows, 1)


def profile(rows: Tensor, positions: Tensor, real: Tensor) -> Profile:
    """Return the influence by distance; every row has the same weight.

    Args:
        rows: `(B, P, N)`, as `influence` returns them.
        positions: `(P,)`: the output position of each row.
        real: `(B, N)`: whether each token is real; rows of other tokens are left out.

    Raises:
        ValueError: No row is that of a real token, or a row has no influence at all.
    """
    chosen = real[:, positions]  # (B, P)
    kept = rows[chosen]  # (R, N)
    if not len(kept):
        raise ValueError("no position is that of a real token")
    totals = kept.sum(-1, keepdim=True)
    if not bool((totals > 0).all()):
        raise ValueError("an output depends on no input")
    length = rows.shape[-1]
    distances = (positions[:, None] - torch.arange(length)).abs()  # (P, N)
    distances = distances.expand(len(real), -1, -1)[chosen]
    weights = torch.zeros(length, dtype=torch.float64)
    weights.index_add_(0, distances.flatten(), (kept / totals).flatten().double().cpu())
    return Profile((weights / len(kept)).numpy())


def measure(
    model: Model, tokens: Tensor, mask: Tensor | None, positions: int, projections: int, seed: int
) -> Profile:
    """Return how far a model looks on some inputs.

    Args:
        model: In evaluation mode.
        tokens: `(B, N)` int64; either sequence of a pair.
        mask: `(B, N)` bool, or None if all tokens are real.
        positions: Number of output positions, evenly spread over the shortest sequence.
        projections: See `influence`.
        seed: Seed of the random directions.
    """
    encoder = model.encoder
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    shortest = int(real.sum(1).min())
    chosen = torch.linspace(0, shortest - 1, min(positions, shortest)).round().long()
    generator = torch.Generator().manual_seed(derive(seed, "reach"))

    def states(x: Tensor) -> Tensor:
        return encoder.states(x, mask)

    x = encoder.embedding(tokens)
    front = x.shape[1] - tokens.shape[1]  # a token that pooling puts in front
    rows = influence(states, x, (chosen + front).tolist(), projections, generator)
    return profile(rows[..., front:], chosen, real.cpu())


def table(profiles: dict[str, Profile]) -> Table:
    """Return one row per model: mean and median distance, and the shares beyond `BEYOND`."""
    header = ["model", "mean distance", "median", *(f"beyond {d:,}" for d in BEYOND)]
    rows = [header]
    for name, each in profiles.items():
        shares = [
            f"{each.beyond(distance):.1%}" if distance < len(each.weights) else "-"
            for distance in BEYOND
        ]
        rows.append([name, f"{each.mean:,.1f}", f"{each.median:,}", *shares])
    return rows


def draw(profiles: dict[str, Profile], file: Path) -> None:
    """Draw the share of influence by distance, in bins that double, one line per model.

    Args:
        profiles: By name; each trained model is followed by the same model at initialisation,
            which is dashed and has the same colour.
        file: PNG or SVG to write.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from lra.report.figure import MARKERS

    # The legend is below the panel, two names per line, so that many runs do not narrow the panel.
    height = 3.8 + 0.18 * -(-len(profiles) // 2)
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axis = figure.subplots()
    trained = -1
    for name, each in profiles.items():
        trained += not name.endswith(UNTRAINED)
        centres, shares = each.binned()
        style = "--" if name.endswith(UNTRAINED) else "-"
        # The colours repeat after ten runs, the markers do not.
        colour, marker = f"C{trained}", MARKERS[trained // 10 % len(MARKERS)]
        axis.plot(
            centres, 100 * shares, style, color=colour, marker=marker, markersize=3, label=name
        )
    axis.set_xscale("symlog", base=2, linthresh=1)
    axis.set_xlabel("distance, tokens (bins double)")
    axis.set_ylabel("share of the influence, %")
    axis.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    with matplotlib.rc_context({"svg.hashsalt": "lra"}):
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)


def longest_inputs(
    config: Config, model: Model, examples: int, fingerprint: str
) -> tuple[Tensor, Tensor | None]:
    """Return the longest of a cell's test inputs, `(B, N)`, and their mask.

    Args:
        config: The cell.
        model: Its model, on the device where the inputs are wanted.
        examples: Number of inputs; see `longest`.
        fingerprint: Fingerprint of the data that the model was trained on.

    Raises:
        ConfigError: The data are different.
        DataError: Its data are missing.
    """
    task = build_task(config)
    data = cache.load(config.task.name, task, Path(config.cache_dir), config.raw_data_dir())
    check_same_data(data.fingerprint, fingerprint)
    return longest(batches_for(config, task, model, data.splits["test"]), examples)


def longest(batches: Batches, number: int) -> tuple[Tensor, Tensor | None]:
    """Return the longest sequences of a split, `(B, N)`, the longest last, and their mask.

    Args:
        batches: Batches of the split.
        number: Number of sequences, B; both of a pair count. If there are fewer, all of them.
    """
    lengths = batches.every_length  # (examples, S)
    order = lengths.flatten().argsort(kind="stable")[-number:]
    rows, places = np.divmod(order, lengths.shape[1])
    batch = batches.gather(rows)
    chosen = torch.from_numpy(np.arange(len(rows)) * lengths.shape[1] + places)
    mask = None if batch.mask is None else batch.mask.flatten(0, -2)[chosen]
    return batch.tokens.flatten(0, -2)[chosen], mask


def check_out(file: Path) -> None:
    """Refuse a picture file that could not be written, before anything is measured.

    Raises:
        ConfigError: It lacks the suffix of a picture, or its folder does not exist.
    """
    if file.suffix not in (".png", ".svg"):
        raise ConfigError(f"--out {file}: must end in .png or .svg")
    if not file.parent.is_dir() or file.is_dir():
        what = f"{file} is a folder" if file.is_dir() else f"there is no folder {file.parent}"
        raise ConfigError(f"--out {file}: {what}; name a file in an existing folder")


def named(folders: Sequence[Path], configs: Sequence[Config]) -> list[str]:
    """Return the names of runs: their cells, and their folders if the cells are ambiguous."""
    cells = [config.cell for config in configs]
    return [
        cell if cells.count(cell) == 1 else f"{cell}, {folder}"
        for cell, folder in zip(cells, folders, strict=True)
    ]


def profiles_of(args: argparse.Namespace) -> dict[str, Profile]:
    """Measure the runs of a command line, each as trained and as initialised.

    Raises:
        ConfigError: A run has no result, there is no such device, or the data are different.
        DataError: The data of a run are missing.
        ValueError: A model has no influence to measure.
    """
    device = resolve_device(args.device)
    folders = list(dict.fromkeys(run_folders(args.runs)))
    loaded = [load_run(folder) for folder in folders]
    names = named(folders, [config for config, _, _ in loaded])
    profiles: dict[str, Profile] = {}
    for name, (config, record, trained) in zip(names, loaded, strict=True):
        config = replace(config, data_dir=args.data_dir, cache_dir=args.cache_dir)
        chosen = f"{name}, update {record.best_step:,}"
        models = {chosen: trained, f"{name}{UNTRAINED}": build_model(config)}
        for label, model in models.items():
            model.to(device).eval()
            inputs = longest_inputs(config, model, args.examples, record.data_fingerprint)
            counts = (args.positions, args.projections, config.seed)
            profiles[label] = measure(model, *inputs, *counts)
    return profiles


def main() -> None:
    """Measure the runs that the command line names."""
    parser = command_parser("reach", __doc__)
    parser.add_argument("runs", nargs="+", help="key=value, as for lra train, or run folders")
    parser.add_argument("--examples", type=int, default=4, help="test inputs (%(default)s)")
    parser.add_argument("--positions", type=int, default=16, help="output positions (%(default)s)")
    parser.add_argument(
        "--projections", type=int, default=4, help="random directions (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="PNG or SVG file for a picture of all runs")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:<index> (%(default)s)")
    parser.add_argument("--data-dir", help="folder of raw data; overrides LRA_DATA_DIR")
    parser.add_argument("--cache-dir", default=cache_dir(), help="folder of built data sets")
    args = parser.parse_args()
    for name in ("examples", "positions", "projections"):
        if (value := getattr(args, name)) < 1:
            parser.error(f"--{name} {value}: must be at least 1")
    with refused(ValueError, DataError):
        if args.out:
            check_out(args.out)
        profiles = profiles_of(args)
        print(markdown(table(profiles)))
        if args.out:
            with writing("--out", args.out.parent, f"writing {args.out.name}"):
                draw(profiles, args.out)
            print(f"Picture: {args.out}")


if __name__ == "__main__":
    run(main)
