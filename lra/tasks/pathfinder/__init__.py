"""Pathfinder and Path-X: are two marked ends joined by one dashed path (arXiv 2011.04006, 2.2)?

Images are read pixel by pixel, with the grey value as token id. The published images are used if
`data_dir` holds them, else this project's own generator. The division into train, validation and
test depends on the seed alone; the published code leaves it to a shuffle that nobody can repeat.
"""

import hashlib
import io
import os
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lra.bar import progress_bar
from lra.tasks import (
    SPLITS,
    DataError,
    OnBadRow,
    Source,
    Writer,
    bad_row,
    check_counts,
    raw,
)
from lra.tasks.archive import INNER, OUTER
from lra.tasks.pathfinder.rules import CONTOUR_LENGTHS

SIZES = (32, 64, 128, 256)
# By contour length: easy, intermediate, hard.
FOLDERS = {6: "curv_baseline", 9: "curv_contour_length_9", 14: "curv_contour_length_14"}
PLACES = ("pathfinder", INNER, OUTER, ".")
NUM_IMAGES = 200_000
# Empty in the published archive.
KNOWN_EMPTY = "pathfinder32/curv_baseline/imgs/0/sample_172.png"
PNG_END = b"IEND\xaeB`\x82"
LABELS = {b"0": 0, b"1": 1}
# How far the share of label 1 may be from a half in data that count as published.
BALANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class Pathfinder:
    """Options of the task.

    Args:
        size: Height and width in pixels: 32 (Pathfinder), 64, 128 (Path-X) or 256.
        contour_length: Dashes per path, 3 to 14. The archive has 6 (easy), 9 (intermediate) and 14
            (hard, which papers report); other lengths are generated.
        distractors: Whether there are short distracting paths, as in the archive; without them, the
            data are generated.
        num_images: Total number of images: 80 % train, 10 % validation and 10 % test.
        data_seed: Seed of the generator, and of the division of published images.
        on_bad_row: `error`, or `skip` to leave unreadable images out and count them.
        source: `published` or `generated` demands that source; None uses published images if there
            are any.
    """

    version: ClassVar[int] = 1
    id_shift: ClassVar[int] = 0
    younger: ClassVar[tuple[str, ...]] = ("source", "distractors")

    size: int = 32
    contour_length: int = 14
    distractors: bool = True
    num_images: int = NUM_IMAGES
    data_seed: int = 0
    on_bad_row: OnBadRow = "error"
    source: Literal["generated", "published"] | None = None

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            known = ", ".join(map(str, SIZES))
            raise ValueError(f"task.options.size={self.size}: must be one of {known}")
        if self.contour_length not in CONTOUR_LENGTHS:
            raise ValueError(
                f"task.options.contour_length={self.contour_length}: must be"
                f" {CONTOUR_LENGTHS[0]} to {CONTOUR_LENGTHS[-1]}"
            )
        check_counts(self, ["num_images"], least=10)
        if not 0 <= self.data_seed < 2**64:
            raise ValueError(f"task.options.data_seed={self.data_seed}: must be 0 to 2**64 - 1")

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of each split."""
        names = _divide(range(self.num_images))
        return {name: names.count(name) for name in SPLITS}

    @property
    def has_published(self) -> bool:
        """Whether there are published images with these options."""
        return self.num_images == NUM_IMAGES and self.contour_length in FOLDERS and self.distractors

    @property
    def part(self) -> str | None:
        """The part of the published archive that holds the images with these options, if any.

        `lra data --fetch` unpacks the hard ones of two sizes.
        """
        is_hard = self.has_published and self.contour_length == max(FOLDERS)
        return {32: "pathfinder", 128: "pathx"}.get(self.size) if is_hard else None

    def locate(self, data_dir: Path | None) -> Source:
        """Find the published images under `data_dir`; without them, images are generated.

        Raises:
            DataError: The folder does not exist, holds only a part of the images, or holds them in
                an unexpected place; or the source demanded by `source` does not exist.
        """
        place = ""
        if self.source != "generated" and self.has_published:
            raw.check_data_dir(data_dir)
            if data_dir is not None:
                if (source := self._published(data_dir)) is not None:
                    return source
                place = (
                    f"because no pathfinder{self.size} is in {', '.join(PLACES)} below {data_dir}"
                )
        if self.source == "published":
            lengths = ", ".join(map(str, FOLDERS))
            reason = (
                f"published images exist only with num_images={NUM_IMAGES}, distractors=true and a"
                f" contour_length of {lengths}"
            )
            if self.has_published:
                reason = place.removeprefix("because ") or "data_dir (or LRA_DATA_DIR) is not set"
            raise DataError(f"task.options.source=published: {reason}")
        return Source("generated", f"generated with seed {self.data_seed}", place=place)

    def _published(self, data_dir: Path) -> Source | None:
        top, level = f"pathfinder{self.size}", FOLDERS[self.contour_length]
        folders = [data_dir / place / top / level for place in PLACES]
        # `data_dir` may itself be the folder of one size or of one level.
        heres = {data_dir.absolute(), data_dir.resolve()}
        is_top = any(here.name == top for here in heres)
        folders += [data_dir / level] * is_top
        folders += [data_dir] * any(here.parts[-2:] == (top, level) for here in heres)
        for folder in folders:
            if not folder.is_dir():
                continue
            files = sorted(folder.glob("metadata/*.npy"))
            files = [file for file in files if not raw.is_junk(file.name)]
            if not files or not (folder / "imgs").is_dir():
                lacking = "imgs" if files else "metadata/*.npy"
                raise DataError(f"Pathfinder: {folder} lacks {lacking}")
            branches = (folder / "imgs", folder / "metadata")
            found = raw.tree_signature(folder, branches)
            return Source("published", "published images", tuple(files), found, f"in {folder}")
        tops = [each for place in PLACES if (each := data_dir / place / top).is_dir()]
        tops += [data_dir] * is_top
        tops += [h.parent for h in heres if h.parent.name == top and h.name in FOLDERS.values()]
        if tops:
            raise DataError(
                f"Pathfinder: {tops[0]} lacks {level}; task.options.source=generated generates it"
            )
        raw.check_strays("Pathfinder", data_dir, PLACES, [top])
        return None

    def write(self, source: Source, splits: Mapping[str, Writer]) -> Source | None:
        """Write every split; see `lra.tasks.Task`."""
        if source.kind != "published":
            self._generate(splits)
            return None
        share = self._read(source, splits)
        # Published images have label 1 as often as label 0.
        if abs(share - 0.5) < BALANCE:
            return None
        other = f"images in the published form, {share:.0%} of which have label 1"
        return replace(source, kind="other", description=other)

    def _generate(self, splits: Mapping[str, Writer]) -> None:
        from lra.tasks.pathfinder import generator

        names = _divide(range(self.num_images))
        with progress_bar(desc="Pathfinder", total=len(names), unit="images") as bar:
            for start, images, labels in generator.generate_chunks(
                self.num_images,
                self.size,
                self.contour_length,
                self.data_seed,
                distractors=self.distractors,
            ):
                for index, (pixels, label) in enumerate(zip(images, labels, strict=True), start):
                    splits[names[index]].add(int(label), pixels.ravel())
                bar.update(len(images))

    def _read(self, source: Source, splits: Mapping[str, Writer]) -> float:
        """Write published images and return the share of label 1."""
        rows = [row for file in sorted(source.files, key=_number) for row in _rows(file)]
        if len(rows) != self.num_images:
            raise DataError(
                f"{source}: metadata of {len(rows)} images, should be of {self.num_images}"
            )
        salt = f"pathfinder/{self.data_seed}"
        keys = [hashlib.sha256(f"{salt}/{r.file.stem}/{r.line}".encode()).digest() for r in rows]
        names = _divide(sorted(range(len(rows)), key=keys.__getitem__))
        for row, name in zip(progress_bar(rows, "Pathfinder"), names, strict=True):
            split = splits[name]
            if row.picture is None or row.label is None:
                bad_row(f"{row.file}, line {row.line}: {row.fault}", split, self.on_bad_row)
            elif row.picture.as_posix().endswith(KNOWN_EMPTY) and _is_empty(row.picture):
                split.skip(f"{row.picture}: empty, as in the published archive")
            else:
                try:
                    pixels = read_image(row.picture, self.size)
                except ValueError as error:
                    reason = f"{row.file}, line {row.line}: {row.picture}: {error}"
                    bad_row(reason, split, self.on_bad_row)
                    continue
                split.add(row.label, pixels)
        return sum(row.label or 0 for row in rows) / len(rows)


def _divide(order: Sequence[int]) -> list[str]:
    """Return the split of every image: 80 % train, 10 % validation, 10 % test, in `order`."""
    train, test = len(order) * 8 // 10, len(order) // 10
    names = [""] * len(order)
    for rank, index in enumerate(order):
        is_train, is_test = rank < train, rank >= len(order) - test
        names[index] = "train" if is_train else "test" if is_test else "validation"
    return names


class Row(NamedTuple):
    """A line of metadata: its place, and either its picture and label or its fault."""

    file: Path
    line: int
    picture: Path | None = None
    label: int | None = None
    fault: str = ""


def _number(file: Path) -> int:
    if not file.stem.isdecimal():
        raise DataError(f"{file}: metadata files are numbered, as in 0.npy")
    return int(file.stem)


def _is_empty(file: Path) -> bool:
    return file.is_file() and not file.stat().st_size


def _rows(file: Path) -> Iterator[Row]:
    """Yield the lines of a metadata file: published text, or a NumPy array as its name suggests.

    The columns, separated by blanks, are folder, picture, running number, label, and then the
    parameters of the generator.
    """
    for number, line in _lines(file):
        columns = line.split()
        if len(columns) < 4:
            yield Row(file, number, fault=f"{len(columns)} columns, should be 4 or more")
        elif columns[3] not in LABELS:
            fault = f"label {columns[3][:20]!r} in column 4, should be 0 or 1"
            yield Row(file, number, fault=fault)
        else:
            folder, name = (os.fsdecode(column) for column in columns[:2])
            picture = file.parents[1] / folder / name
            yield Row(file, number, picture, LABELS[columns[3]])


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    content = file.read_bytes()
    if not content.startswith(np.lib.format.MAGIC_PREFIX):
        yield from raw.numbered(content.splitlines())
        return
    try:
        rows = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise DataError(f"{file}: not a readable NumPy file ({error})") from error
    if rows.dtype.kind not in "US" or rows.ndim not in (1, 2):
        raise DataError(f"{file}: {rows.dtype} of shape {rows.shape}, should be rows of text")
    for number, row in enumerate(rows, start=1):
        words = [row] if rows.ndim == 1 else row
        yield number, b" ".join(w if isinstance(w, bytes) else os.fsencode(str(w)) for w in words)


def read_image(file: Path, size: int) -> NDArray[np.uint8]:
    """Return the `(size * size,)` grey values of a picture, row by row.

    Raises:
        ValueError: The picture cannot be read, is not grey, or is not of `(size, size)`.
    """
    # Imported only when pictures are read.
    from lra.tasks.picture import opened

    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"not a readable image ({error})") from error
    # Pillow accepts a file that lacks its last bytes.
    if not content.endswith(PNG_END):
        raise ValueError("not a readable image (the end of a PNG file is missing)")
    with opened(content) as picture:
        mode, shape = picture.mode, (picture.height, picture.width)
        # Pixels of pictures of other sizes, however large, are not read.
        pixels = np.asarray(picture) if shape == (size, size) else np.zeros(0, np.uint8)
    if mode != "L" or shape != (size, size):
        raise ValueError(f"{mode} of shape {shape}, should be L of ({size}, {size})")
    return pixels.ravel()
