"""Read rows of the hub's parquet files, from a folder or fetched through `datasets`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lra.tasks import DataError
from lra.tasks.raw import is_junk

BATCH = 1_000


@dataclass(frozen=True)
class HubFile:
    """A data set on the hub at a fixed revision.

    Args:
        name: Its id, `owner/name`.
        revision: Commit to read.
    """

    name: str
    revision: str

    def __str__(self) -> str:
        return f"{self.name} at {self.revision[:12]}"


def load_rows(
    hub: HubFile, files: Sequence[Path], part: str, columns: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a part, each with its place.

    Args:
        hub: Where to fetch the part from if there are no files.
        files: Parquet files of the part in order; empty to fetch it.
        part: The hub's name of the part, such as `train`.
        columns: Columns that every row must have, each with the names that it may have.

    Yields:
        `(where, row)`: file and row number for messages, and the values by column; text is given
        as its stored bytes, never decoded.

    Raises:
        DataError: A file is damaged or lacks a column, or the hub cannot be reached.
    """
    for place, tables in _from_files(files) if files else [(str(hub), _from_hub(hub, part))]:
        number = 0
        for table in tables:
            names = table.schema.names
            found = {name: [n for n in known if n in names] for name, known in columns.items()}
            if missing := [name for name in columns if not found[name]]:
                raise DataError(f"{place}: no column {missing[0]!r}; it has {', '.join(names)}")
            for values in zip(*(_stored(table.column(n[0])) for n in found.values()), strict=True):
                yield f"{place}, row {number}", dict(zip(columns, values, strict=True))
                number += 1


def _stored(column: Any) -> list[Any]:
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    values: list[Any] = (column.cast(pyarrow.large_binary()) if is_text else column).to_pylist()
    return values


def columns_of(file: Path) -> tuple[str, ...]:
    """Return the columns of a parquet file; empty if it cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        return tuple(pyarrow.parquet.read_schema(file).names)
    except (pyarrow.ArrowException, OSError):
        return ()


def parquet_files(folder: Path, part: str) -> tuple[Path, ...]:
    """Return the parquet files of a part in a folder, in order."""
    files = sorted(folder.glob(f"{part}-*.parquet"))
    return tuple(file for file in files if not is_junk(file.name))


def whole_number(value: Any) -> int | None:
    """Return a stored label as a whole number; None for text, null, NaN, 3.5 and the like."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _from_files(files: Sequence[Path]) -> Iterator[tuple[str, Iterator[Any]]]:
    for file in files:
        yield str(file), _batches(file)


def _batches(file: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        yield from pyarrow.parquet.ParquetFile(file).iter_batches(BATCH)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable parquet file ({error})") from error


def _from_hub(hub: HubFile, part: str) -> Iterator[Any]:
    import datasets

    try:
        rows = datasets.load_dataset(hub.name, revision=hub.revision, split=part)
    except Exception as error:  # every layer below the hub raises its own errors
        raise DataError(
            f"{hub.name} cannot be fetched from the hub: {error}. Fetch it on a machine with a"
            f" connection, copy its parquet files and point data_dir (or LRA_DATA_DIR) at them:"
            f" data_dir/{hub.name.split('/')[1]}/plain_text/{part}-*.parquet"
        ) from error
    # The arrow format returns the stored bytes, undecoded.
    yield from rows.with_format("arrow").iter(BATCH)
