from pathlib import Path

import numpy as np
import pytest

from lra.tasks import cache
from lra.tasks.stand_ins.image import ImageStandIn

# A change to the generator changes every number made with it: raise its version as well.
FINGERPRINT = "a5b785891a9a501ee5ca30b12d38dc8be2152d9f38a354aa0254475e8cadfd44"


def images(tmp_path: Path) -> cache.Dataset:
    return cache.load("image", ImageStandIn(num_train=600, num_test=400), tmp_path)


def test_every_image_has_the_same_histogram(tmp_path: Path) -> None:
    pixels = images(tmp_path).splits["train"].tokens.reshape(-1, 256)
    assert (np.sort(pixels, 1) == np.sort(pixels[0])).all()
    assert len(np.unique(pixels[0])) == 16


def test_classes_can_be_distinguished_by_the_positions_of_the_levels(tmp_path: Path) -> None:
    splits = images(tmp_path).splits
    train, test = splits["train"], splits["test"]
    features, labels = train.tokens.reshape(-1, 256).astype(float), train.labels
    centres = np.stack([features[labels == kind].mean(0) for kind in range(10)])
    distances = ((test.tokens.reshape(-1, 1, 256).astype(float) - centres) ** 2).sum(2)
    assert (distances.argmin(1) == test.labels).mean() > 0.5


def test_classes_are_balanced_and_splits_differ(tmp_path: Path) -> None:
    splits = images(tmp_path).splits
    assert np.bincount(splits["train"].labels, minlength=10).min() > 30
    sequences = [row.tobytes() for s in splits.values() for row in s.tokens.reshape(-1, 256)]
    assert len(set(sequences)) == len(sequences)


def test_the_bytes_are_the_same_on_every_machine(tmp_path: Path) -> None:
    assert images(tmp_path).fingerprint == FINGERPRINT


@pytest.mark.parametrize("options", [{"side": 6}, {"side": 4096}, {"num_train": 0}])
def test_an_option_out_of_range_is_named(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"task.options.{next(iter(options))}="):
        ImageStandIn(**options)
