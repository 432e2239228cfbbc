"""What the tables of a report claim: what is best, what is worse, by length, and in LaTeX."""

import csv
import itertools
import math
import os
import random
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import FAILED, OK, scored, store

from lra.predictions import Predictions, write_predictions
from lra.record import Method, Record
from lra.report.binned_figures import accuracy_against_length
from lra.report.curve_figure import learning_curves
from lra.report.grid import build_grid
from lra.report.heat_map import heat_map
from lra.report.latex import latex, literal
from lra.report.lengths import by_length, length_table
from lra.report.notes import heading
from lra.report.pages import latex_tables, write_report
from lra.report.published import beside, figures, run_by
from lra.report.significance import (
    difference_interval,
    mcnemar,
    p_in_words,
    paired_t,
    wilson,
)
from lra.report.speed_figure import accuracy_against_speed
from lra.report.standing import AS_BEST, BEST, UNTESTED, WORSE, compared, half_width, standings
from lra.report.tables import accuracy_table


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        # One degree of freedom is Cauchy's distribution; two give p = 1 - t / sqrt(2 + t * t).
        ([1.0, 3.0], 1 - 2 / math.pi * math.atan(2.0)),
        ([1.0, 2.0, 3.0], 1 - math.sqrt(12) / math.sqrt(14)),
        # Student's own: the sleep of ten patients on two drugs, t = 4.0621, p = 0.00283.
        ([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4], 0.002833),
    ],
)
def test_the_paired_test_gives_known_p_values(differences: list[float], p: float) -> None:
    assert paired_t(differences) == pytest.approx(p, rel=1e-3)
    assert paired_t([-each for each in differences]) == pytest.approx(p, rel=1e-3)


@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (6, 2.447), (9, 2.262), (30, 2.042)],
)
def test_the_paired_test_has_the_critical_values_of_statistical_tables(
    freedom: int, t: float
) -> None:
    n = freedom + 1
    spread = np.arange(n) - freedom / 2.0
    differences = t * spread.std(ddof=1) / math.sqrt(n) + spread
    assert paired_t(differences.tolist()) == pytest.approx(0.05, abs=1e-4)


def test_equal_differences_are_judged_by_their_signs() -> None:
    assert paired_t([0.0, 0.0, 0.0]) == 1
    # Of all ways to give n differences a sign, two have all signs alike.
    assert [paired_t([0.0005] * n) for n in (2, 3, 6)] == [2 / 2**n for n in (2, 3, 6)]
    # Equal but for rounding.
    assert paired_t([0.3 - 0.2, 0.4 - 0.3]) == paired_t([-0.1, 0.2 - 0.3]) == 0.5


