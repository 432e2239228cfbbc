"""CIFAR-10 (Krizhevsky 2009) in any of the forms it is handed out in.

All four give the same pixels in the same order, that of the official batch files: parquet as on
the hub, the publisher's pickles, the publisher's binary files, or the hub itself.
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
from lra.tasks import DataError, Source, file_signature
from lra.tasks.hub import HubFile, load_rows

HUB = HubFile("uoft-cs/cifar10", "0b2714987fa478483af9968de7c934580d0bb9a2")
PICKLE_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
SIZES = {"train": 50_000, "test": 10_000}
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


def locate(data_dir: Path | None) -> Source:
    """Find CIFAR-10 under `data_dir`, else name the hub.

    Looked for, in `data_dir/cifar10` and in `data_dir`: parquet files `train-*` and `test-*`
    (also in `plain_text`), `cifar-10-batches-py`, `cifar-10-batches-bin`.
    """
    for folder in () if data_dir is None else (data_dir / "cifar10", data_dir):
        for form, files in _forms(folder).items():
            if files and all(file.is_file() for file in files):
                found, place = file_signature(files), f"in {files[0].parent}"
                return Source("published", f"CIFAR-10 {form} files", files, found, place)
    looked = f"as nothing was found under data_dir {data_dir}" if data_dir else ""
    return Source("published", f"CIFAR-10 from the hub, {HUB}", (), str(HUB), looked)


def _forms(folder: Path) -> dict[str, tuple[Path, ...]]:
    parquet: tuple[Path, ...] = ()
    for place in (folder / "plain_text", folder):
        parts = [sorted(place.glob(f"{part}-*.parquet")) for part in SIZES]
        if all(parts):
            parquet = tuple(parts[0] + parts[1])
            break
    return {
        "parquet": parquet,
        "pickle": tuple(folder / "cifar-10-batches-py" / name for name in PICKLE_MD5),
        "binary": tuple(folder / "cifar-10-batches-bin" / f"{name}.bin" for name in PICKLE_MD5),
    }


def read(source: Source, part: str) -> tuple[Images, Labels]:
    """Read the images and labels of a part.

    Args:
        source: What `locate` found.
        part: `train` or `test`.

    Returns:
        Images `(num_images, 1024, 3)`, red, green and blue of each pixel row by row, and labels
        `(num_images,)`, 0 to 9.

    Raises:
        DataError: A file is damaged or not what it should be, or the hub cannot be reached.
    """
    files = [file for file in source.files if file.name.startswith("test") == (part == "test")]
    if not files or files[0].suffix == ".parquet":
        images, labels = _decode(part, load_rows(HUB, files, part, ("img", "label")))
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
    from PIL import Image, UnidentifiedImageError

    size = SIZES[part]
    images, labels = np.empty((size, SIDE * SIDE, 3), np.uint8), np.empty(size, np.int64)
    count = 0
    for where, row in progress_bar(rows, f"CIFAR-10 {part}", size, unit="images"):
        try:
            pixels = np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB"))
        except (UnidentifiedImageError, OSError, TypeError, SyntaxError) as error:
            raise DataError(f"{where}: not a readable image ({error})") from error
        if pixels.shape != (SIDE, SIDE, 3):
            raise DataError(f"{where}: image of shape {pixels.shape}, should be (32, 32, 3)")
        if count < size:
            images[count], labels[count] = pixels.reshape(-1, 3), row["label"]
        count += 1
    # More or fewer rows than there should be are told by the caller.
    return images, labels if count == size else np.zeros(count, np.int64)


def _read_binary(file: Path) -> NDArray[np.uint8]:
    records = np.fromfile(file, np.uint8)
    if len(records) != 10_000 * RECORD:
        raise DataError(f"{file}: {len(records)} bytes, should be {10_000 * RECORD}")
    return records.reshape(-1, RECORD)


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuild NumPy arrays and nothing else: a pickle can otherwise run any code."""

    _NAMES = ("_reconstruct", "ndarray", "dtype")

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy") and (
            name in self._NAMES
        ):
            # NumPy 2 moved the module that pickles of its time name.
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
