"""The figures of a report: what they show, and that nothing in them covers anything else."""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.text
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox
from PIL import Image
from test_report import FAILED, OK, scored
from test_report_tables import BINS, seeds

from lra.record import Method
from lra.report.binned_figures import accuracy_against_length
from lra.report.curve_figure import learning_curves, validated
from lra.report.figure import BACKENDS, COLOURS, MARKERS, STYLES, look, look_of, pareto, save
from lra.report.grid import Grid, build_grid
from lra.report.heat_map import heat_map
from lra.report.lengths import by_length
from lra.report.speed_figure import accuracy_against_speed
from lra.trajectory import TRAJECTORY, write_trajectory
from models import ATTENTION

FOUR = ("softmax", "fourier", "linear", "mra")
THIRTEEN = (
    *FOUR, "bigbird", "linformer", "longformer", "nystromformer", "performer", "reformer",
    "s4d", "s5", "wavspa",
)  # fmt: skip


def grid_of(names: tuple[str, ...], variant: str = "default") -> Grid:
    records = []
    for k, name in enumerate(names):
        for seed in range(3):
            cell = replace(
                OK,
                attention=name,
                seed=seed,
                variant=variant if k == len(names) - 1 else "default",
                steps_per_second=10.0 + 7 * k % 13,
                peak_memory_bytes=2**28 * (1 + k % 5),
                test_by_length=BINS,
            )
            records.append(scored(cell, 800 + 61 * (k * 5 % 13) + 10 * seed))
    return build_grid(records)


def labels(axis: Axes) -> list[matplotlib.text.Annotation]:
    return [each for each in axis.texts if isinstance(each, matplotlib.text.Annotation)]


def extents(figure: Figure, texts: list[matplotlib.text.Annotation]) -> list[Bbox]:
    renderer = FigureCanvasAgg(figure).get_renderer()
    # The extent of the text, without its line.
    return [matplotlib.text.Text.get_window_extent(text, renderer) for text in texts]


@pytest.mark.parametrize("names", [FOUR, THIRTEEN], ids=len)
def test_every_point_has_a_name_that_covers_no_other_name_and_no_marker(
    names: tuple[str, ...],
) -> None:
    figure = accuracy_against_speed(grid_of(names), "a title")
    [axis] = figure.axes
    texts = labels(axis)
    assert sorted(text.get_text() for text in texts) == sorted(names)
    boxes, panel = extents(figure, texts), axis.get_window_extent()
    for first, second in itertools.combinations(boxes, 2):
        assert not first.overlaps(second)
    markers = [
        axis.transData.transform(each.get_offsets()[0])
        for each in axis.collections
        if len(each.get_offsets()) == 1
    ]
    assert len(markers) >= len(names)
    for box in boxes:
        assert panel.x0 <= box.x0 and box.x1 <= panel.x1
        assert not any(box.contains(*marker) for marker in markers)


def test_an_unsteady_speed_is_hollow_and_no_front_connects_several_commits() -> None:
    steady = replace(OK, attention="mra", steps_per_second=2 * (OK.steps_per_second or 1))
    disturbed = {"speed_windows": 9, "steps_per_second_low": 1.0, "steps_per_second_high": 9.0}
    unsteady = replace(steady, attention="linear", **disturbed)
    [axis] = accuracy_against_speed(build_grid([OK, steady, unsteady]), "t").axes
    hollow = [not each.get_facecolor().any() for each in axis.collections]
    assert sorted(hollow) == [False, False, True] and "x softmax" in axis.get_xlabel()
    [other] = accuracy_against_speed(build_grid([OK, replace(steady, commit="f" * 40)]), "t").axes
    assert "not all measured alike" in other.get_xlabel()
    # Only that of the majority class.
    assert len(other.lines) == len(axis.lines) - 1 == 1


@pytest.mark.parametrize("length", [5, 240])
def test_the_legend_lies_below_the_panels_however_long_the_names_are(length: int) -> None:
    grid = grid_of(THIRTEEN, "v" * length)
    for figure in (accuracy_against_speed(grid, "t"), accuracy_against_length(grid, "t")):
        assert figure is not None
        figure.draw_without_rendering()
        [legend] = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
        for axis in figure.axes:
            panel = axis.get_tightbbox()
            assert panel is not None and box.y1 <= panel.y0 + 1
            # Names take up space of their own, not that of the panels.
            assert axis.get_window_extent().height > 0.6 * 3 * figure.dpi
        names = "".join(text.get_text().replace("\n", "") for text in legend.get_texts())
        assert "v" * length in names


def test_the_front_consists_of_points_that_no_other_beats_in_both_respects() -> None:
    points = [(1.0, 9.0), (2.0, 8.0), (2.0, 7.0), (3.0, 8.0), (0.5, 9.0), (4.0, 1.0), (3.5, 1.0)]
    assert pareto(points) == [(1.0, 9.0), (3.0, 8.0), (4.0, 1.0)]
    assert pareto([(1.0, 1.0)]) == [(1.0, 1.0)]


