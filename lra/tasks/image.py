"""Image: CIFAR-10 in grey, read pixel by pixel (arXiv 2011.04006, section 2.2).

Colours are converted to grey with TensorFlow's weights, as in the published pipeline, to 1,024
symbols 0 to 255, row by row, with the intensity as token id. Of the 50,000 training images, in the
order of the official batch files, the first 45,000 are for training and the last 5,000 for
validation; the 10,000 test images are for testing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from lra.tasks import Source, Writer, cifar10

NUM_TRAIN = 45_000


def grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert colour to grey as TensorFlow's `rgb_to_grayscale` does on bytes.

    Floats in [0, 1] are weighted by .2989, .5870 and .1140, then scaled by 255.5 and truncated, all
    in float32. TensorFlow does not fix the order of the three additions, so a sum on the edge of a
    level may differ from TensorFlow's by one level.

    Args:
        images: `(num_images, pixels, 3)` bytes: red, green and blue.

    Returns:
        `(num_images, pixels)` bytes.
    """
    scaled = images.astype(np.float32) * np.float32(1 / 255)
    weights = np.array([0.2989, 0.5870, 0.1140], np.float32)
    red, green, blue = np.moveaxis(scaled * weights, -1, 0)
    levels: NDArray[np.float32] = (red + green + blue) * np.float32(255.5)
    return np.minimum(levels, np.float32(255)).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Image:
    """Options of the task.

    Args:
        source: `published` rejects any other images; None accepts whatever is there.
    """

    version: ClassVar[int] = 1
    id_shift: ClassVar[int] = 0
    younger: ClassVar[tuple[str, ...]] = ("source",)

    source: Literal["published"] | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of each split."""
        train, test = cifar10.SIZES["train"], cifar10.SIZES["test"]
        return {"train": NUM_TRAIN, "validation": train - NUM_TRAIN, "test": test}

    def locate(self, data_dir: Path | None) -> Source:
        """Find CIFAR-10 under `data_dir`, or name the hub; see `lra.tasks.cifar10.locate`."""
        return cifar10.locate(data_dir)

    def write(self, source: Source, splits: Mapping[str, Writer]) -> Source | None:
        """Write every split; see `lra.tasks.Task`."""
        verdicts = []
        for part, targets in (("train", ("train", "validation")), ("test", ("test", "test"))):
            images, labels = cifar10.read(source, part)
            for index, (pixels, label) in enumerate(zip(grey(images), labels, strict=True)):
                splits[targets[index >= NUM_TRAIN]].add(int(label), pixels)
            if verdict := cifar10.verdict(source, part, images, labels):
                verdicts.append(verdict)
        if not verdicts:
            return None
        found = " and ".join(verdicts)
        return replace(source, kind="other", description=f"{source.description} {found}")
