"""The promise of the mini scale, kept by training: minutes on two cores, well above chance."""

import math
from pathlib import Path

import pytest

import lra.compose
from lra.runner import run_cell


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("task", ["listops", "text", "retrieval", "image", "pathfinder", "recall"])
def test_softmax_beats_the_majority_class_by_five_standard_errors(
    tmp_path: Path, task: str, seed: int
) -> None:
    config = lra.compose.load(
        f"task={task}", "scale=mini", f"seed={seed}", f"cache_dir={tmp_path / 'cache'}"
    )
    record = run_cell(config, tmp_path)
    assert record is not None and record.test_total == config.task.options["num_test"]
    assert record.data_source in ("generated", "stand-in")
    rate = record.test_majority_rate
    assert record.test_accuracy > rate + 5 * math.sqrt(rate * (1 - rate) / record.test_total)