def test_no_two_of_a_hundred_methods_look_alike() -> None:
    grid = build_grid([replace(OK, attention=f"a{k}") for k in range(100)])
    looks = {tuple(look(grid, method).values()) for method in grid.methods}
    assert len(looks) == 100 and len(set(MARKERS)) == len(MARKERS) and len(set(COLOURS)) == 8


def test_built_in_backends_look_the_same_in_every_figure_and_custom_ones_come_after() -> None:
    assert sorted(BACKENDS) == sorted(ATTENTION), "a new backend has its look in lra/report/figure"
    assert BACKENDS[:4] == ("softmax", "fourier", "wavspa", "mra")
    narrow = grid_of(("mra", "softmax", "mine.Mine"), "wide")
    broad = grid_of((*ATTENTION, "mine.Mine"))
    for name in ("softmax", "mra"):
        looks = look(narrow, Method(name))
        assert looks == look(broad, Method(name)) == look_of(name, ["linear", name])
    assert look(narrow, Method("softmax")) == {"color": COLOURS[0], "marker": "o", "linestyle": "-"}
    after = {"color": COLOURS[20 % 8], "marker": MARKERS[20 % 15], "linestyle": STYLES[20 // 8]}
    assert look(narrow, Method("mine.Mine", "wide")) == look(broad, Method("mine.Mine")) == after


def test_lines_of_one_colour_differ_in_style_and_the_legend_shows_both() -> None:
    grid = grid_of((*ATTENTION, "mine.Mine"))
    looks = [look(grid, method) for method in grid.methods]
    assert len({(each["color"], each["linestyle"]) for each in looks}) == len(looks) == 21

    def shown(line: Line2D) -> tuple[object, ...]:
        return line.get_color(), line.get_marker(), line.get_linestyle()

    expected = [tuple(each[key] for key in ("color", "marker", "linestyle")) for each in looks]
    figure = learning_curves(grid, "t", lambda record: {10: 20.0, 20: 30.0})
    assert figure is not None
    assert [shown(line) for line in figure.axes[0].get_lines()] == expected
    handles = figure.legends[0].legend_handles
    assert [shown(handle) for handle in handles if isinstance(handle, Line2D)] == expected
    # A figure with only points has only points in its legend.
    handles = accuracy_against_speed(grid, "t").legends[0].legend_handles
    points = [shown(handle) for handle in handles if isinstance(handle, Line2D)]
    assert points == [(colour, marker, "None") for colour, marker, _ in expected]


def test_a_heat_map_shows_points_above_softmax_and_marks_failed_cells() -> None:
    records = [
        *seeds("softmax", 800, 900, 1000),
        *seeds("mra", 812, 910, 1008),
        *seeds("linear", 700, 1000, 999),
        *seeds("softmax", 500, task="image"),
        *seeds("mra", 900, task="image"),
        FAILED,
    ]
    figure = heat_map(
        build_grid([*records, replace(FAILED, attention="linear", task="image")]), "t"
    )
    assert figure is not None
    axis = figure.axes[0]
    rows = [text.get_text() for text in axis.get_yticklabels()]
    columns = [text.get_text() for text in axis.get_xticklabels()]
    cells = {
        (rows[round(y)], columns[round(x)]): text.get_text()
        for text in axis.texts
        for x, y in [text.get_position()]
    }
    assert columns == ["listops", "image"] and "fourier" not in rows
    assert cells == {
        ("mra", "listops"): "+0.5",
        # Slightly below, and not a negative zero.
        ("linear", "listops"): "(+0.0)",
        ("mra", "image"): "+20.0",
        ("linear", "image"): "failed",
    }
    title = " ".join(figure.get_suptitle().split())
    assert "n = 1–3" in title and "in brackets: no significant difference" in title


def test_a_caption_counts_the_seeds_of_what_is_drawn_alone() -> None:
    binned = replace(seeds("mra", 800, task="image")[0], test_by_length=BINS)
    grid = build_grid([*seeds("softmax", 800, 900, 1000), *seeds("mra", 800, 900), binned])
    for figure, count in (
        (accuracy_against_length(grid, "t"), "n = 1"),
        (heat_map(grid, "t"), "n = 2"),
    ):
        assert figure is not None
        assert f"{count};" in " ".join(figure.get_suptitle().split())


def test_nothing_is_drawn_if_there_is_nothing_to_show_and_an_old_figure_is_removed(
    tmp_path: Path,
) -> None:
    grid = build_grid([OK])
    assert heat_map(grid, "t") is None and accuracy_against_length(grid, "t") is None
    assert heat_map(build_grid([replace(OK, attention="mra")]), "t") is None
    save(accuracy_against_speed(grid, "t"), tmp_path / "picture")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size[0] > 600
    assert {file.name for file in tmp_path.iterdir()} == {"picture.svg", "picture.png"}
    save(None, tmp_path / "picture")
    assert not list(tmp_path.iterdir())


def test_curves_are_read_from_validations_and_their_seeds_form_a_band(tmp_path: Path) -> None:
    cells = [
        replace(r, best_step=20, best_accuracy=0.3 + 0.2 * r.seed)
        for r in seeds("softmax", 800, 900)
    ]
    grid = build_grid(cells + seeds("mra", 850, 860, 870))
    kept = {0: [(10, 0.2), (20, 0.3), (30, 0.25)], 1: [(10, 0.4), (20, 0.5)]}
    for seed, validations in kept.items():
        folder = tmp_path.joinpath("listops", "softmax", "default", f"seed{seed}")
        folder.mkdir(parents=True)
        write_trajectory(folder, np.ones(30, np.float32), validations)
    figure = learning_curves(grid, "t", validated(tmp_path))
    assert figure is not None
    [axis] = figure.axes
    [line] = axis.get_lines()
    assert line.get_xdata().tolist() == [10, 20]
    assert line.get_ydata().tolist() == pytest.approx([30, 40], abs=1e-4)
    [band] = axis.collections
    corners = band.get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((20, 50), abs=1e-4)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["softmax"]
    # The number of seeds that are drawn, and what is not drawn.
    caption = " ".join(figure.get_suptitle().split())
    assert "n = 2;" in caption and caption.endswith("no validations shown for listops/mra")
    assert learning_curves(grid, "t", validated(tmp_path / "elsewhere")) is None


@pytest.mark.parametrize("name", ["<b>&--", "$a_{b$", "]]>", "--><script>x</script>", "a\x1b[31m"])
def test_a_figure_is_well_formed_xml_in_which_any_name_is_only_text(
    tmp_path: Path, name: str
) -> None:
    grid = build_grid(
        [replace(OK, test_by_length=BINS), replace(OK, variant=name), replace(OK, attention=name)]
    )
    for index, figure in enumerate((accuracy_against_speed(grid, name), heat_map(grid, name))):
        file = tmp_path / f"{index}.svg"
        save(figure, file)
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(file).iter()}
        assert "path" in tags and not tags & {"script", "b"}


def test_a_report_without_results_has_a_figure_that_says_so() -> None:
    figure = accuracy_against_speed(build_grid([FAILED]), "t")
    assert "no result" in figure.get_suptitle()


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({}, ""),
        ({"validations": np.ones(4)}, r"float64 of shape \(4,\), should be pairs"),
        ({"validations": np.ones((2, 2), np.int64)}, r"int64 of shape \(2, 2\), should be pairs"),
        ({"validations": np.array([[20, 0.5], [10, 0.5]])}, "must be ascending updates"),
        ({"validations": np.array([[10.5, 0.5]])}, "must be ascending updates"),
        ({"validations": np.array([[10, 0.5], [np.inf, 0.5]])}, "must be ascending updates"),
        ({"validations": np.array([[10, 1.5]])}, "shares from 0 to 1"),
        ({"validations": np.array([[10, np.nan]])}, "shares from 0 to 1"),
    ],
)
def test_a_curve_is_left_out_if_its_validations_are_missing_or_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, arrays: dict[str, Any], reason: str
) -> None:
    folder = tmp_path.joinpath(*OK.place)
    folder.mkdir(parents=True)
    np.savez(folder / TRAJECTORY, loss=np.ones(30, np.float32), **arrays)
    assert validated(tmp_path)(OK) == {}
    assert re.search(f"left out: .*{reason}", caplog.text) if reason else not caplog.text


