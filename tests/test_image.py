"""Image: grey values, and the same content from every form in which CIFAR-10 is distributed."""

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image as Picture

from lra.tasks import DataError, cache, cifar10, image
from lra.tasks.image import Image, grey

BATCH = 10_000


@pytest.fixture(scope="module")
def content() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return labels and planes of six batch files, mostly alike so that they are fast to write."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 6 * BATCH).astype(np.uint8)
    planes = np.tile(rng.integers(0, 256, (60, 3072)), (BATCH // 10, 1)).astype(np.uint8)
    return labels, planes


def write_binary(folder: Path, labels: NDArray[np.uint8], planes: NDArray[np.uint8]) -> None:
    target = folder / "cifar10" / "cifar-10-batches-bin"
    target.mkdir(parents=True)
    for index, name in enumerate(cifar10.PICKLE_MD5):
        part = slice(index * BATCH, (index + 1) * BATCH)
        np.concatenate([labels[part, None], planes[part]], 1).tofile(target / f"{name}.bin")


def write_pickle(folder: Path, labels: NDArray[np.uint8], planes: NDArray[np.uint8]) -> None:
    target = folder / "cifar-10-batches-py"
    target.mkdir(parents=True)
    for index, name in enumerate(cifar10.PICKLE_MD5):
        part = slice(index * BATCH, (index + 1) * BATCH)
        batch = {b"labels": labels[part].tolist(), b"data": planes[part]}
        (target / name).write_bytes(pickle.dumps(batch, protocol=2))


def write_parquet(folder: Path, labels: NDArray[np.uint8], planes: NDArray[np.uint8]) -> None:
    target = folder / "cifar10" / "plain_text"
    target.mkdir(parents=True)
    encoded: dict[bytes, bytes] = {}
    for row in planes[:60]:
        file = io.BytesIO()
        pixels = row.reshape(3, 32, 32).transpose(1, 2, 0)
        Picture.fromarray(pixels).save(file, "PNG", compress_level=0)
        encoded[row.tobytes()] = file.getvalue()
    for name, part in {"train": slice(0, 5 * BATCH), "test": slice(5 * BATCH, None)}.items():
        images = [{"bytes": encoded[row.tobytes()], "path": None} for row in planes[part]]
        table = pa.table({"img": images, "label": labels[part].astype(np.int64)})
        pq.write_table(table, target / f"{name}-00000-of-00001.parquet")


FORMS: dict[str, Callable[..., None]] = {
    "binary": write_binary,
    "pickle": write_pickle,
    "parquet": write_parquet,
}


@pytest.mark.slow
def test_every_form_gives_the_same_fingerprint(
    tmp_path: Path,
    content: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prints = set()
    for form, write in FORMS.items():
        folder = tmp_path / form
        write(folder, *content)
        if form == "pickle":
            for name in cifar10.PICKLE_MD5:
                digest = hashlib.md5((folder / "cifar-10-batches-py" / name).read_bytes())
                monkeypatch.setitem(cifar10.PICKLE_MD5, name, digest.hexdigest())
        data = cache.load("image", Image(), tmp_path / "cache", folder)
        assert form in data.source.description
        assert [len(data.splits[name]) for name in cache.SPLITS] == [45_000, 5_000, 10_000]
        prints.add(data.fingerprint)
    assert len(prints) == 1


def test_grey_follows_the_weights_with_truncation_at_255_5() -> None:
    colours = np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]])
    # .2989, .5870, .1140 of 255, scaled by 255.5 / 255: 76.37, 149.98, 29.13; white by .9999.
    assert grey(colours.astype(np.uint8)).tolist() == [[255, 0, 76, 149, 29]]


def test_grey_of_every_level_is_that_level_or_one_below() -> None:
    levels = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    difference = np.arange(256) - grey(levels)[0].astype(int)
    assert set(difference.tolist()) <= {0, 1}


def test_a_pickle_with_a_different_md5_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in cifar10.PICKLE_MD5:
        (folder / name).write_bytes(b"something else")
    with pytest.raises(DataError, match="data_batch_1: md5 .* should be c99cafc1"):
        cifar10.read(cifar10.locate(tmp_path), "train")


