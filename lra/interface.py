"""The functions for data and models that `import lra` offers: `lra.dataset` and `lra.model`."""

from pathlib import Path

import torch

from lra.build import Model, batches_of, build_model, build_task
from lra.config import Config
from lra.examples import Examples
from lra.tasks import cache


def dataset(config: Config) -> dict[str, Examples]:
    """Return the splits of a cell's data, from the cache or built into it first.

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
    """Return a cell's untrained model, on the CPU, with its parameters drawn from the seed.

    Call it as `model(tokens, mask)`: tokens `(B, N)` int64, or `(B, 2, N)` for a task with two
    sequences; mask of the same shape, True for real tokens, or None if all are real. It returns the
    logits, `(B, num_classes)`.

    Args:
        config: The cell, from `lra.load`.

    Raises:
        ConfigError: The backend rejects its options.
    """
    return build_model(config)
