"""The simple rules of `scripts/baselines.py`, on examples whose answers are known."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from lra.examples import Example

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "baselines.py"
RULES = runpy.run_path(str(SCRIPT))


def example(label: int, *sequences: list[int]) -> Example:
    arrays = tuple(np.array(each) for each in sequences)
    return Example(arrays if len(arrays) > 1 else arrays[0], label)


def test_a_beginning_gets_its_most_frequent_label_and_an_unseen_one_the_overall_one() -> None:
    train = [example(2, [7, 1])] * 2 + [example(0, [7, 3])] * 3 + [example(2, [8, 1])] * 4
    test = [example(0, [7, 1]), example(0, [7, 3]), example(0, [8, 9]), example(0, [9, 9])]
    assert RULES["by_beginning"](train, test, 1).tolist() == [0, 0, 2, 2]
    assert RULES["by_beginning"](train, test, 2).tolist() == [2, 0, 2, 2]


def test_counts_show_which_symbol_leads_whatever_the_order() -> None:
    train = [example(0, [1, 1, 2]), example(1, [2, 2, 1]), example(0, [2, 1, 1])] * 4
    test = [example(0, [1, 2, 1]), example(1, [1, 2, 2])]
    assert RULES["by_counts"](train, test, 4, 2).tolist() == [0, 1]


def test_counts_of_a_pair_show_whether_its_sequences_are_alike() -> None:
    alike = [example(1, [k, k, 5], [k, 5, k]) for k in (1, 2, 3)]
    unlike = [example(0, [k, k, 5], [k % 3 + 1, 5, 5]) for k in (1, 2, 3)]
    assert RULES["by_counts"](alike + unlike, alike + unlike, 6, 2).tolist() == [1] * 3 + [0] * 3


def test_nearby_ends_are_predicted_to_be_joined() -> None:
    def image(label: int, distance: int) -> Example:
        pixels = np.zeros((16, 16), np.int64)
        pixels[3, 1:14] = 200
        pixels[3, 1] = pixels[3, 1 + distance] = 255
        return example(label, pixels.reshape(-1).tolist())

    near = [image(1, 2), image(1, 3), image(0, 4), image(1, 5), image(1, 6)]
    train = [*near, image(0, 8), image(0, 12)]
    assert RULES["apart"](train, 16) == pytest.approx([2, 3, 4, 5, 6, 8, 12])
    assert RULES["by_distance"](train, [image(1, 7), image(0, 9)], 16).tolist() == [1, 0]


def test_runs_are_compared_only_on_listops(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["baselines.py", "task=text", "scale=mini", "--runs", "there"])
    with pytest.raises(SystemExit):
        RULES["main"]()
    assert "--runs with task=text: only works with task=listops" in capsys.readouterr().err
