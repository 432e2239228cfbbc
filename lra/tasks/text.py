"""Text: the sentiment of film reviews, read byte by byte (arXiv 2011.04006, section 2.2).

The Large Movie Review Dataset (Maas et al., ACL 2011), whole reviews as stored: bytes are never
decoded, and cutting is left to the batches, so that every length reads one and the same data.

Hub and publisher order the reviews differently, so each split has an order of its own: by label,
then by bytes. A tenth of each class of train validates: the reviews whose sha256, salted with the
seed, is smallest. That depends on nothing but the reviews, and equal reviews stay on one side.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lra.bar import progress_bar
from lra.tasks import DataError, OnBadRow, Source, Writer, bad_row, file_signature
from lra.tasks.hub import HubFile, load_rows

HUB = HubFile("stanfordnlp/imdb", "e6281661ce1c48d982bc483cf8a173c1bbeb5d31")
SIZES = {"train": 25_000, "test": 25_000}
# The place of a folder is the label.
CLASSES = ("neg", "pos")

Row = tuple[str, Any, bytes | None]


@dataclass(frozen=True, kw_only=True)
class Text:
    """Options of the task.

    Args:
        validation_percent: Share of train that validates, of each class.
        data_seed: Seed of that choice.
        on_bad_row: `error`, or `skip` to leave bad reviews out and count them.
    """

    version: ClassVar[int] = 1
    id_shift: ClassVar[int] = 1

    validation_percent: int = 10
    data_seed: int = 0
    on_bad_row: OnBadRow = "error"

    def __post_init__(self) -> None:
        if not 1 <= self.validation_percent <= 50:
            raise ValueError(
                f"task.options.validation_percent={self.validation_percent}: must be 1 to 50"
            )

    @property
    def sizes(self) -> dict[str, int]:
        """Number of reviews of each split; classes are equally large."""
        share = round(SIZES["train"] / len(CLASSES) * self.validation_percent / 100)
        validation = len(CLASSES) * share
        return {
            "train": SIZES["train"] - validation,
            "validation": validation,
            "test": SIZES["test"],
        }

    def locate(self, data_dir: Path | None) -> Source:
        """Find the reviews under `data_dir`, else name the hub.

        Looked for: parquet files `train-*` and `test-*` in `data_dir/imdb/plain_text` and
        `data_dir/imdb`, the publisher's folder `aclImdb` in `data_dir/imdb` and `data_dir`.
        """
        if data_dir is not None:
            for folder in (data_dir / "imdb" / "plain_text", data_dir / "imdb"):
                parts = [tuple(sorted(folder.glob(f"{part}-*.parquet"))) for part in SIZES]
                if all(parts):
                    files = parts[0] + parts[1]
                    found, place = file_signature(files), f"in {folder}"
                    return Source("published", "IMDb parquet files", files, found, place)
            for folder in (data_dir / "imdb" / "aclImdb", data_dir / "aclImdb"):
                classes = tuple(folder / part / name for part in SIZES for name in CLASSES)
                if all(place.is_dir() for place in classes):
                    counts = " ".join(str(len(os.listdir(place))) for place in classes)
                    found = f"in {folder}"
                    return Source("published", "IMDb text files", classes, counts, found)
        looked = f"as nothing was found under data_dir {data_dir}" if data_dir else ""
        return Source("published", f"IMDb from the hub, {HUB}", (), str(HUB), looked)

    def write(self, source: Source, splits: Mapping[str, Writer]) -> None:
        """Write every split; see `lra.tasks.Task`."""
        train = self._read(source, "train", splits["train"])
        for label in range(len(CLASSES)):
            texts = [text for each, text in train if each == label]
            held_out = self._held_out(texts)
            for index, text in enumerate(texts):
                splits["validation" if index in held_out else "train"].add(label, text)
        for label, text in self._read(source, "test", splits["test"]):
            splits["test"].add(label, text)

    def _held_out(self, texts: list[bytes]) -> set[int]:
        salt = f"text/{self.data_seed}/".encode()
        order = sorted(range(len(texts)), key=lambda i: hashlib.sha256(salt + texts[i]).digest())
        return set(order[: round(len(texts) * self.validation_percent / 100)])

    def _read(self, source: Source, part: str, split: Writer) -> list[tuple[int, bytes]]:
        """Return the `(label, review)` pairs of a part in canonical order."""
        reviews: list[tuple[int, bytes]] = []
        count = 0
        bar = progress_bar(_rows(source, part), f"IMDb {part}", SIZES[part], unit="reviews")
        for where, label, text in bar:
            count += 1
            if label not in (0, 1):
                reason = f"{where}: label {label!r}, should be 0 (negative) or 1 (positive)"
                bad_row(reason, split, self.on_bad_row)
            elif not text:
                bad_row(f"{where}: the review is empty", split, self.on_bad_row)
            else:
                reviews.append((int(label), text))
        if count != SIZES[part]:
            raise DataError(f"{source}: {count} {part} reviews, IMDb has {SIZES[part]}")
        return sorted(reviews)


def _rows(source: Source, part: str) -> Iterator[Row]:
    """Yield `(where, label, review)` in the order of the source, whatever they hold."""
    if source.files and source.files[0].is_dir():
        for folder in source.files:
            if folder.parent.name == part:
                label = CLASSES.index(folder.name)
                for file in sorted(folder.glob("*.txt")):
                    yield str(file), label, file.read_bytes()
        return
    files = [file for file in source.files if file.name.startswith(part)]
    for where, row in load_rows(HUB, files, part, ("text", "label")):
        yield where, row["label"], row["text"]
