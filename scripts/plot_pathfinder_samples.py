"""Draw 16 generated Pathfinder images with their labels into a PNG.

python scripts/plot_pathfinder_samples.py samples.png --size 128
"""

import argparse
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from lra.tasks.pathfinder.generator import generate

ROWS, COLUMNS = 4, 4


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("path", type=Path, help="the PNG to write")
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--contour-length", type=int, default=14, help="dashes of a path")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    matplotlib.use("Agg")
    images, labels = generate(ROWS * COLUMNS, options.size, options.contour_length, options.seed)
    figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(9, 9.6), layout="constrained")
    for axis, image, label in zip(axes.flat, images, labels, strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(f"{label}: {'the same path' if label else 'different paths'}", fontsize=11)
        axis.set_axis_off()
    size, length = options.size, options.contour_length
    about = f"Pathfinder, {size} x {size} pixels, paths of {length} dashes"
    figure.suptitle(f"{about}: are both disks on the same path?")
    figure.savefig(options.path, dpi=120)


if __name__ == "__main__":
    main()
