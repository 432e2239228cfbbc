"""A cell that trains in a second on one CPU thread."""

from pathlib import Path

import lra.compose
from lra.config import Config

TINY = [
    "scale=mini",
    "task=listops",
    "threads=1",
    "device=cpu",
    "task.options.num_train=64",
    "task.options.num_validation=16",
    "task.options.num_test=24",
    "task.options.min_length=9",
    "task.options.max_length=40",
    "task.options.max_depth=4",
    "task.truncate=40",
    "model.max_length=40",
    "model.dropout=0.1",
    "model.attention_dropout=0.1",
    "train.steps=60",
    "train.batch_size=4",
    "train.warmup_steps=6",
    "train.validate_every=25",
    "variant=default",
]
# A complete cell of recall.
TINY_RECALL = [
    "scale=mini",
    "task=recall",
    "threads=1",
    "device=cpu",
    "task.truncate=64",
    "model.max_length=64",
    "task.options.length=64",
    "task.options.num_train=64",
    "task.options.num_validation=16",
    "task.options.num_test=40",
    "train.steps=6",
    "train.batch_size=4",
    "train.warmup_steps=2",
    "train.validate_every=3",
    "variant=default",
]


def configure(folder: Path, *overrides: str) -> Config:
    return lra.compose.load(*TINY, f"cache_dir={folder / 'cache'}", *overrides)
