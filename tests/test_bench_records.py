"""Records of a bench: read back whole, with the growth they show, and drawn for any backends."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from test_report import OK

from lra.bench.again import of_machines
from lra.bench.growth import growth
from lra.bench.growth_figure import MARKER_AT, growth_figure, spread_places
from lra.bench.measured import MODES, Bench, Cell, Document, Machine, add, read, write
from lra.bench.page import page
from lra.record import Method, RecordError
from lra.report.figure import look, look_of
from lra.report.grid import build_grid
from models import ATTENTION

HERE = Machine(name="Some Processor (R) 9", processors=2, id="abc123")
LENGTHS = (1024, 2048, 3072, 4096)


def run_of(*attentions: str, lengths: tuple[int, ...] = LENGTHS) -> Bench:
    cells = [
        Cell(
            attention=name,
            length=length,
            mode=mode,
            # It grows as N to the power 1, 1.1, 1.2 and so on.
            seconds=[1e-6 * length ** (1 + 0.1 * k) * each for each in (0.99, 1.0, 1.02)],
            peak_memory_bytes=(k + 1) * 1000 * length,
            flops=length**2,
            parameters=5,
        )
        for length in lengths
        for k, name in enumerate(attentions)
        for mode in MODES
    ]
    return Bench(
        when="2026-11-26 00:00", device="cpu", threads=1, dtype="float32", compiled=False,
        task="listops", protocol="nystromformer", batch_size=4, attention_dropout=0.0,
        total_seconds=1.0, torch="2", python="3", commit="c" * 40, dirty=False, cells=cells,
    )  # fmt: skip


def test_a_power_of_n_is_found_with_its_interval() -> None:
    exact = growth(LENGTHS, [3 * n**1.5 for n in LENGTHS])
    assert exact is not None and exact.half_width is not None
    assert exact.exponent == pytest.approx(1.5) and exact.half_width < 1e-6
    assert exact(8192) == pytest.approx(3 * 8192**1.5)
    # By hand: as powers of 2, the lengths are -1, 0, 1 from their mean, and the values 0, 1, 3.
    found = growth((1, 2, 4), (1, 2, 8))
    assert found is not None and found.half_width is not None
    assert found.exponent == pytest.approx(1.5)
    # The residual sum of squares is 1/6, with one degree of freedom; that of the lengths is 2.
    assert found.half_width == pytest.approx(12.706 * (1 / 6 / 2) ** 0.5)
    assert str(found) == f"1.50 ± {found.half_width:.2f}"


def test_two_lengths_give_no_interval_and_one_gives_no_power() -> None:
    line = growth((1024, 4096), (1.0, 8.0))
    assert line is not None and (line.exponent, str(line)) == (pytest.approx(1.5), "1.50")
    assert growth((1024,), (1.0,)) is None


def test_a_document_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    document = Document(machine=HERE, runs=[run_of("softmax"), run_of("mra", "softmax")])
    write(tmp_path / "a.json", document)
    assert read(tmp_path / "a.json") == document


def test_a_file_belongs_to_one_machine_and_never_overwrites_that_of_another(tmp_path: Path) -> None:
    first = add(tmp_path, HERE, run_of("softmax"))
    assert first == tmp_path / "some-processor-r-9-abc123.json"
    assert add(tmp_path, HERE, run_of("mra")) == first
    assert [run.attentions for run in read(first).runs] == [["softmax"], ["mra"]]
    # Another machine, which its name does not distinguish.
    other = replace(HERE, processors=64)
    second = add(tmp_path, other, run_of("linear"))
    assert second.name == "some-processor-r-9-abc123-2.json"
    assert len(read(first).runs) == 2 and read(second).machine == other
    # Nor is an unreadable file overwritten.
    damaged = replace(HERE, id="damaged")
    (tmp_path / f"{damaged.stem}.json").write_text("{")
    assert add(tmp_path, damaged, run_of("linear")).name == f"{damaged.stem}-2.json"
    assert (tmp_path / f"{damaged.stem}.json").read_text() == "{"
    (tmp_path / "other.json").write_text('{"rows": []}')
    assert of_machines(tmp_path) == sorted([first, second, tmp_path / f"{damaged.stem}-2.json"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seconds", [], "softmax at 1024, training: seconds=[] must be positive"),
        ("seconds", [1.0, -2.0], "seconds=[1.0, -2.0] must be positive"),
        ("seconds", [float("nan")], "seconds=[nan] must be positive"),
        ("flops", 0, "softmax at 1024, training: flops=0 must be at least 1"),
        ("peak_memory_bytes", 0, "peak_memory_bytes=0 must be at least 1"),
        ("mode", "tuning", "mode='tuning' must be training | inference"),
        ("speed", 1, "key 'speed' is unknown"),
    ],
)
def test_an_impossible_cell_is_refused_with_its_key(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    file = tmp_path / "a.json"
    write(file, Document(machine=HERE, runs=[run_of("softmax")]))
    values = json.loads(file.read_text())
    values["runs"][0]["cells"][0][key] = value
    file.write_text(json.dumps(values))
    with pytest.raises(RecordError) as refused:
        read(file)
    assert message in str(refused.value) and str(file) in str(refused.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write(file, Document(machine=HERE, runs=[run_of("softmax")]))
    values = json.loads(file.read_text())
    del values["runs"][0]["threads"]
    file.write_text(json.dumps(values))
    with pytest.raises(RecordError, match="key 'threads' is missing"):
        read(file)


def test_a_noisy_timing_is_marked_and_so_is_every_comparison_with_it() -> None:
    run = run_of("softmax", "mra", "linear", lengths=(1024, 2048))
    cells = list(run.cells)
    # Quartiles at 0.925 and 1.05 of the median, an eighth apart.
    spread = [0.0085, 0.01, 0.011]
    cells[2] = replace(cells[2], seconds=spread)
    assert (cells[2].attention, cells[2].mode) == ("mra", "training")
    lines = page(HERE, replace(run, cells=cells)).splitlines()
    table = lines[lines.index("Updates per second (times softmax):") + 2 :]
    marks = {line.split()[1]: line.count("(!)") for line in table[2:5]}
    assert marks == {"softmax": 0, "mra": 1, "linear": 0}
    cells = list(run.cells)
    cells[0] = replace(cells[0], seconds=spread)
    lines = page(HERE, replace(run, cells=cells)).splitlines()
    table = lines[lines.index("Updates per second (times softmax):") + 2 :]
    assert {line.split()[1]: line.count("(!)") for line in table[2:5]} == dict.fromkeys(
        ("softmax", "mra", "linear"), 1
    )
    assert "above 10 % of the median" in page(HERE, run)


def test_a_failed_cell_is_reported_and_has_no_number() -> None:
    run = run_of("softmax", "mra")
    cells = [
        replace(cell, failed="out of memory", seconds=[])
        if (cell.attention, cell.length) == ("softmax", 4096)
        else cell
        for cell in run.cells
    ]
    text = page(HERE, replace(run, cells=cells))
    assert "failed: softmax at 4,096, training: out of memory" in text
    rows = [line for line in text.splitlines() if line.startswith("| softmax")]
    assert len(rows) == 8 and all(row.count("failed") == 1 for row in rows)
    # With nothing to compare it with, the speed stands alone.
    mra = next(line for line in text.splitlines() if line.startswith("| mra"))
    assert mra.split("|")[5].strip() == f"{1 / (1e-6 * 4096**1.1):.3g}"
    assert growth_figure(HERE, replace(run, cells=cells)) is not None
    assert growth_figure(HERE, replace(run, cells=[])) is None


def test_without_softmax_there_is_no_ratio() -> None:
    text = page(HERE, run_of("mra"))
    [row] = [line for line in text.splitlines() if line.startswith("| mra") and "±" in line][:1]
    assert "(" not in row


@pytest.mark.parametrize("names", [tuple(ATTENTION)[:4], tuple(ATTENTION)], ids=len)
def test_every_line_has_its_power_beside_it_and_no_name_covers_another(
    names: tuple[str, ...],
) -> None:
    run = run_of(*names)
    figure = growth_figure(HERE, run)
    assert figure is not None and len(figure.axes) == 4
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axis, (mode, quantity) in zip(
        figure.axes, itertools.product(MODES, ("seconds", "peak_memory_bytes")), strict=True
    ):
        texts = list(axis.texts)
        expected = [f"{name}  N^{run.growth(name, mode, quantity)}" for name in names]
        assert [text.get_text() for text in texts] == expected
        panel = axis.get_window_extent()
        boxes = [Text.get_window_extent(text, renderer) for text in texts]
        for first, second in itertools.combinations(boxes, 2):
            assert not first.overlaps(second)
        for box in boxes:
            assert box.x0 > panel.x1 and box.x1 <= figure.bbox.x1
            assert panel.y0 - 8 < box.y0 and box.y1 < panel.y1 + 8
    caption = figure.get_suptitle()
    for phrase in ("Some Processor", "float32", "threads: 1", "batches of 4", "95 %"):
        assert phrase in caption.replace("\n", " ")


def test_a_backend_looks_the_same_in_the_bench_as_in_a_report() -> None:
    names = ("linear", "linear order=2", "softmax", "s4d")
    figure = growth_figure(HERE, run_of(*names))
    assert figure is not None
    for axis in figure.axes:
        points = [line for line in axis.get_lines() if len(line.get_xdata()) == len(LENGTHS)]
        fits = [line for line in axis.get_lines() if list(line.get_xdata()) == [1024, 4096]]
        beside = [line for line in axis.get_lines() if list(line.get_xdata()) == [MARKER_AT]]
        for drawn in (points, beside):
            found = [(line.get_color(), line.get_marker()) for line in drawn]
            looks = [look_of(name, names) for name in names]
            assert found == [(each["color"], each["marker"]) for each in looks]
        assert [(line.get_color(), line.get_linestyle()) for line in fits] == [
            (each["color"], each["linestyle"]) for each in looks
        ]
    own = build_grid([replace(OK, attention=name) for name in ("softmax", "s4d")])
    for name in ("softmax", "s4d"):
        assert look(own, Method(name)) == look_of(name, names)


def test_places_move_apart_no_further_than_they_must() -> None:
    assert spread_places([0.2, 0.5], 0.1) == pytest.approx([0.2, 0.5])
    assert spread_places([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert spread_places([0.3, 0.49, 0.5, 0.51], 0.1) == pytest.approx([0.3, 0.4, 0.5, 0.6])
    assert spread_places([0.98, 1.4], 0.1) == pytest.approx([0.9, 1.0])
    assert spread_places([-1.0, -1.0], 0.1) == pytest.approx([0.0, 0.1])
    assert spread_places([0.5, 0.5, 0.5], 0.6) == pytest.approx([0.0, 0.6, 1.2])
