"""Read CIFAR-10 (Krizhevsky 2009) in any of the forms in which it is distributed.

All four forms give the same pixels in the same order, that of the official batch files: parquet as
on the hub, the publisher's pickles, the publisher's binary files, or the hub itself.
"""

import hashlib
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lra.bar import progress_bar
from lra.tasks import DataError, Source, raw
from lra.tasks.hub import HubFile, columns_of, load_rows, parquet_files, whole_number

HUB = HubFile("uoft-cs/cifar10", "0b2714987fa478483af9968de7c934580d0bb9a2")
FOLDERS = {"pickle": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}
PICKLE_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
COLUMNS = {"img": ("img", "image"), "label": ("label",)}
SIZES = {"train": 50_000, "test": 10_000}
# The published images, as far as this project has seen them: it knows 93 of them only from a copy
# that went through JPEG.
UNSEEN = {
    "train": (
        "4298 5949 7066 7237 7248 7630 8006 8831 8968 9415 12762 12834 13546 21493 25728 "
        "26098 26927 27621 28435 28728 29694 29747 31066 31367 31462 31625 31663 32777 "
        "33641 33661 34067 34276 34387 34825 35160 35646 36733 37329 37474 37567 38384 "
        "38925 39358 39385 39613 39840 39888 39971 41779 42004 42389 42611 43357 43883 "
        "44882 45168 45240 46175 46435 46538 46624 47393 47597 48081 48124 48333 48821 "
        "48836 49321 49429 49631 49830 49857"
    ),
    "test": (
        "1259 1369 1422 2245 2737 2935 3695 3718 4085 4496 5791 5896 6286 7580 7707 7724 "
        "7832 8117 8551 9254"
    ),
}
# By part: sha256 over the labels and all other images, and over the unseen images in that copy.
SEEN_SHA256 = {
    "train": "83c9dbd36d2da660edb317377d83201a0a93abc073b2e6490d065ab9fdca3434",
    "test": "ebbe6fa571827c77408326def945e4311cfbed67d9d15d4bb217347f595d2af2",
}
JPEG_SHA256 = {
    "train": "3f45bdf5af4268faf180bc628e206a8aa6188f5e5b2bad66ed9c8eebb741c394",
    "test": "eee346b04af1daa4d17c62d4410d0d7fe43231c81d80ff15c2fcdc7477c032f7",
}
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


def locate(data_dir: Path | None) -> Source:
    """Find CIFAR-10 under `data_dir`, else name the hub.

    The folders `data_dir/cifar10` and `data_dir` are searched for parquet files `train-*` and
    `test-*` (also in `plain_text`), `cifar-10-batches-py` and `cifar-10-batches-bin`; each of these
    folders may be `data_dir` itself.

    Raises:
        DataError: The folder does not exist, or holds only a part of the images.
    """
    raw.check_data_dir(data_dir)
    if data_dir is not None:
        for folder in (data_dir / "cifar10", data_dir):
            for form, files in _forms(folder).items():
                if files and all(file.is_file() for file in files):
                    found, place = raw.signature(files[0].parent, files), f"in {files[0].parent}"
                    return Source("published", f"CIFAR-10 {form} files", files, found, place)
        for folder in (data_dir / "cifar10", data_dir):
            for files in _forms(folder).values():
                raw.check_part("CIFAR-10", files)
        raw.check_strays("CIFAR-10", data_dir, ("cifar10", "."), FOLDERS.values())
    reason = f"because nothing was found under data_dir {data_dir}" if data_dir else ""
    return Source("published", f"CIFAR-10 from the hub, {HUB}", (), str(HUB), reason)


def _forms(folder: Path) -> dict[str, tuple[Path, ...]]:
    parquet: tuple[Path, ...] = ()
    for place in (folder / "plain_text", folder):
        parts = {part: parquet_files(place, part) for part in SIZES}
        files = parts["train"] + parts["test"]
        columns = columns_of(files[0]) if files else ()
        if "fine_label" in columns and "label" not in columns:
            raise DataError(f"{place} has {', '.join(columns)}: that is CIFAR-100, not CIFAR-10")
        # The files of IMDb have the same names.
        if files and "text" not in columns:
            lacking = tuple(place / f"{part}-*.parquet" for part in SIZES if not parts[part])
            parquet = files + lacking
            break
    places = {
        form: folder if folder.absolute().name == name else folder / name
        for form, name in FOLDERS.items()
    }
    return {
        "parquet": parquet,
        "pickle": tuple(places["pickle"] / name for name in PICKLE_MD5),
        "binary": tuple(places["binary"] / f"{name}.bin" for name in PICKLE_MD5),
    }


def verdict(source: Source, part: str, images: Images, labels: Labels) -> str:
    """Return how the content of a part differs from the published one; empty if it does not.

    Args:
        source: Source of the part; the publisher's pickles are recognised by their MD5.
        part: `train` or `test`.
        images: Images as `read` returns them.
        labels: Labels as `read` returns them.
    """
    if source.files and source.files[0].name in PICKLE_MD5:
        return ""
    seen, unseen = digests(part, images, labels)
    if seen != SEEN_SHA256[part]:
        return "of other images or labels than published"
    if unseen == JPEG_SHA256[part]:
        return f"of which {len(UNSEEN[part].split())} in {part} went through JPEG"
    return ""


