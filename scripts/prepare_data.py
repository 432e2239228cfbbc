"""Build the data sets of tasks into the cache and print what is in them.

    python scripts/prepare_data.py --tasks listops,image --scale paper --data-dir RAW [--fetch]

A data set that is already there is only checked against its fingerprint. `--fetch` first puts the
published files of ListOps, Retrieval, Pathfinder and Path-X into RAW, where it lacks them.
"""

import argparse
import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from lra.build import build_task
from lra.config import Config, ConfigError, load
from lra.markdown import markdown
from lra.paths import cache_dir
from lra.tasks import DataError, archive, cache

TASKS = "listops,text,retrieval,image,pathfinder"
COLUMNS = "task source train validation test skipped mean-length max-length MiB seconds sha256"


def row(task: str, data: cache.Dataset) -> list[str]:
    """Return the line of a data set."""
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
    """Fetch the published files of those tasks that find none."""
    lacking = []
    for config in configs:
        try:
            if build_task(config).locate(data_dir).kind == "generated":
                lacking.append(config.task.name)
        except DataError:
            lacking.append(config.task.name)
    archive.fetch(lacking, data_dir)


def main() -> None:
    """Build and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("overrides", nargs="*", help="key=value, for every task")
    parser.add_argument("--tasks", default=TASKS, help="names, separated by commas")
    parser.add_argument("--scale", default="paper")
    parser.add_argument("--protocol", default="nystromformer")
    parser.add_argument("--data-dir", type=Path, help="raw data, before LRA_DATA_DIR")
    parser.add_argument("--cache-dir", default=cache_dir())
    parser.add_argument("--fetch", action="store_true", help="fetch what RAW lacks, some 8 GB")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    common = [f"scale={args.scale}", f"protocol={args.protocol}", f"cache_dir={args.cache_dir}"]
    rows = []
    failed = False
    try:
        configs = [load(f"task={task}", *common, *args.overrides) for task in args.tasks.split(",")]
        folder = args.data_dir or configs[0].raw_data_dir()
        if args.fetch:
            if folder is None or args.scale != "paper":
                raise ConfigError("--fetch needs --data-dir (or LRA_DATA_DIR) and --scale paper")
            fetch(configs, folder)
    except (ConfigError, DataError) as error:
        sys.exit(str(error))
    for config in configs:
        name = config.task.name
        try:
            data = cache.load(name, build_task(config), Path(config.cache_dir), folder)
            rows.append(row(name, data))
        except (ConfigError, DataError) as error:
            logging.error("%s", error)
            failed = True
    print(markdown([COLUMNS.split(), *rows]))
    sys.exit(failed)


if __name__ == "__main__":
    main()
