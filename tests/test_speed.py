"""The speed of a run: medians over windows that a burst does not move, bounded and resumable."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tiny_cell import configure

from lra.checkpoint import CHECKPOINT, load
from lra.runner import run_cell
from lra.speed import MAX_WINDOWS, WINDOW, Speed


def test_a_burst_moves_neither_the_median_nor_the_quartiles() -> None:
    speed = Speed()
    for window in range(20):
        speed.add(WINDOW, 100 * WINDOW, 40.0 if window in (3, 7) else 4.0)
    assert speed.steps_per_second == 5.0 and speed.tokens_per_second == 500.0
    assert speed.quartiles == (5.0, 5.0)


def test_quartiles_reveal_a_speed_that_changed() -> None:
    speed = Speed()
    for window in range(1, 6):
        speed.add(WINDOW, WINDOW, WINDOW / window)
    assert speed.steps_per_second == pytest.approx(3.0)
    assert speed.quartiles == pytest.approx((2.0, 4.0))


def test_windows_are_filled_across_interruptions_and_a_checkpoint() -> None:
    speed = Speed()
    for _ in range(WINDOW - 1):
        speed.add(1, 10, 0.5)
    assert speed.windows == [] and speed.steps_per_second == 2.0
    speed = Speed(**asdict(speed))
    speed.add(1, 10, 0.5)
    assert speed.windows == [[2.0, 20.0]] and speed.open == [0, 0, 0.0]


def test_a_long_run_keeps_a_bounded_number_of_windows_from_its_whole_length() -> None:
    speed = Speed()
    count = 5 * MAX_WINDOWS
    for window in range(count):
        speed.add(WINDOW, 0, WINDOW / (1 + window))
    assert MAX_WINDOWS // 2 <= len(speed.windows) < MAX_WINDOWS
    assert speed.steps_per_second == pytest.approx(count / 2, rel=0.02)
    low, high = speed.quartiles or (0, 0)
    assert (low, high) == pytest.approx((count / 4, 3 * count / 4), rel=0.02)


def test_a_record_has_the_speed_of_windows_and_separately_that_of_the_first_call(
    tmp_path: Path,
) -> None:
    record = run_cell(configure(tmp_path, "train.checkpoint_seconds=0"), tmp_path)
    assert record is not None and record.train_seconds is not None
    # 59 updates after the first, and a window has 20 of them.
    assert record.speed_windows == 2
    low, high = record.steps_per_second_low, record.steps_per_second_high
    assert record.steps_per_second is not None
    assert 0 < low <= record.steps_per_second <= high
    assert record.speed_spread == pytest.approx((high - low) / record.steps_per_second)
    assert 0 < record.first_call_seconds < record.train_seconds
    kept = load(tmp_path / CHECKPOINT, torch.device("cpu"))["speed"]
    assert len(kept["windows"]) == 2 and kept["open"][0] == 19