def digests(part: str, images: Images, labels: Labels) -> tuple[str, str]:
    """Return the sha256 of the labels and the images known for certain, and of the other images."""
    certain = np.ones(len(labels), bool)
    certain[[row for row in map(int, UNSEEN[part].split()) if row < len(labels)]] = False
    seen = hashlib.sha256(labels.astype(np.uint8).tobytes())
    seen.update(images[certain].tobytes())
    return seen.hexdigest(), hashlib.sha256(images[~certain].tobytes()).hexdigest()


def read(source: Source, part: str) -> tuple[Images, Labels]:
    """Read the images and labels of a part.

    Args:
        source: The source that `locate` found.
        part: `train` or `test`.

    Returns:
        Images `(num_images, 1024, 3)`, red, green and blue of each pixel, row by row, and labels
        `(num_images,)`, 0 to 9.

    Raises:
        DataError: A file is damaged or not what it should be, or the hub cannot be reached.
    """
    files = [file for file in source.files if file.name.startswith("test") == (part == "test")]
    if not files or files[0].suffix == ".parquet":
        images, labels = _decode(part, load_rows(HUB, files, part, COLUMNS))
    else:
        load = _read_binary if files[0].suffix == ".bin" else _read_pickle
        planes = np.concatenate([load(file) for file in files])
        images = planes[:, 1:].reshape(-1, 3, SIDE * SIDE).transpose(0, 2, 1)
        labels = planes[:, 0].astype(np.int64)
    if len(labels) != SIZES[part]:
        raise DataError(f"{source}: {len(labels)} {part} images, CIFAR-10 has {SIZES[part]}")
    if wrong := np.flatnonzero((labels < 0) | (labels > 9)).tolist():
        raise DataError(
            f"{source}, {part} image {wrong[0]}: label {labels[wrong[0]]}, should be 0 to 9"
        )
    return images, labels


def _decode(part: str, rows: Iterator[tuple[str, dict[str, Any]]]) -> tuple[Images, Labels]:
    size = SIZES[part]
    images, labels = np.empty((size, SIDE * SIDE, 3), np.uint8), np.empty(size, np.int64)
    count = 0
    for where, row in progress_bar(rows, f"CIFAR-10 {part}", size, unit="images"):
        pixels = _pixels(where, row["img"])
        if (label := whole_number(row["label"])) is None:
            raise DataError(f"{where}: label {row['label']!r}, should be 0 to 9")
        if count < size:
            # The caller reports labels out of range, with their index.
            images[count], labels[count] = pixels, max(-1, min(label, 99))
        count += 1
    # The caller reports it if there are too many or too few rows.
    return images, labels if count == size else np.zeros(count, np.int64)


def _pixels(where: str, stored: Any) -> NDArray[np.uint8]:
    """Return the `(1024, 3)` pixels of a stored picture."""
    # Imported only when pictures are read.
    from lra.tasks.picture import opened

    content = stored.get("bytes") if isinstance(stored, dict) else stored
    if not isinstance(content, bytes):
        raise DataError(
            f"{where}: an image without bytes; only files that contain their images will do"
        )
    try:
        with opened(content) as picture:
            shape = (picture.height, picture.width, len(picture.getbands()))
            if picture.size == (SIDE, SIDE):
                return np.asarray(picture.convert("RGB")).reshape(-1, 3)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    raise DataError(f"{where}: image of shape {shape}, should be (32, 32, 3)")


def _read_binary(file: Path) -> NDArray[np.uint8]:
    records = np.fromfile(file, np.uint8)
    if len(records) != 10_000 * RECORD:
        raise DataError(f"{file}: {len(records)} bytes, should be {10_000 * RECORD}")
    return records.reshape(-1, RECORD)


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuild NumPy arrays and nothing else, since a pickle can otherwise run any code."""

    _NAMES = ("_reconstruct", "ndarray", "dtype")

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy") and (
            name in self._NAMES
        ):
            # NumPy 2 moved the module that older pickles name.
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"holds an object of the foreign class {module}.{name}")


def _read_pickle(file: Path) -> NDArray[np.uint8]:
    content = file.read_bytes()
    if (md5 := hashlib.md5(content).hexdigest()) != PICKLE_MD5[file.name]:
        raise DataError(f"{file}: md5 {md5}, should be {PICKLE_MD5[file.name]}: not the original")
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        labels = np.array(batch[b"labels"], np.uint8)
        return np.concatenate([labels[:, None], batch[b"data"]], 1)
    except (pickle.UnpicklingError, KeyError, EOFError, ValueError, IndexError) as error:
        raise DataError(f"{file}: not a CIFAR-10 batch ({error})") from error