@pytest.mark.parametrize(
    ("first", "second", "p"), [(0, 0, 1), (5, 5, 1), (1, 5, 14 / 64), (10, 0, 2 / 1024)]
)
def test_mcnemar_is_a_binomial_test_at_one_half(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == pytest.approx(p) == mcnemar(second, first)


def test_mcnemar_copes_with_thousands_of_examples() -> None:
    # With 6,000 at one half, 100 off the middle is 2.582 standard deviations, 2.569 corrected.
    assert mcnemar(3100, 2900) == pytest.approx(
        math.erfc(199 / math.sqrt(6000) / math.sqrt(2)), 1e-2
    )


def test_a_probability_too_small_for_a_number_is_not_called_zero() -> None:
    assert p_in_words(mcnemar(1584, 96)) == "p < 1e-300"
    assert p_in_words(mcnemar(10, 0)) == "p = 0.002"


def test_intervals_equal_the_published_examples() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 857 and 873: examples 81/263 and 56/70 - 48/80.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert difference_interval((56, 70), (48, 80)) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1 and wilson(0, 10)[1] < 0.3


def seeds(attention: str, *correct: int, task: str = "listops") -> list[Record]:
    cells = (replace(OK, task=task, attention=attention, seed=k) for k in range(len(correct)))
    return [scored(cell, n) for cell, n in zip(cells, correct, strict=True)]


def test_the_best_and_those_not_significantly_worse_are_marked_by_a_test_paired_over_seeds() -> (
    None
):
    records = [
        *seeds("softmax", 800, 900, 1000),
        # Always a little better: seeds differ more than methods, and pairing reveals it.
        *seeds("mra", 812, 910, 1008),
        *seeds("linear", 700, 1000, 1000),
    ]
    ranks = standings(build_grid(records))
    places = {method.attention: rank.place for (_, method), rank in ranks.items()}
    assert places == {"mra": BEST, "softmax": WORSE, "linear": AS_BEST}
    assert ranks["listops", Method("softmax")].test == "paired t over 3 seeds, p = 0.013"
    rows = {row[0]: row[1] for row in accuracy_table(build_grid(records), ranks)}
    assert rows["mra"] == "45.5 ± 4.9 (n=3) best"
    assert rows["linear"] == "45.0 ± 8.7 (n=3) ≈ best" and rows["softmax"] == "45.0 ± 5.0 (n=3)"


def test_one_seed_is_compared_example_by_example_if_predictions_are_stored() -> None:
    a, b = seeds("softmax", 800)[0], seeds("mra", 830)[0]
    labels = np.zeros(2000, dtype=int)
    close = {"softmax": np.arange(2000) >= 800, "mra": np.arange(2000) >= 830}
    far = {"softmax": np.arange(2000) >= 800, "mra": np.arange(2000) < 2000 - 830}

    def place(wrong: dict[str, np.ndarray]) -> tuple[str, str]:
        answers = {name: Predictions(each.astype(int), labels) for name, each in wrong.items()}
        found = standings(build_grid([a, b]), lambda record: answers[record.attention])
        return found["listops", a.method].place, found["listops", a.method].test

    assert place(close) == (WORSE, "McNemar, seed 0, p = 1.9e-09")
    assert place(far)[0] == AS_BEST and place(far)[1].startswith("McNemar, seed 0, p = 0.")
    without = standings(build_grid([a, b]))["listops", a.method]
    assert (without.place, without.test) == (AS_BEST, "difference -1.5 to 4.5 points")
    assert standings(build_grid([a, scored(b, 1000)]))["listops", a.method].place == WORSE


def test_a_method_with_other_seeds_than_the_best_is_not_tested_against_it() -> None:
    # The method with the best mean owes it to a seed that the other lacks.
    records = [*seeds("softmax", 800, 802, 804, 1400), *seeds("mra", 900, 903, 902)]
    found = standings(build_grid(records))["listops", Method("mra")]
    assert (found.place, found.test) == (UNTESTED, "other seeds")
    one, other = (build_grid(records).entries["listops", Method(n)] for n in ("softmax", "mra"))
    assert (compared(one, other).better, compared(other, one).better) == (-1, 1)
    # A heat map of differences shows the seeds that both have.
    figure = heat_map(build_grid(records), "t")
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].texts] == ["+5.0"]


@pytest.mark.parametrize("other", [[800, 802, 804, 806], [800]])
def test_a_method_with_more_seeds_than_the_best_or_with_one_is_not_tested_either(
    other: list[int],
) -> None:
    grid = build_grid([*seeds("softmax", 900, 903, 902), *seeds("mra", *other)])
    assert standings(grid)["listops", Method("mra")].place == UNTESTED


def test_the_speed_of_three_seeds_is_the_median() -> None:
    cells = zip(seeds("softmax", 800, 800, 800), (1.0, 2.0, 9.0), strict=True)
    grid = build_grid([replace(each, steps_per_second=speed) for each, speed in cells])
    assert grid.entries["listops", Method("softmax")].median("steps_per_second") == 2.0


def test_two_seeds_are_not_tested_and_a_heat_map_says_so() -> None:
    records = [*seeds("softmax", 800, 802), *seeds("mra", 900, 903)]
    grid = build_grid(records)
    found = standings(grid)["listops", Method("softmax")]
    assert (found.place, found.test) == (UNTESTED, "not tested, two seeds")
    assert accuracy_table(grid, standings(grid))[1][1] == "40.0 ± 0.1 (n=2) (not tested)"
    figure = heat_map(grid, "t")
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].texts] == ["+5.0 ?"]


def test_the_speed_over_softmax_is_taken_commit_by_commit() -> None:
    def cells(attention: str, *speeds: float) -> list[Record]:
        return [
            replace(each, steps_per_second=speed, commit=str(each.seed) * 40)
            for each, speed in zip(seeds(attention, *[800] * len(speeds)), speeds, strict=True)
        ]

    grid = build_grid([*cells("softmax", 1.0, 10.0), *cells("mra", 2.0, 30.0, 7.0)])
    assert grid.speed_ratio("listops", Method("mra")) == 2.5
    assert not grid.entries["listops", Method("mra")].unsteady
    other = [replace(each, threads=1 + each.seed) for each in cells("mra", 2.0, 2.0)]
    assert build_grid(other).entries["listops", Method("mra")].unsteady


