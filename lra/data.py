"""Build the data sets of tasks into the cache and print what they contain.

    lra data task=listops,image data_dir=RAW [--fetch]

A data set that is already in the cache is only checked against its fingerprint. `--fetch` first
downloads the published files of ListOps, Retrieval, Pathfinder and Path-X into RAW, unless they are
there. Without a task, the command builds five data sets.
"""

import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from lra.build import build_task
from lra.compose import command, data_cells, load
from lra.config import Config, ConfigError
from lra.markdown import markdown
from lra.tasks import DataError, archive, cache
from lra.terminal import command_parser, refused, run
from lra.words import TASKS, with_defaults

COLUMNS = "task source train validation test skipped mean-length max-length MiB seconds sha256"


def row(task: str, data: cache.Dataset) -> list[str]:
    """Return the row of a data set in the table."""
    lengths = [split.lengths for split in data.splits.values()]
    mean = sum(part.sum() for part in lengths) / sum(map(len, lengths))
    size = sum(file.stat().st_size for file in data.folder.iterdir())
    return [
        task,
        data.source.kind,
        *(f"{len(split):,}" for split in data.splits.values()),
        f"{sum(data.num_skipped.values()):,}",
        f"{mean:,.0f}",
        f"{max(part.max() for part in lengths):,}",
        f"{size / 2**20:,.1f}",
        f"{data.seconds:.1f}",
        data.fingerprint[:16],
    ]


def fetch(configs: Iterable[Config], data_dir: Path) -> None:
    """Fetch the published files that tasks lack and, with their options, would read."""
    lacking: dict[str, None] = {}
    for config in configs:
        task = build_task(config)
        part = archive.part_of(config.task.name, task)
        if part is None:
            continue
        try:
            if task.locate(data_dir).kind == "generated":
                lacking[part] = None
        except DataError:
            lacking[part] = None
    archive.fetch(lacking, data_dir)


def main() -> None:
    """Build the data sets and print the table."""
    parser = command_parser("data", __doc__)
    parser.add_argument("words", nargs="*", help="key=value, as for lra train; data_dir=FOLDER")
    parser.add_argument("--fetch", action="store_true", help="download what data_dir lacks, 8 GB")
    args = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = []
    failed = False
    with refused(ConfigError, DataError):
        words = with_defaults(command(args.words), [TASKS])
        configs = [load(*each) for each in data_cells(words)]
        if args.fetch:
            folders = {config.raw_data_dir() for config in configs}
            if None in folders or any(config.scale == "mini" for config in configs):
                raise ConfigError(
                    "--fetch needs data_dir=FOLDER (or LRA_DATA_DIR), and scale=small or paper;"
                    " scale=mini generates its own data"
                )
            for folder in sorted(filter(None, folders)):
                fetch([each for each in configs if each.raw_data_dir() == folder], folder)
    for config in configs:
        name = config.task.name
        try:
            raw = config.raw_data_dir()
            data = cache.load(name, build_task(config), Path(config.cache_dir), raw)
            rows.append(row(name, data))
        except (ConfigError, DataError) as error:
            logging.error("%s", error)
            failed = True
    print(markdown([COLUMNS.split(), *rows]))
    sys.exit(failed)


if __name__ == "__main__":
    run(main)