def test_validations_of_another_run_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = replace(OK, best_step=20, best_accuracy=0.3)
    folder = tmp_path.joinpath(*record.place)
    folder.mkdir(parents=True)
    write_trajectory(folder, np.ones(30, np.float32), [(10, 0.2), (20, 0.3)])
    curves = validated(tmp_path)
    assert curves(record) == {10: 20.0, 20: 30.0}
    for other in (replace(record, best_step=30), replace(record, best_accuracy=0.31)):
        assert curves(other) == {}
        assert (
            f"validations lack that of its record, {other.best_accuracy} at update" in caplog.text
        )


def test_a_caption_names_only_what_is_drawn() -> None:
    def caption(grid: Grid) -> str:
        return " ".join(accuracy_against_speed(grid, "t").get_suptitle().split())

    alone = caption(build_grid(seeds("softmax", 800)))
    assert "Pareto" not in alone and "standard deviation" not in alone
    several = caption(build_grid([*seeds("softmax", 800, 900), *seeds("mra", 850, 860)]))
    assert "bars: standard deviation" in several


def test_bands_are_left_out_where_they_would_cover_each_other() -> None:
    names = [*ATTENTION][:6]
    for count, has_bands in ((5, True), (6, False)):
        records = [replace(seeds(name, 900)[0], test_by_length=BINS) for name in names[:count]]
        figure = accuracy_against_length(build_grid(records), "t")
        assert figure is not None
        assert bool(figure.axes[0].collections) == has_bands
        assert ("bands: 95 %" in " ".join(figure.get_suptitle().split())) == has_bands


def test_bands_are_those_of_one_test_set_however_many_seeds() -> None:
    bands = []
    for count in (1, 3):
        records = [replace(each, test_by_length=BINS) for each in seeds("mra", *[800] * count)]
        [found] = by_length(build_grid(records))
        bands.append(found.bands(records[0].method))
    assert bands[0] == bands[1]