def test_a_test_set_of_one_example_decides_nothing() -> None:
    assert half_width([0.0, 1.0, 0.0], np.array([1.0])) == math.inf


def test_several_seeds_beat_chance_by_the_error_of_the_one_test_set_that_they_share() -> None:
    # 18 % of 2,000, where a standard error is .86 %.
    above = [seeds("linear", *[395] * n) for n in (1, 3)]
    below = [seeds("linear", *[394] * n) for n in (1, 3)]
    assert [build_grid(each).entries["listops", Method("linear")].at_chance for each in above] == [
        False,
        False,
    ]
    assert all(build_grid(each).entries["listops", Method("linear")].at_chance for each in below)


def test_entries_without_a_common_seed_are_compared_only_if_they_have_one_each() -> None:
    first, second = seeds("softmax", 700, 1200), seeds("mra", 900, 900)
    apart = [replace(record, seed=record.seed + 2) for record in second]
    found = standings(build_grid([*first, *apart]))["listops", Method("mra")]
    assert (found.place, found.test) == (UNTESTED, "other seeds")
    one, other = (
        build_grid([*first, *apart]).entries["listops", Method(n)] for n in ("softmax", "mra")
    )
    assert compared(one, other).test == "not tested, no seed in common"
    found = standings(build_grid([first[1], apart[0]]))["listops", Method("mra")]
    assert found.place == WORSE and found.test.startswith("difference 11.9 to 18.")
    # A record that was copied into another folder is read twice.
    found = standings(build_grid([first[1], first[1], apart[0]]))["listops", Method("mra")]
    assert found.place == WORSE


def test_predictions_for_different_labels_are_not_compared() -> None:
    a, b = seeds("softmax", 800)[0], seeds("mra", 830)[0]

    def answers(record: Record) -> Predictions:
        labels = np.full(2000, int(record.attention == "mra"))
        return Predictions(np.zeros(2000, dtype=int), labels)

    found = standings(build_grid([a, b]), answers)["listops", a.method]
    assert found.test.startswith("difference")


def test_nothing_is_best_alone_or_at_chance() -> None:
    assert standings(build_grid(seeds("softmax", 800))) == {}
    assert standings(build_grid(seeds("softmax", 370) + seeds("mra", 360))) == {}


def test_the_number_of_seeds_above_chance_is_shown_if_only_some_are() -> None:
    grid = build_grid(seeds("softmax", 360, 350, 1800, task="pathfinder"))
    [entry] = grid.entries.values()
    assert entry.accuracy_text == "41.8 ± 41.7 (n=3, 1 above chance)"
    assert entry.num_above_chance == 1


def test_the_average_above_chance_is_beside_the_plain_one_for_complete_rows_only() -> None:
    image = replace(OK, task="image", test_majority_rate=0.1)
    grid = build_grid([*seeds("softmax", 800), image, *seeds("mra", 900)])
    rows = {row[0]: row[1:] for row in accuracy_table(grid)}
    above = ((0.4 - 0.18) / 0.82 + (0.4 - 0.1) / 0.9) / 2
    assert rows["softmax"][-2:] == ["40.0", f"{100 * above:.1f}"]
    assert rows["mra"][-2:] == ["-", "-"]


MANY = [
    *seeds("softmax", 800, 900, 1000),
    *seeds("mra", 812, 910, 1008),
    *seeds("linear", 370, 360),
    *seeds("softmax", 500, task="image"),
    *seeds("mra", 560, task="image"),
    FAILED,
    replace(FAILED, attention="mra", seed=7),
]


@settings(deadline=None, max_examples=20)
@given(st.permutations(MANY))
def test_the_order_of_records_changes_nothing(records: list[Record]) -> None:
    def whole(given: list[Record]) -> tuple[object, ...]:
        grid = build_grid(given)
        ranks = standings(grid)
        return accuracy_table(grid, ranks), latex_tables(grid, "mini", "p", ranks)

    assert whole(records) == whole(MANY)


