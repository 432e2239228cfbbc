"""Retrieval: does one of two papers cite the other, read byte by byte (arXiv 2011.04006, 2.2)?

The data are pairs of papers of the ACL Anthology Network in Long Range Arena's five-column files:
label, two ids and two texts, separated by tabs, without header or quotes. Texts are bytes and never
decoded. Published code reads the first 10,000 bytes and keeps 4,000, which is the same as keeping
4,000. The files are read line by line, so 8.5 GB of them need no more memory than one line.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from lra.bar import progress_bar
from lra.tasks import DataError, OnBadRow, Source, Writer, bad_row, file_signature, raw
from lra.tasks.archive import URL, places

FILES = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
# The published archive nests the folder; people also copy just the three files.
FOLDERS = (
    "aan",
    "aan/tsv_data",
    ".",
    "tsv_data",
    *places("tsv_data"),
)
PUBLISHED_SIZES = {"train": 147_086, "validation": 18_090, "test": 17_437}
# The published files have 8.5 GB; far smaller files hold somebody's own pairs.
PUBLISHED_BYTES = 4 * 10**9
LABELS = {b"0.0": 0, b"1.0": 1, b"0": 0, b"1": 1}
READ_BYTES = 10_000
# Far longer than any paper: a file without line ends would be a single line.
MAX_LINE = 2**26


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Options of the task.

    Args:
        keep_bytes: Bytes kept of each text, at most the 10,000 that published code reads.
        on_bad_row: `error`, or `skip` to leave bad lines out and count them.
        source: `published` rejects any other pairs; None accepts whatever is there.
    """

    version: ClassVar[int] = 1
    id_shift: ClassVar[int] = 1
    younger: ClassVar[tuple[str, ...]] = ("source",)

    keep_bytes: int = 4_000
    on_bad_row: OnBadRow = "error"
    source: Literal["published"] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.keep_bytes <= READ_BYTES:
            raise ValueError(
                f"task.options.keep_bytes={self.keep_bytes}: must be 1 to {READ_BYTES:,}"
            )

    @property
    def bytes_per_sequence(self) -> int:
        """Bytes that are stored of a text, at most."""
        return self.keep_bytes

    @property
    def sizes(self) -> dict[str, int]:
        """Number of pairs of each split, as published."""
        return dict(PUBLISHED_SIZES)

    def locate(self, data_dir: Path | None) -> Source:
        """Find the three files under `data_dir`, in its folder `aan` or in an unpacked archive."""
        raw.check_data_dir(data_dir)
        names = tuple(FILES.values())
        if files := raw.find("Retrieval", data_dir, FOLDERS, names) if data_dir else ():
            found, place = file_signature(files), f"in {files[0].parent}"
            if sum(file.stat().st_size for file in files) < PUBLISHED_BYTES:
                description = "pairs that are not Long Range Arena's own"
                return Source("other", description, files, found, place)
            return Source("published", "published files", files, found, place)
        reason = (
            f"none of them in {', '.join(FOLDERS)} below data_dir {data_dir}"
            if data_dir
            else "data_dir (or LRA_DATA_DIR) is not set"
        )
        raise DataError(
            f"Retrieval needs {', '.join(FILES.values())}: {reason}. They are in {URL} (a tar"
            " file of 8 GB, 19 GB unpacked): put its folder tsv_data, or lra_release, into"
            " data_dir, as lra data --fetch does"
        )

    def write(self, source: Source, splits: Mapping[str, Writer]) -> None:
        """Write every split; see `lra.tasks.Task`."""
        for name, file in zip(FILES, source.files, strict=True):
            count = self._read(file, splits[name])
            if source.kind == "published" and count != PUBLISHED_SIZES[name]:
                raise DataError(
                    f"{file}: holds {count} pairs, the published file has {PUBLISHED_SIZES[name]}"
                )

    def _read(self, file: Path, split: Writer) -> int:
        """Write the pairs of a file; return its number of lines, without trailing blank ones."""
        number = 0
        for number, line in raw.numbered(_lines(file)):
            columns = line.split(b"\t")
            if reason := _fault(columns):
                bad_row(f"{file}, line {number}: {reason}", split, self.on_bad_row)
                continue
            first, second = (text[: self.keep_bytes] for text in columns[3:])
            split.add(LABELS[columns[0]], first, second)
        return number


def _lines(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with (
        open(file, "rb") as lines,
        progress_bar(desc=file.name, total=size, unit="B", unit_scale=True) as bar,
    ):
        while line := lines.readline(MAX_LINE):
            if len(line) == MAX_LINE:
                raise DataError(
                    f"{file}: has a line of over {MAX_LINE:,} bytes; not a file of pairs"
                )
            bar.update(len(line))
            yield line


def _fault(columns: list[bytes]) -> str:
    """Return what is wrong with a line; empty if it is right."""
    if len(columns) != 5:
        return f"{len(columns)} columns, should be 5"
    if columns[0] not in LABELS:
        return f"label {columns[0][:20]!r}, should be 0.0 or 1.0"
    if empty := [number for number in (1, 2) if not columns[2 + number]]:
        return f"text {empty[0]} is empty"
    return ""
