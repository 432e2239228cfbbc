"""Pathfinder: the published layout, the same division on every machine, and generated images."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lra.tasks import DataError, cache, pathfinder
from lra.tasks.pathfinder import Pathfinder, generator, read_image

NUM_IMAGES = 30
TASK = Pathfinder(num_images=NUM_IMAGES)
SKIP = Pathfinder(num_images=NUM_IMAGES, on_bad_row="skip")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pathfinder, "NUM_IMAGES", NUM_IMAGES)


def pixels(index: int, size: int = 32) -> NDArray[np.uint8]:
    image = np.zeros((size, size), np.uint8)
    image[0, 0], image[index % size, 1] = index, 200
    return image


def write(
    data_dir: Path,
    place: str = "pathfinder",
    size: int = 32,
    level: str = "curv_contour_length_14",
) -> Path:
    """Write 30 images in the published layout: batches 0, 2 and 10, in numerical order."""
    folder = data_dir / place / f"pathfinder{size}" / level
    (folder / "metadata").mkdir(parents=True)
    for batch, start in (("0", 0), ("2", 10), ("10", 20)):
        (folder / "imgs" / batch).mkdir(parents=True)
        lines = []
        for index in range(10):
            name = f"sample_{index}.png"
            Image.fromarray(pixels(start + index, size)).save(folder / "imgs" / batch / name)
            label = (start + index) % 3 == 0
            lines.append(f"imgs/{batch} {name} {index} {label:d} 1.0 14 4 2 0.5 1 2")
        (folder / "metadata" / f"{batch}.npy").write_text("\n".join(lines) + "\n")
    return folder


def content(data: cache.Dataset) -> dict[str, list[tuple[int, int]]]:
    """Return the first pixel of every image, which identifies it, and its label."""
    return {
        name: [
            (int(split.tokens[start]), int(label))
            for start, label in zip(split.offsets[:-1], split.labels, strict=True)
        ]
        for name, split in data.splits.items()
    }


def load(tmp_path: Path, task: Pathfinder = TASK) -> cache.Dataset:
    return cache.load("pathfinder", task, tmp_path / "cache", tmp_path)


def test_every_image_is_read_with_the_label_in_its_fourth_field(tmp_path: Path) -> None:
    write(tmp_path)
    data = load(tmp_path)
    # A third of them have label 1, unlike any published images.
    assert data.source.kind == "other" and "33% of which have label 1" in data.source.description
    rows = [row for part in content(data).values() for row in part]
    assert sorted(rows) == [(index, int(index % 3 == 0)) for index in range(NUM_IMAGES)]
    assert set(data.splits["train"].lengths.tolist()) == {32 * 32}
    train = data.splits["train"]
    assert (train.tokens[:1024] == pixels(int(train.tokens[0])).ravel()).all()


def test_eight_tenths_are_for_training_and_chosen_by_the_seed_alone(tmp_path: Path) -> None:
    folder = write(tmp_path)
    first = content(load(tmp_path))
    assert [len(first[name]) for name in ("train", "validation", "test")] == [24, 3, 3]
    # Sorted by batch number, not by name as text, and not simply the first ones in that order.
    order = [index for index, _ in first["train"]]
    assert order == sorted(order) and order != list(range(24))
    other = content(load(tmp_path, Pathfinder(num_images=NUM_IMAGES, data_seed=1)))
    assert other["test"] != first["test"]
    # The same images in a different place, as on another machine.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder.parents[1].rename(elsewhere / "pathfinder")
    assert content(load(elsewhere)) == first


@pytest.mark.parametrize(
    ("place", "size", "length"),
    [
        ("pathfinder", 32, 14),
        ("", 64, 9),
        ("lra_release", 128, 14),
        ("lra_release/lra_release", 256, 6),
    ],
)
def test_images_are_found_by_size_and_difficulty(
    tmp_path: Path, place: str, size: int, length: int
) -> None:
    levels = {14: "curv_contour_length_14", 9: "curv_contour_length_9", 6: "curv_baseline"}
    folder = write(tmp_path, place, size, levels[length])
    task = Pathfinder(size=size, contour_length=length, num_images=NUM_IMAGES)
    source = task.locate(tmp_path)
    assert (source.kind, str(source)) == ("published", f"published images, in {folder}")
    assert TASK.locate(tmp_path).kind == ("published" if size == 32 else "generated")
    assert Pathfinder(num_images=20).locate(tmp_path).kind == "generated"


def test_other_levels_alone_are_no_reason_to_generate_images_unasked(tmp_path: Path) -> None:
    folder = write(tmp_path, level="curv_baseline")
    for place in (tmp_path, folder.parent, folder):
        with pytest.raises(DataError, match="pathfinder32 lacks curv_contour_length_14; task.opt"):
            Pathfinder(num_images=30).locate(place)
    assert Pathfinder(num_images=30, source="generated").locate(tmp_path).kind == "generated"


def test_a_link_to_the_folder_of_a_size_is_found_by_its_own_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "store")
    folder.parent.rename(tmp_path / "store" / "renamed")
    link = tmp_path / "pathfinder32"
    link.symlink_to(tmp_path / "store" / "renamed")
    assert Pathfinder(num_images=30).locate(link).kind == "published"


def test_of_two_path_x_folders_the_inner_one_is_read(tmp_path: Path) -> None:
    for place in ("lra_release", "lra_release/lra_release"):
        inner = write(tmp_path, place, 128)
    source = Pathfinder(size=128, num_images=NUM_IMAGES).locate(tmp_path)
    assert str(source) == f"published images, in {inner}"


def replace_line(folder: Path, line: int, text: str) -> None:
    file = folder / "metadata" / "2.npy"
    lines = file.read_text().splitlines()
    lines[line - 1] = text
    file.write_text("\n".join(lines) + "\n")


def truncate(folder: Path, share: float) -> None:
    file = folder / "imgs" / "2" / "sample_3.png"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


def save(folder: Path, mode: str, size: tuple[int, int]) -> None:
    Image.new(mode, size).save(folder / "imgs" / "2" / "sample_3.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: replace_line(f, 4, "imgs/2 sample_3.png 3"), "3 columns, should be 4 or more"),
        (lambda f: replace_line(f, 4, ""), "0 columns, should be 4 or more"),
        (lambda f: replace_line(f, 4, " "), "0 columns, should be 4 or more"),
        (
            lambda f: replace_line(f, 4, "imgs/2 sample_3.png 3 2 1.0"),
            "label b'2' in column 4, should be 0 or 1",
        ),
        (lambda f: truncate(f, 0.0), r"sample_3\.png: not a readable image"),
        (lambda f: truncate(f, 0.2), r"sample_3\.png: not a readable image"),
        (lambda f: truncate(f, 0.6), r"sample_3\.png: not a readable image"),
        (lambda f: truncate(f, 0.8), r"sample_3\.png: not a readable image"),
        (lambda f: (f / "imgs/2/sample_3.png").unlink(), r"sample_3\.png: not a readable image"),
        (lambda f: save(f, "RGB", (32, 32)), r"sample_3\.png: RGB of shape .*should be L of"),
        (lambda f: save(f, "L", (32, 31)), r"L of shape \(31, 32\), should be L of \(32, 32\)"),
    ],
)
def test_a_bad_row_is_named_or_left_out_and_counted(
    tmp_path: Path, damage: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path)
    whole = content(load(tmp_path))
    damage(folder)
    # Use a different cache, since the size of the metadata may be the same as before.
    build = partial(cache.load, "pathfinder", cache_dir=tmp_path / "other", data_dir=tmp_path)
    with pytest.raises(DataError, match=rf"2\.npy, line 4: .*{message}"):
        build(task=TASK)
    with caplog.at_level(logging.WARNING):
        data = build(task=SKIP)
    assert sum(data.num_skipped.values()) == 1 and "2.npy, line 4" in caplog.text
    # All other images stay where they were.
    assert content(data) == {
        name: [row for row in rows if row[0] != 13] for name, rows in whole.items()
    }


def test_the_file_that_is_empty_in_the_archive_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = write(tmp_path, level="curv_baseline")
    known = folder / "imgs" / "0" / "sample_172.png"
    (folder / "imgs" / "0" / "sample_4.png").unlink()
    known.write_bytes(b"")
    file = folder / "metadata" / "0.npy"
    file.write_text(file.read_text().replace("sample_4.png", "sample_172.png"))
    data = load(tmp_path, Pathfinder(contour_length=6, num_images=NUM_IMAGES))
    assert sum(data.num_skipped.values()) == 1
    assert sum(map(len, data.splits.values())) == NUM_IMAGES - 1


def test_missing_or_unnumbered_metadata_is_reported(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "metadata" / "2.npy").unlink()
    with pytest.raises(DataError, match="metadata of 20 images, should be of 30"):
        load(tmp_path, SKIP)
    (folder / "metadata" / "2b.npy").write_text("")
    with pytest.raises(DataError, match=r"2b\.npy: metadata files are numbered"):
        load(tmp_path, SKIP)


def test_an_image_is_read_row_by_row(tmp_path: Path) -> None:
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(image).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", 8).tolist() == list(range(64))


def test_without_published_images_they_are_generated_and_split_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def generate_chunks(
        num_images: int, size: int, contour_length: int, seed: int, *, distractors: bool
    ) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.int64]]]:
        asked.append((num_images, size, contour_length, seed, distractors))
        for start in range(0, num_images, 7):
            indices = np.arange(start, min(start + 7, num_images))
            yield start, np.stack([pixels(i, size) for i in indices]), indices % 2

    monkeypatch.setattr(generator, "generate_chunks", generate_chunks)
    task = Pathfinder(size=64, contour_length=9, distractors=False, num_images=25, data_seed=3)
    data = load(tmp_path, task)
    assert asked == [(25, 64, 9, 3, False)] and data.source.kind == "generated"
    rows = [(index, index % 2) for index in range(25)]
    assert content(data) == {
        "train": rows[:20],
        "validation": rows[20:23],
        "test": rows[23:],
    }


def test_published_images_are_used_only_with_distractors(tmp_path: Path) -> None:
    write(tmp_path)
    assert TASK.locate(tmp_path).kind == "published"
    assert replace(TASK, distractors=False).locate(tmp_path).kind == "generated"
    assert replace(TASK, contour_length=10).locate(tmp_path).kind == "generated"
    with pytest.raises(DataError, match=f"only with num_images={NUM_IMAGES}, distractors=true"):
        replace(TASK, distractors=False, source="published").locate(tmp_path)


@pytest.mark.slow
def test_generated_images_fill_the_splits(tmp_path: Path) -> None:
    pytest.importorskip("lra.tasks.pathfinder")
    data = load(tmp_path, Pathfinder(num_images=500))
    assert [len(data.splits[name]) for name in cache.SPLITS] == [400, 50, 50]
    assert data.splits["train"].tokens.reshape(-1, 32, 32).max((1, 2)).tolist() == [255] * 400
    assert 0.4 < data.splits["train"].labels.mean() < 0.6


@pytest.mark.parametrize(
    "options",
    [
        {"size": 48},
        {"contour_length": 2},
        {"contour_length": 15},
        {"num_images": 9},
        {"data_seed": -1},
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"task.options.{next(iter(options))}="):
        Pathfinder(**options)