@settings(deadline=None, max_examples=20)
@given(st.sets(st.sampled_from(range(len(MANY)))))
def test_a_failed_cell_never_becomes_a_number_and_removing_a_seed_changes_n(
    failing: set[int],
) -> None:
    broken = [
        replace(FAILED, task=r.task, attention=r.attention, seed=r.seed) if k in failing else r
        for k, r in enumerate(MANY)
    ]
    left = [record for k, record in enumerate(MANY) if k not in failing]
    for (task, method), entry in build_grid(broken).entries.items():
        same = build_grid(left).entry(task, method)
        if same is None or same.mean is None:
            assert entry.accuracy_text == "failed"
            continue
        assert entry.accuracies == same.accuracies
        assert f"(n={len(same.finished)}" in entry.accuracy_text


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy")), min_size=5, max_size=5))
def test_results_on_different_data_are_never_averaged(data: list[tuple[str, str]]) -> None:
    records = seeds("softmax", 800, 900, 1000) + seeds("mra", 700, 600)
    records = [
        replace(r, data_source=source, data_fingerprint=print_ * 64)
        for r, (source, print_) in zip(records, data, strict=True)
    ]
    image = [replace(r, task="image") for r in seeds("softmax", 500) + seeds("mra", 560)]
    grid = build_grid([*records, *image])
    for entry in grid.entries.values():
        assert len({(r.data_source, r.data_fingerprint) for r in entry.records}) == 1
    columns = [c for c in grid.tasks if c.startswith("listops")]
    for column in columns:
        there = [r for e in grid.of(column).values() for r in e.records]
        assert len({(r.data_source, r.data_fingerprint) for r in there}) == 1
    shown = [e.accuracies for (task, _), e in grid.entries.items() if task != "image"]
    assert sorted(sum(shown, [])) == [30, 35, 40, 45, 50]
    averages = [row[-2:] for row in accuracy_table(grid)[1:-1]]
    assert len(columns) == len({*data})
    assert (["-", "-"] in averages) == (len(columns) > 1)


def test_every_title_of_stand_in_data_says_so(tmp_path: Path) -> None:
    records = [
        replace(OK, attention=name, test_by_length=BINS, data_source="stand-in")
        for name in ("softmax", "mra")
    ]
    runs = store(tmp_path, *records)
    write_report(runs, tmp_path / "out", "mini", "nystromformer")
    folder = tmp_path / "out/mini/nystromformer"
    for name in ("accuracy", "throughput"):
        text = (folder / f"{name}.md").read_text()
        titles = [line for line in text.splitlines() if line.startswith("#")]
        assert titles and all("stand-in" in line for line in titles)
    for file in folder.glob("*.tex"):
        captions = re.findall(r"\\caption\{.*", file.read_text())
        assert captions and all("stand-in" in line for line in captions), file
    page = (folder / "index.html").read_text()
    assert "stand-in data</title>" in page
    for title in re.findall(r"<h2 id=\"(?:entry|lengths).*?</h2>", page):
        assert "listops (stand-in)" in title
    grid = build_grid(records)
    title = heading(grid, "mini", "nystromformer")
    assert title == "scale mini, protocol nystromformer, stand-in data"
    figures = [accuracy_against_speed(grid, title), accuracy_against_length(grid, title)]
    for figure in [*figures, learning_curves(grid, title, lambda record: {1: 2.0})]:
        assert figure is not None and title in figure.get_suptitle().replace("\n", " ")
        assert figure.axes[0].get_title() == "listops (stand-in)"


GOLDENS = Path(__file__).parent / "golden" / "report"


def test_the_files_of_a_report_equal_the_golden_ones_letter_by_letter(tmp_path: Path) -> None:
    by_length = replace(OK, attention="linear", seed=9, test_by_length=BINS)
    runs = store(tmp_path / "runs", *MANY, by_length)
    write_report(runs, tmp_path / "out", "mini", "nystromformer", ["text"], ["wavspa"], [0, 1, 2])
    written = {
        file.name: file.read_text()
        for file in (tmp_path / "out/mini/nystromformer").iterdir()
        if file.suffix in (".md", ".csv", ".tex")
    }
    if os.environ.get("WRITE_GOLDEN"):
        GOLDENS.mkdir(exist_ok=True)
        for name, text in written.items():
            (GOLDENS / name).write_text(text)
    # Made with WRITE_GOLDEN=1 and read by a person: every number in them follows from `MANY`.
    assert written == {file.name: file.read_text() for file in GOLDENS.iterdir()}


