"""Draw how training changed the filters of a WavSpA run.

    python scripts/plot_wavelets.py results/runs/mini/nystromformer/listops/wavspa/default/seed0

For every layer, it draws the channels that moved most, their frequency responses, and how far every
channel is from perfect reconstruction, before training (initialised again from the run's seed) and
after it. The pictures are written to `RUN/wavelets_layer<k>.png`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from numpy.typing import NDArray

from lra.build import build_model
from lra.cell import load_run
from models.encoder import Classifier, PairClassifier
from models.wavspa import FilterBank

Filters = NDArray[np.floating]

NUM_DRAWN = 6
NUM_FREQUENCIES = 256


def main() -> None:
    """Read the run that the command line names and draw its layers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="run folder, with result.json and best.pt")
    args = parser.parse_args()
    try:
        config, _, trained = load_run(args.run)
        layers = zip(filters_of(build_model(config)), filters_of(trained), strict=True)
    except ValueError as error:
        sys.exit(f"{error}")
    for index, (before, after) in enumerate(layers):
        file = args.run / f"wavelets_layer{index}.png"
        draw(before, after, file, f"{config.cell}, layer {index}")
        print(file)


def filters_of(model: Classifier | PairClassifier) -> list[Filters]:
    """Return the analysis lowpass filters `(F, C)` of every layer.

    Raises:
        ValueError: The layers have no such filters.
    """
    found = []
    for block in model.encoder.blocks:
        transform = getattr(block.attention, "transform", None)
        if not isinstance(transform, FilterBank):
            raise ValueError("this run has no wavelet filters: choose a wavspa run (not lifting)")
        found.append(transform.filters()[0].detach().numpy())
    return found


def draw(before: Filters, after: Filters, path: Path, title: str = "") -> None:
    """Draw a layer's filters before and after training to an image file.

    Args:
        before: Analysis lowpass filters `(F, C)` before training.
        after: The same after training.
        path: The image file, in any format that matplotlib supports.
        title: Title of the figure, such as the run and the layer.
    """
    moved = np.linalg.norm(after - before, axis=0)
    channels = np.argsort(-moved)[:NUM_DRAWN]
    figure, axes = pyplot.subplots(3, 2, figsize=(11, 10), sharey="row", constrained_layout=True)
    for column, (name, filters) in enumerate((("before", before), ("after", after))):
        _draw_taps(axes[0, column], filters, channels)
        _draw_responses(axes[1, column], filters, channels)
        axes[0, column].set_title(f"{name} training: the {len(channels)} channels that moved most")
    axes[0, 0].legend(fontsize="small", ncols=2)
    axes[0, 0].set_ylabel("dec_lo[m]")
    axes[1, 0].set_ylabel("|H|, lowpass solid, highpass dotted")
    grid = axes[2, 0].get_gridspec()
    for axis in axes[2]:
        axis.remove()
    _draw_distances(figure.add_subplot(grid[2, :]), before, after)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_taps(axis: Axes, filters: Filters, channels: NDArray[np.integer]) -> None:
    for channel in channels:
        axis.plot(filters[:, channel], marker="o", markersize=3, label=f"channel {channel}")
    axis.axhline(0, color="grey", linewidth=0.5)
    axis.set_xlabel("tap m")


def _draw_responses(axis: Axes, filters: Filters, channels: NDArray[np.integer]) -> None:
    low, high = responses(filters)
    omega = np.linspace(0, 1, NUM_FREQUENCIES)
    for index, channel in enumerate(channels):
        axis.plot(omega, low[:, channel], color=f"C{index}")
        axis.plot(omega, high[:, channel], color=f"C{index}", linestyle=":")
    axis.set_xlabel("frequency / half the sampling rate")


def _draw_distances(axis: Axes, before: Filters, after: Filters) -> None:
    for name, filters, marker in (("before", before, "."), ("after", after, "x")):
        # A distance that is only rounding is drawn at the bottom of the logarithmic axis.
        distance = np.maximum(reconstruction_distance(filters), 1e-8)
        axis.plot(distance, marker, label=f"{name}: median {np.median(distance):.1e}")
    axis.set_yscale("log")
    axis.set_xlabel("channel")
    axis.set_ylabel("max |P - 1|")
    axis.set_title("distance from perfect reconstruction, P = (|H(w)|² + |H(w + pi)|²) / 2")
    axis.legend()


def responses(filters: Filters) -> tuple[Filters, Filters]:
    """Compute the magnitudes of the lowpass and highpass responses.

    Args:
        filters: Analysis lowpass filters `(F, C)`.

    Returns:
        `|H(w)|` and `|H(w + pi)|` for w from 0 to pi, each `(frequencies, C)`; the second is the
        response of the highpass that `models.wavelet.filter_pair` derives.
    """
    omega = np.linspace(0, np.pi, NUM_FREQUENCIES)
    taps = np.arange(len(filters))
    low = np.abs(np.exp(-1j * np.outer(omega, taps)) @ filters)
    high = np.abs(np.exp(-1j * np.outer(omega + np.pi, taps)) @ filters)
    return low, high


def reconstruction_distance(filters: Filters) -> Filters:
    """Return each channel's largest deviation of one level's gain P from 1.

    Args:
        filters: Analysis lowpass filters `(F, C)`.

    Returns:
        `(C,)`; 0 exactly where the filter reconstructs perfectly.
    """
    low, high = responses(filters)
    distance: Filters = np.abs((low**2 + high**2) / 2 - 1).max(axis=0)
    return distance


if __name__ == "__main__":
    main()
