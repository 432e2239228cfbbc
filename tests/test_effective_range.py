"""Accuracy by the groups of a task: bins, the range up to which it holds, and its pages."""

import csv
from dataclasses import replace
from pathlib import Path

import matplotlib.collections
import numpy as np
import pytest
from test_report import OK, scored, store
from tiny_cell import TINY_RECALL, configure

import lra.compose
from lra.build import build_task
from lra.predictions import Predictions, by_value, read_predictions, write_predictions
from lra.record import RECORD, Record, RecordError, read_record, write_record
from lra.report.binned_figures import accuracy_against_group
from lra.report.effective_range import (
    Range,
    bootstrap,
    effective_ranges,
    group_table,
    last_bin,
)
from lra.report.grid import build_grid
from lra.report.lengths import by_group
from lra.report.pages import write_report
from lra.report.significance import wilson
from lra.runner import run_cell
from lra.tasks import DataError, Split, groups_of

EDGES = [(4, 15), (16, 63), (64, 255), (256, 1023)]
EXAMPLES = 500


def binned(record: Record, *correct: int) -> Record:
    bins = [
        {"least": low, "most": high, "correct": right, "total": EXAMPLES}
        for (low, high), right in zip(EDGES, correct, strict=True)
    ]
    whole = scored(replace(record, test_total=EXAMPLES * len(EDGES)), sum(correct))
    return replace(whole, test_by_group=bins, group="distance, in tokens")


def answers_of(record: Record) -> Predictions:
    """Return predictions that match a record's bins."""
    right, groups = [], []
    for each in record.test_by_group:
        right.append(np.arange(each["total"]) < each["correct"])
        groups.append(np.linspace(each["least"], each["most"], each["total"]).round())
    answers = np.where(np.concatenate(right), 0, 1)
    return Predictions(answers, np.zeros_like(answers), np.concatenate(groups).astype(int))


@pytest.mark.parametrize(
    ("shares", "last"),
    [
        ([1.0, 1.0, 1.0], 2),
        ([1.0, 0.9, 0.89], 1),
        ([1.0, 0.5, 1.0], 0),
        # The best bin decides, and nearer ones do not count.
        ([0.5, 1.0, 0.95, 0.2], 2),
        ([0.2, 0.3, 0.4], 2),
        ([0.4, 0.3, 0.2], 0),
    ],
)
def test_the_range_ends_before_the_first_bin_below_nine_tenths_of_the_best(
    shares: list[float], last: int
) -> None:
    assert last_bin(shares) == last


def test_nine_tenths_of_the_best_are_the_same_in_shares_as_in_percent() -> None:
    # Rounding makes .09 less than .9 * .1.
    assert last_bin([0.1, 0.09]) == last_bin([10.0, 9.0]) == 1
    assert last_bin([0.1, 0.0899]) == 0


def test_the_interval_covers_the_bins_where_the_range_could_end_by_chance() -> None:
    places = np.repeat(np.arange(4), 400)
    right = np.concatenate([np.arange(400) < n for n in (400, 396, 361, 100)]).astype(float)
    edges = [high for _, high in EDGES]
    # The third bin is at .9025 of 1: in many draws below nine tenths.
    low, high = bootstrap(places, right, edges)
    assert (low, high) == (63, 255) and bootstrap(places, right, edges) == (63, 255)
    clear = np.concatenate([np.arange(400) < n for n in (400, 396, 390, 100)]).astype(float)
    assert bootstrap(places, clear, edges) == (255, 255)
    # The share of draws with a shorter range: those in which the third bin is below nine tenths.
    rng = np.random.default_rng(1)
    expected = (rng.binomial(400, 361 / 400, 20_000) < 360 - 1e-9).mean()
    assert 0.025 < expected < 0.975


def test_a_table_has_the_range_of_each_method_and_none_at_chance() -> None:
    softmax = [binned(replace(OK, seed=seed), 500, 500, 490, 480) for seed in (0, 1)]
    near = binned(replace(OK, attention="longformer"), 490, 460, 100, 90)
    chance = binned(replace(OK, attention="fourier"), 90, 89, 92, 90)
    grid = build_grid([*softmax, near, chance])
    [found] = by_group(grid)
    assert found.quantity == "distance, in tokens"
    table = group_table(grid, found, answers_of)
    assert table[0] == [
        *("attention", "4–15", "16–63", "64–255", "256–1023", "n", "effective range")
    ]
    rows = {row[0]: row for row in table}
    assert rows["softmax"][1:] == ["100.0", "100.0", "98.0", "96.0", "2", "1,023 (1,023–1,023)"]
    assert rows["longformer"][-1] == "63 (63–63)" and rows["fourier"][-1] == "none"
    assert table[-1] == ["(examples)", "500", "500", "500", "500", "", ""]
    # Without predictions, or with those of other examples, there is no interval.
    ranges = effective_ranges(grid, found, lambda record: None)
    assert {str(method): str(each) for method, each in ranges.items()} == {
        "softmax": "1,023",
        "longformer": "63",
    }

    def other(record: Record) -> Predictions:
        stored = answers_of(record)
        assert stored.groups is not None
        return replace(stored, groups=stored.groups[::-1] if record.seed else stored.groups)

    ranges = effective_ranges(grid, found, other)
    assert [each.interval is None for each in ranges.values()] == [True, False]
    assert str(Range(1000, (64, 2000))) == "1,000 (64–2,000)"