def test_published_figures_appear_beside_ours_with_difference_source_and_who_ran_them() -> None:
    records = seeds("softmax", 760) + seeds("mra", 780) + seeds("reformer", 400)
    table = beside(build_grid(records), "nystromformer")
    rows = {(row[1], row[5]): row[2:5] for row in table[1:]}
    assert rows["softmax", "authors of the protocol"] == ["38.00", "37.10", "+0.90"]
    assert rows["softmax", "re-run by others"] == ["38.00", "38.37", "-0.37"]
    assert rows["reformer", "authors of the protocol"] == ["20.00", "19.05", "+0.95"]
    assert not any(row[1] == "mra" for row in table)
    assert beside(build_grid(records), "wavspa") != table
    # Its Transformer is not the model of the protocol.
    assert beside(build_grid(records), "mega") == []


def test_no_published_figure_appears_beside_variants_stand_in_data_or_departures() -> None:
    other = [{"variant": "wide"}, {"data_source": "stand-in"}, {"departures": "train.steps=3"}]
    for change in other:
        assert beside(build_grid([replace(OK, **change)]), "nystromformer") == []


@pytest.mark.parametrize(
    ("protocol", "method", "found"),
    [
        ("lra", "Transformer", {"authors of the protocol"}),
        ("lra", "Transformer (theirs)", {"re-run by others"}),
        ("lra", "FNet", {"others"}),
        ("nystromformer", "Skyformer", {"others"}),
        ("nystromformer", "Reformer", {"authors of the protocol", "re-run by others"}),
        ("wavspa", "Transformer", {"copied by its source"}),
        ("wavspa", "WavSpA-Ada Transformer", {"authors of the protocol"}),
        ("lru", "LRU", {"authors of the protocol", "copied by its source"}),
        ("s5", "S5", {"copied by its source"}),
    ],
)
def test_a_published_figure_says_who_ran_it(protocol: str, method: str, found: set[str]) -> None:
    rows = [row for row in figures() if (row["protocol"], row["method"]) == (protocol, method)]
    assert {run_by(row) for row in rows} == found


BINS = [
    {"least": 9, "most": 99, "correct": 600, "total": 1000},
    {"least": 100, "most": 100, "correct": 200, "total": 1000},
]


def test_accuracy_by_length_is_pooled_over_seeds_and_other_bins_have_their_own_table() -> None:
    records = [replace(each, test_by_length=BINS) for each in seeds("softmax", 800, 800)]
    other = [BINS[0] | {"least": 8}, BINS[1]]
    records.append(replace(OK, attention="mra", test_by_length=other))
    grid = build_grid([*records, replace(OK, attention="linear")])
    tables = [length_table(grid, each) for each in by_length(grid)]
    assert [
        ["attention", "9–99", "100", "n"],
        ["softmax", "60.0", "20.0", "2"],
        ["(examples)", "1,000", "1,000", ""],
    ] in tables
    assert len(tables) == 2 and sum("mra" in row for table in tables for row in table) == 1