class Foreign:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("1 / 0",))


def test_a_pickle_with_a_foreign_class_is_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    content = pickle.dumps(Foreign())
    for name in cifar10.PICKLE_MD5:
        (folder / name).write_bytes(content)
        monkeypatch.setitem(cifar10.PICKLE_MD5, name, hashlib.md5(content).hexdigest())
    with pytest.raises(DataError, match=r"data_batch_1.*foreign class builtins\.eval"):
        cifar10.read(cifar10.locate(tmp_path), "train")


def test_a_binary_file_of_the_wrong_size_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in cifar10.PICKLE_MD5:
        (folder / f"{name}.bin").write_bytes(b"\0" * 3073)
    with pytest.raises(DataError, match=r"data_batch_1\.bin: 3073 bytes, should be 30730000"):
        cifar10.read(cifar10.locate(tmp_path), "train")


def parquet_of(folder: Path, rows: list[dict[str, object]]) -> Path:
    for part in cifar10.SIZES:
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}-0.parquet")
    return folder


def png(size: tuple[int, int]) -> dict[str, object]:
    file = io.BytesIO()
    Picture.new("RGB", size).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"img": png((32, 32)), "label": 3}], "1 test images, CIFAR-10 has 10000"),
        (
            [{"img": png((32, 32)), "label": 3}, {"img": png((8, 8)), "label": 3}],
            r"test-0\.parquet, row 1: image of shape \(8, 8, 3\)",
        ),
        (
            [{"img": {"bytes": png((32, 32))["bytes"][:60], "path": None}, "label": 3}],
            r"test-0\.parquet, row 0: not a readable image",
        ),
        ([{"img": png((32, 32))}], r"test-0\.parquet: no column 'label'"),
    ],
)
def test_bad_rows_of_a_parquet_file_are_named(
    tmp_path: Path, rows: list[dict[str, object]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        cifar10.read(cifar10.locate(parquet_of(tmp_path, rows)), "test")


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    for part in cifar10.SIZES:
        (tmp_path / f"{part}-0.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"test-0\.parquet: not a readable parquet file"):
        cifar10.read(cifar10.locate(tmp_path), "test")


def test_a_label_outside_the_classes_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cifar10.SIZES, "test", 2)
    rows = [{"img": png((32, 32)), "label": label} for label in (9, 10)]
    with pytest.raises(DataError, match="test image 1: label 10, should be 0 to 9"):
        cifar10.read(cifar10.locate(parquet_of(tmp_path, rows)), "test")


def test_without_files_the_hub_is_asked_and_its_failure_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def unreachable(*arguments: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    source = cifar10.locate(tmp_path)
    assert "hub" in source.description
    with pytest.raises(DataError, match=r"Couldn't reach.*data_dir/cifar10/plain_text/train-\*"):
        cifar10.read(source, "train")


def test_rows_from_the_hub_are_read_as_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setitem(cifar10.SIZES, "test", 2)
    monkeypatch.setattr(image, "NUM_TRAIN", 1)
    rows = [{"img": png((32, 32)), "label": label} for label in (4, 5)]
    parquet_of(tmp_path, rows)
    expected = cifar10.read(cifar10.locate(tmp_path), "test")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    stored = datasets.Dataset.from_list(rows, features=features)
    asked = {}

    def load_dataset(name: str, *, revision: str, split: str) -> object:
        asked.update(name=name, revision=revision, split=split)
        return stored

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    actual = cifar10.read(cifar10.locate(None), "test")
    assert asked == {"name": "uoft-cs/cifar10", "revision": cifar10.HUB.revision, "split": "test"}
    assert all((a == b).all() for a, b in zip(actual, expected, strict=True))


@pytest.mark.slow
def test_the_real_cifar10_has_its_known_statistics(tmp_path: Path, raw_data_dir: Path) -> None:
    source = cifar10.locate(raw_data_dir)
    images, labels = cifar10.read(source, "train")
    assert np.bincount(labels).tolist() == [5_000] * 10
    means = images.mean((0, 1))
    # The copy at hand has 73 images that went through JPEG, hence the tolerance.
    assert means == pytest.approx([125.307, 122.950, 113.865], abs=0.005)
