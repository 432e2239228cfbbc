"""Build the data sets of tasks into the cache and print what is in them.

    python scripts/prepare_data.py --tasks listops,image --scale paper --data-dir RAW

A data set that is already there is only checked against its fingerprint.
"""

import argparse
import logging
import sys
from pathlib import Path

from lra.build import build_task
from lra.config import ConfigError, load
from lra.tables import markdown
from lra.tasks import DataError, cache

TASKS = "listops,text,retrieval,image,pathfinder"
COLUMNS = "task source train validation test mean-length max-length MiB seconds sha256"


def row(task: str, data: cache.Dataset) -> list[str]:
    """Return the line of a data set."""
    lengths = [split.lengths for split in data.splits.values()]
    mean = sum(part.sum() for part in lengths) / sum(map(len, lengths))
    size = sum(file.stat().st_size for file in data.folder.iterdir())
    return [
        task,
        data.source.kind,
        *(f"{len(split):,}" for split in data.splits.values()),
        f"{mean:,.0f}",
        f"{max(part.max() for part in lengths):,}",
        f"{size / 2**20:,.1f}",
        f"{data.seconds:.1f}",
        data.fingerprint[:16],
    ]


def main() -> None:
    """Build and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--tasks",
        default="listops,text,retrieval,image,pathfinder",
        help="names, separated by commas",
    )
    parser.add_argument("--scale", default="paper")
    parser.add_argument("--protocol", default="nystromformer")
    parser.add_argument("--data-dir", type=Path, help="raw data, before LRA_DATA_DIR")
    parser.add_argument("--cache-dir", default="data/cache")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = []
    failed = False
    for task in args.tasks.split(","):
        words = [f"task={task}", f"scale={args.scale}", f"protocol={args.protocol}"]
        try:
            config = load(*words, f"cache_dir={args.cache_dir}")
            folder = args.data_dir or config.raw_data_dir()
            data = cache.load(task, build_task(config), Path(config.cache_dir), folder)
            rows.append(row(task, data))
        except (ConfigError, DataError) as error:
            logging.error("%s", error)
            failed = True
    print(markdown([COLUMNS.split(), *rows]))
    sys.exit(failed)


if __name__ == "__main__":
    main()