def test_names_given_by_a_user_are_literal_in_every_format(tmp_path: Path) -> None:
    name = r"a_b%$&#{}~^\<i>|=1"
    records = [
        replace(OK, variant=name, test_by_length=BINS),
        replace(OK, variant="=cmd()", attention="mra", test_by_length=BINS),
    ]
    runs = store(tmp_path, replace(records[1], scale="mini"))
    grid = build_grid(records)
    text = latex_tables(grid, "mini", "p", {})["accuracy"]
    expected = (
        r"softmax (a\_b\%\$\&\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}"
        r"\textless{}i\textgreater{}|=1)"
    )
    assert expected in text
    write_report(runs, tmp_path / "out", "mini", "nystromformer")
    with open(tmp_path / "out/mini/nystromformer/accuracy_by_length.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["variant"] == "'=cmd()" and rows[0]["percent"] == "60.0"


def test_every_special_character_of_latex_is_typeset_as_itself() -> None:
    for pair in itertools.product("&%$#_{}~^\\", repeat=2):
        text = literal("".join(pair))
        bare = text.replace("\\textbackslash{}", "").replace("\\textasciitilde{}", "")
        bare = bare.replace("\\textasciicircum{}", "")
        assert all(part == "" or part[0] in "&%$#_{}" for part in bare.split("\\")[1:])
        assert bare.split("\\")[0] == ""
    assert literal("a\nb") == r"a\textbackslash{}nb"
    assert literal("a--b---c''`") == r"a-{}-b-{}-{}-c'{}'\textasciigrave{}"


def test_a_name_is_not_taken_as_an_argument_of_the_row_before_it() -> None:
    text = latex([["attention"], ["[2] a"], ["* b"], ["c [3]"]], "x", {})
    assert "\n{}[2] a " in text and "\n{}* b " in text and "\nc [3] " in text


GOLDEN = r"""\begin{table}
\centering
\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%
\begin{tabular}{lrrr}
\toprule
attention & listops & average & above chance \\
\midrule
softmax & 45.0 $\pm$ 5.0 & 45.0 & 32.9 \\
mra & \textbf{45.5 $\pm$ 4.9} & 45.5 & 33.5 \\
(majority class) & 18.0 & - & - \\
\bottomrule
\end{tabular}}
\caption{Test accuracy in percent, mean over n = 3 seeds $\pm$ standard deviation; scale mini, protocol p, generated data. Bold: best; underlined: not significantly worse.}
\end{table}
"""  # noqa: E501


def test_the_accuracy_table_is_ready_to_paste_into_latex() -> None:
    records = seeds("softmax", 800, 900, 1000) + seeds("mra", 812, 910, 1008)
    random.Random(0).shuffle(records)
    grid = build_grid(records)
    assert latex_tables(grid, "mini", "p", standings(grid))["accuracy"] == GOLDEN
    assert latex([["a"], ["b"]], "c", {}).count("rule") == 3
    # If the numbers of seeds differ, each is beside its mean.
    fewer = build_grid(seeds("softmax", 800, 900) + seeds("mra", 812))
    assert "mra & 40.6 (n=1)" in latex_tables(fewer, "mini", "p", {})["accuracy"]


def test_a_wide_and_long_table_fits_on_its_pages(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here: apt-get install texlive-latex-recommended")
    names = [r"a_b%$&#{}~^\<i>|=1±≈–", "train.steps=100,attention.options.window=64" * 2, "short"]
    header = ["attention", *(f"task {k}" for k in range(9))]
    rows = [[names[k % 3], *["40.5 ± 0.5 (n=3) ≈ best"] * 9] for k in range(95)]
    text = latex(
        [header, *rows], "Of everything: " + names[0], {(1, 1): "textbf", (2, 0): "underline"}
    )
    # Every third row takes up three lines.
    assert text.count(r"\begin{table}") == 4 and text.count("(continued)") == 3
    assert text.count("40.5") == 9 * 95
    document = [r"\documentclass{article}", r"\usepackage{booktabs,graphicx}", r"\begin{document}"]
    (tmp_path / "t.tex").write_text("\n".join([*document, text, r"\end{document}"]))
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout and "too large" not in done.stdout, done.stdout
    assert (tmp_path / "t.pdf").stat().st_size > 1000


def test_a_report_compares_stored_predictions_and_writes_every_format(tmp_path: Path) -> None:
    bins = [BINS[0] | {"correct": 630}, BINS[1]]
    a = replace(OK, test_by_length=BINS)
    b = replace(scored(replace(OK, attention="mra"), 830), test_by_length=bins)
    runs = store(tmp_path, a, b)
    labels = np.zeros(2000, dtype=int)
    for record, right in ((a, 800), (b, 830)):
        folder = next(runs.glob(f"**/{record.attention}/**/result.json")).parent
        write_predictions(folder, Predictions((np.arange(2000) >= right).astype(int), labels))
    page = write_report(runs, tmp_path / "out", "mini", "nystromformer")
    assert "41.5 (n=1) best" in page and "## listops: accuracy by length" in page
    folder = tmp_path / "out/mini/nystromformer"
    with open(folder / "accuracy.csv", newline="") as file:
        rows = {row["attention"]: row for row in csv.DictReader(file)}
    assert rows["mra"]["standing"] == "best"
    assert rows["softmax"]["standing"] == "worse than best"
    assert rows["softmax"]["test"] == "McNemar, seed 0, p = 1.9e-09"
    names = {file.name for file in folder.iterdir() if file.suffix in (".csv", ".tex", ".md")}
    assert names == {
        "accuracy.md", "accuracy.csv", "accuracy.tex",
        "throughput.md", "throughput.csv", "throughput.tex",
        "accuracy_by_length.csv", "accuracy_by_length.tex",
    }  # fmt: skip
    assert r"\textbf{41.5}" in (folder / "accuracy.tex").read_text()
