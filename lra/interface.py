"""What `import lra` offers beside `lra.load` and `lra.train`: data, model and records."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lra.build import Model, batches_of, build_model, build_task
from lra.config import Config
from lra.examples import Examples
from lra.paths import runs_dir
from lra.record import read_records
from lra.tasks import cache

if TYPE_CHECKING:
    import pandas


def dataset(config: Config) -> dict[str, Examples]:
    """Return the splits of a cell's data, from the cache or built into it.

    Args:
        config: The cell, from `lra.load`.

    Returns:
        `train`, `validation` and `test`.

    Raises:
        ConfigError: There is no such task, or an option is wrong.
        DataError: Raw data are missing or damaged, or the disk is full.
    """
    task = build_task(config)
    data = cache.load(config.task.name, task, Path(config.cache_dir), config.raw_data_dir())
    device, truncate = torch.device("cpu"), config.task.truncate
    return {
        name: Examples(
            split,
            batches_of(config, task, split, trim=False, device=device),
            truncate,
            task.id_shift,
        )
        for name, split in data.splits.items()
    }


def model(config: Config) -> Model:
    """Return a cell's untrained model, on the CPU, its parameters drawn from the seed.

    It is called as `model(tokens, mask)`: tokens `(B, N)` int64, of a task with two sequences
    `(B, 2, N)`; mask the same shape, True for real tokens, or None where all are. It returns the
    logits, `(B, num_classes)`.

    Args:
        config: The cell, from `lra.load`.

    Raises:
        ConfigError: The backend refuses its options.
    """
    return build_model(config)


def records(folder: Path | str | None = None) -> "pandas.DataFrame":
    """Return the records below a folder, a row each.

    Args:
        folder: A runs folder, or part of one; by default where runs are left.

    Returns:
        The columns are the keys of `lra.record.Record`; those of the configuration are named
        as on the command line after `config.`, such as `config.train.steps`.
    """
    import pandas

    rows = [asdict(record) for record in read_records(Path(folder or runs_dir()))]
    return pandas.json_normalize(rows)
