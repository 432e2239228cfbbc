"""Text: the sentiment of film reviews, read byte by byte (arXiv 2011.04006, section 2.2).

The data are the Large Movie Review Dataset (Maas et al., ACL 2011), with whole reviews as stored:
bytes are never decoded, and truncation is left to the batches, so that every length reads the same
data.

The hub and the publisher order the reviews differently, so each split is reordered: by label, then
by bytes. A tenth of each class of train is held out for validation: the reviews whose sha256,
salted with the seed, is smallest. The choice depends on nothing but the reviews, and equal reviews
stay on one side.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal

from lra.bar import progress_bar
from lra.tasks import DataError, OnBadRow, Source, Writer, bad_row, raw
from lra.tasks.hub import HubFile, columns_of, load_rows, parquet_files, whole_number

HUB = HubFile("stanfordnlp/imdb", "e6281661ce1c48d982bc483cf8a173c1bbeb5d31")
SIZES = {"train": 25_000, "test": 25_000}
# Per part as published: sha256 over labels and reviews, in the order of `_read`.
REVIEWS = {
    "train": "8b5f6ff673b46f881433b029f722efbf268f694929a1bc6eeb1f3f7f0783bb1c",
    "test": "b082a1610f9470cbd48aed78614845c09cfbc33be344f10f7132a13e77ca3f5e",
}
# The position of a folder is the label.
CLASSES = ("neg", "pos")

Row = tuple[str, Any, bytes | None]


@dataclass(frozen=True, kw_only=True)
class Text:
    """Options of the task.

    Args:
        validation_percent: Share of each class of train that is held out for validation.
        data_seed: Seed of that choice.
        on_bad_row: `error`, or `skip` to leave bad reviews out and count them.
        source: `published` rejects any other reviews; None accepts whatever is there.
    """

    version: ClassVar[int] = 1
    id_shift: ClassVar[int] = 1
    younger: ClassVar[tuple[str, ...]] = ("source",)
    # The mean over all reviews, which are stored whole.
    bytes_per_sequence: ClassVar[int] = 1_310

    validation_percent: int = 10
    data_seed: int = 0
    on_bad_row: OnBadRow = "error"
    source: Literal["published"] | None = None

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

        The folders of `_places` are searched for parquet files `train-*` and `test-*`, and for the
        publisher's folder `aclImdb`.

        Raises:
            DataError: The folder does not exist, or holds only a part of the reviews.
        """
        raw.check_data_dir(data_dir)
        if data_dir is not None:
            for folder in _places(data_dir):
                if (source := _parquet(folder) or _texts(folder)) is not None:
                    return source
            raw.check_strays("IMDb", data_dir, ("imdb", "."), ["aclImdb"])
        reason = f"because nothing was found under data_dir {data_dir}" if data_dir else ""
        return Source("published", f"IMDb from the hub, {HUB}", (), str(HUB), reason)

    def write(self, source: Source, splits: Mapping[str, Writer]) -> Source | None:
        """Write every split; see `lra.tasks.Task`."""
        train = self._read(source, "train", splits["train"])
        for label in range(len(CLASSES)):
            texts = [text for each, text in train if each == label]
            held_out = self._held_out(texts)
            for index, text in enumerate(texts):
                splits["validation" if index in held_out else "train"].add(label, text)
        test = self._read(source, "test", splits["test"])
        for label, text in test:
            splits["test"].add(label, text)
        if {"train": digest(train), "test": digest(test)} == REVIEWS:
            return None
        other = f"{source.description} of other reviews or labels than published"
        return replace(source, kind="other", description=other)

    def _held_out(self, texts: list[bytes]) -> set[int]:
        salt = f"text/{self.data_seed}/".encode()
        order = sorted(range(len(texts)), key=lambda i: hashlib.sha256(salt + texts[i]).digest())
        room = round(len(texts) * self.validation_percent / 100)
        chosen: set[int] = set()
        # Equal reviews are neighbours; those that do not all fit are left to train.
        for _, equal in groupby(order, key=lambda i: texts[i]):
            if len(chosen) + len(these := list(equal)) <= room:
                chosen.update(these)
        return chosen

    def _read(self, source: Source, part: str, split: Writer) -> list[tuple[int, bytes]]:
        """Return the `(label, review)` pairs of a part in canonical order."""
        reviews: list[tuple[int, bytes]] = []
        count = 0
        bar = progress_bar(_rows(source, part), f"IMDb {part}", SIZES[part], unit="reviews")
        for where, label, text in bar:
            count += 1
            number = whole_number(label)
            if number not in (0, 1):
                reason = f"{where}: label {label!r}, should be 0 (negative) or 1 (positive)"
                bad_row(reason, split, self.on_bad_row)
            elif not text:
                bad_row(f"{where}: the review is empty", split, self.on_bad_row)
            else:
                reviews.append((number, text))
        if count != SIZES[part]:
            raise DataError(f"{source}: {count} {part} reviews, IMDb has {SIZES[part]}")
        return sorted(reviews)


def digest(reviews: Iterable[tuple[int, bytes]]) -> str:
    """Return the sha256 of labels and reviews, 64 hex digits."""
    found = hashlib.sha256()
    for label, text in reviews:
        found.update(b"%d %d " % (label, len(text)) + text)
    return found.hexdigest()


def _places(data_dir: Path) -> tuple[Path, ...]:
    """Return where the reviews may be: in the task's folder, or in one that may be it."""
    return (data_dir / "imdb" / "plain_text", data_dir / "imdb", data_dir / "plain_text", data_dir)


def _parquet(folder: Path) -> Source | None:
    parts = {part: parquet_files(folder, part) for part in SIZES}
    files = parts["train"] + parts["test"]
    # The files of CIFAR-10 have the same names.
    if not files or "label" in (columns := columns_of(files[0])) and "text" not in columns:
        return None
    if missing := [part for part, found in parts.items() if not found]:
        raise DataError(f"IMDb: {folder} lacks {missing[0]}-*.parquet; it has {files[0].name}")
    found, place = raw.signature(folder, files), f"in {folder}"
    return Source("published", "IMDb parquet files", files, found, place)


def _texts(folder: Path) -> Source | None:
    top = folder if folder.absolute().name == "aclImdb" else folder / "aclImdb"
    if not top.is_dir():
        return None
    classes = tuple(top / part / name for part in SIZES for name in CLASSES)
    if missing := [place for place in classes if not place.is_dir()]:
        raise DataError(f"IMDb: {top} lacks the folder {missing[0].relative_to(top)}")
    found = raw.tree_signature(top, classes)
    return Source("published", "IMDb text files", classes, found, f"in {top}")


def _rows(source: Source, part: str) -> Iterator[Row]:
    """Yield `(where, label, review)` in the order of the source, unchecked."""
    if source.files and source.files[0].is_dir():
        for folder in source.files:
            if folder.parent.name == part:
                label = CLASSES.index(folder.name)
                for file in sorted(folder.glob("*.txt")):
                    if not raw.is_junk(file.name):
                        yield str(file), label, file.read_bytes()
        return
    files = [file for file in source.files if file.name.startswith(part)]
    for where, row in load_rows(HUB, files, part, {"text": ("text",), "label": ("label",)}):
        yield where, row["label"], row["text"]