def test_the_picture_has_a_line_and_a_binomial_band_for_every_method() -> None:
    records = [binned(OK, 500, 400, 300, 200), binned(replace(OK, attention="mra"), 9, 9, 9, 9)]
    figure = accuracy_against_group(build_grid(records), "t")
    assert figure is not None
    [axis] = figure.axes
    lines = [line for line in axis.lines if len(line.get_xdata()) == 4]
    assert [list(line.get_ydata()) for line in lines] == [[100, 80, 60, 40], [1.8] * 4]
    np.testing.assert_allclose(lines[0].get_xdata(), [np.sqrt(a * b) for a, b in EDGES])
    bands = [c for c in axis.collections if isinstance(c, matplotlib.collections.PolyCollection)]
    heights = bands[0].get_paths()[0].vertices[:, 1]
    low, high = wilson(200, 500)
    assert heights.min() == pytest.approx(100 * low) and 100 * high in heights
    assert axis.get_xlabel() == "distance, in tokens" and axis.get_xscale() == "log"
    assert accuracy_against_group(build_grid([OK]), "t") is None


def test_the_report_writes_table_csv_latex_and_picture_and_removes_old_ones(
    tmp_path: Path,
) -> None:
    record = binned(OK, 500, 500, 490, 100)
    runs = store(tmp_path, record)
    write_predictions(next(runs.glob("**/result.json")).parent, answers_of(record))
    page = write_report(runs, tmp_path / "out", "mini", "nystromformer")
    assert "## listops: accuracy by distance, in tokens, in percent" in page
    assert "| 255 (255–255)" in page and "effective range" in page
    folder = tmp_path / "out/mini/nystromformer"
    names = [f"accuracy_by_group.{suffix}" for suffix in ("csv", "tex", "svg", "png")]
    assert all((folder / name).exists() for name in names)
    with open(folder / names[0], newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[3] | {"seeds": "1"} == {
        "task": "listops", "group": "distance, in tokens", "attention": "softmax",
        "variant": "default", "least": "256", "most": "1023", "percent": "20.0",
        "examples": "500", "seeds": "1",
    }  # fmt: skip
    write_record(next(runs.glob("**/result.json")).parent, OK)
    write_report(runs, tmp_path / "out", "mini", "nystromformer")
    assert not any((folder / name).exists() for name in names)


def test_few_values_have_a_bin_each_and_many_share_bins_of_equal_size() -> None:
    values = np.array([0] * 2 + [5] * 90 + [7] * 8)
    assert [(each["least"], each["total"]) for each in by_value(values, values > 5)] == [
        (0, 2),
        (5, 90),
        (7, 8),
    ]
    assert by_value(np.full(3, 4), np.array([True, True, False])) == [
        {"least": 4, "most": 4, "correct": 2, "total": 3}
    ]
    many = by_value(np.arange(80), np.ones(80, dtype=bool))
    assert [each["total"] for each in many] == [10] * 8


def test_a_run_of_recall_records_accuracy_by_distance_and_keeps_the_distances(
    tmp_path: Path,
) -> None:
    config = lra.compose.load(*TINY_RECALL, f"cache_dir={tmp_path / 'cache'}")
    run_cell(config, tmp_path)
    record = read_record(tmp_path / RECORD)
    kept = read_predictions(tmp_path, record.test_correct, 40)
    assert kept is not None and kept.groups is not None and kept.groups.dtype == np.uint8
    assert record.group == "distance, in tokens" and record.test_by_length == []
    assert sum(each["total"] for each in record.test_by_group) == 40
    for each in record.test_by_group:
        inside = (kept.groups >= each["least"]) & (kept.groups <= each["most"])
        assert (each["total"], each["correct"]) == (inside.sum(), kept.right[inside].sum())


def test_a_task_without_groups_records_none(tmp_path: Path) -> None:
    config = configure(tmp_path, "train.steps=6", "train.warmup_steps=2")
    assert groups_of(build_task(config), Split(np.zeros(1), np.arange(2), np.zeros(1))) is None
    run_cell(config, tmp_path)
    record = read_record(tmp_path / RECORD)
    assert record.test_by_group == [] and record.group == ""
    kept = read_predictions(tmp_path, record.test_correct, record.test_total)
    assert kept is not None and kept.groups is None


def test_a_record_without_accuracy_by_group_is_read_and_impossible_bins_are_refused(
    tmp_path: Path,
) -> None:
    import json

    write_record(tmp_path, OK)
    values = json.loads((tmp_path / RECORD).read_text())
    del values["test_by_group"], values["group"]
    (tmp_path / RECORD).write_text(json.dumps(values))
    assert read_record(tmp_path / RECORD) == OK
    bad = {"least": 1, "most": 8, "correct": 799, "total": 2000}
    write_record(tmp_path, replace(OK, test_by_group=[bad]))
    with pytest.raises(RecordError, match="test_by_group sums to correct=799, should be"):
        read_record(tmp_path / RECORD)


class Grouped:
    """A task whose groups are given."""

    group = "parity"

    def __init__(self, values: object) -> None:
        self.values = values

    def groups(self, split: Split) -> object:
        return self.values


@pytest.mark.parametrize(
    "values", [[0, 1, 2], [0.5, 1.0], [-1, 2], [[0], [1]], ["a", "b"]], ids=str
)
def test_impossible_groups_are_refused_with_an_explanation(values: object) -> None:
    split = Split(np.zeros(2, np.uint8), np.arange(3), np.zeros(2, np.int64))
    with pytest.raises(DataError, match=r"Grouped.groups returns .*must be whole numbers of shape"):
        groups_of(Grouped(values), split)
    found = groups_of(Grouped([3, 0]), split)
    assert found is not None and found.name == "parity" and found.values.tolist() == [3, 0]
