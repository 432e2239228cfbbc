"""Tables made from invented records, and what happens to files that are not records."""

import csv
import json
import logging
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import lra.report.__main__
from lra.compose import command, groups, load
from lra.config import comparable
from lra.machine import code_version
from lra.markdown import markdown
from lra.record import (
    RECORD,
    Record,
    RecordError,
    read_record,
    read_records,
    write_record,
)
from lra.report.figure import save
from lra.report.grid import build_grid
from lra.report.pages import accuracy_page, screen, write_report
from lra.report.selection import selections
from lra.report.speed_figure import accuracy_against_speed
from lra.report.tables import (
    accuracy_table,
    published_table,
    throughput_table,
    write_accuracy_csv,
)
from lra.words import printable

CONFIG = {
    "model": {
        "max_length": 128,
        "positions": "learned",
        "position_std": 0.02,
        "pooling": "mean",
        "embedding_std": 1.0,
        "dropout": 0.1,
    },
    "train": {"learning_rate": 1e-3, "batch_size": 32, "steps": 100},
}

OK = Record(
    task="listops",
    attention="softmax",
    variant="default",
    protocol="nystromformer",
    scale="mini",
    seed=0,
    status="ok",
    test_accuracy=0.4,
    test_correct=800,
    test_total=2000,
    test_majority_rate=0.18,
    selected_on="validation",
    best_accuracy=0.5,
    best_step=100,
    steps=100,
    train_seconds=10.0,
    seconds=12.0,
    steps_per_second=10.0,
    tokens_per_second=1000.0,
    peak_memory_bytes=2**28,
    parameters=12_345,
    data_fingerprint="ab" * 32,
    data_source="generated",
    data_description="generated with seed 0",
    deviations=["seeds are fixed"],
    config=CONFIG,
    config_hash="00",
    machine="Processor X",
    device="cpu",
    dtype="float32",
    compiled=False,
    threads=2,
    torch="2.13.0",
    commit="c0ffee" * 6,
    dirty=False,
)


def scored(record: Record, correct: int) -> Record:
    return replace(record, test_correct=correct, test_accuracy=correct / 2000)


FAILED = replace(
    OK,
    attention="fourier",
    status="failed",
    reason="loss nan in steps 1 to 20",
    test_accuracy=None,
    test_correct=None,
    test_total=None,
    best_accuracy=None,
    best_step=None,
)


def test_accuracy_is_a_mean_over_seeds_with_standard_deviation_and_count() -> None:
    records = [scored(replace(OK, seed=seed), n) for seed, n in enumerate([800, 840, 880])]
    table = accuracy_table(build_grid(records))
    assert table == [
        ["attention", "listops", "average", "above chance"],
        ["softmax", "42.0 ± 2.0 (n=3)", "42.0", "29.3"],
        ["(majority class)", "18.0", "-", "-"],
    ]


def test_missing_failed_and_chance_cells_are_shown_as_such() -> None:
    chance = scored(replace(OK, task="image"), 370)
    grid = build_grid([OK, FAILED, chance], ["text"], ["mra"])
    rows = {row[0]: row[1:] for row in accuracy_table(grid)}
    assert rows["attention"] == ["listops", "text", "image", "average", "above chance"]
    assert rows["softmax"] == ["40.0 (n=1)", "missing", "18.5 (n=1) at chance", "-", "-"]
    assert rows["fourier"] == ["failed", "missing", "missing", "-", "-"]
    assert rows["mra"] == ["missing", "missing", "missing", "-", "-"]


@pytest.mark.parametrize(("correct", "at_chance"), [(300, True), (394, True), (395, False)])
def test_chance_extends_two_standard_errors_above_the_majority_rate(
    correct: int, at_chance: bool
) -> None:
    # At a rate of .18 over 2,000 examples, the standard error is 17.18 of them: 360 + 34.4.
    (cell,) = build_grid([scored(OK, correct)]).entries.values()
    assert cell.at_chance == at_chance


def test_variants_have_their_own_rows() -> None:
    table = accuracy_table(build_grid([OK, replace(OK, variant="wide")]))
    assert [row[0] for row in table[1:3]] == ["softmax", "softmax (wide)"]


def test_a_pretrained_method_has_a_row_of_its_own_in_every_table(tmp_path: Path) -> None:
    spt = {"pretrain": "spt", "pretrain_objective": "hidden", "pretrain_loss": 2.5}
    config = CONFIG | {"pretrain": {"name": "spt"}}
    after = replace(scored(OK, 1000), variant="spt", config=config, **spt)
    recall = [replace(record, task="recall") for record in (OK, after)]
    page = write_report(
        store(tmp_path / "runs", OK, after, *recall), tmp_path / "out", "mini", "nystromformer"
    )
    for row in (
        "| softmax          | 40.0 (n=1) ",
        "| softmax (spt)    | 50.0 (n=1) best ",
        "| recall  | softmax       |",
        "| recall  | softmax (spt) |",
    ):
        assert row in page, page
    assert page.index("| listops  ") < page.index("| recall  ")


def test_speed_is_relative_to_softmax_on_the_same_task() -> None:
    fast = replace(OK, attention="fourier", steps_per_second=25.0)
    table = throughput_table(build_grid([OK, fast]))
    assert table[1] == ["listops", "softmax", "10.00", "1,000", "1.00", "", "256", "12,345"]
    assert table[2][2:5] == ["25.00", "1,000", "2.50"]


def test_a_speed_that_varies_too_much_is_marked_and_so_is_every_ratio_to_it() -> None:
    quartiles = {"speed_windows": 9, "steps_per_second_low": 9.5, "steps_per_second_high": 10.5}
    steady = replace(OK, **quartiles)
    busy = replace(steady, attention="fourier", steps_per_second_low=7.9)
    assert steady.speed_spread == pytest.approx(0.1) and OK.speed_spread is None
    table = throughput_table(build_grid([steady, busy]))
    assert table[1][2:6] == ["10.00", "1,000", "1.00", "10%"]
    assert table[2][2:6] == ["10.00 (!)", "1,000 (!)", "1.00 (!)", "26%"]
    # Of two seeds, the one with the larger spread counts.
    table = throughput_table(build_grid([replace(busy, attention="softmax"), steady, steady]))
    assert table[1][2:6] == ["10.00 (!)", "1,000 (!)", "1.00 (!)", "26%"]
    table = throughput_table(
        build_grid([replace(busy, attention="softmax"), replace(steady, attention="mra")])
    )
    assert table[2][2:6] == ["10.00", "1,000", "1.00 (!)", "10%"]


def test_an_older_record_without_a_spread_is_read(tmp_path: Path) -> None:
    runs = store(tmp_path, OK)
    [file] = runs.glob("**/result.json")
    values = json.loads(file.read_text())
    for key in ("steps_per_second_low", "steps_per_second_high", "speed_windows", "micro_batch"):
        del values[key]
    file.write_text(json.dumps(values))
    assert read_record(file).speed_spread is None
    assert throughput_table(build_grid([read_record(file)]))[1][2] == "10.00"


@pytest.mark.parametrize(
    "difference",
    [
        {"machine": "Processor Y"},
        {"device": "cuda"},
        {"dtype": "bfloat16"},
        {"threads": 1},
        {"commit": "other"},
        {"compiled": True},
    ],
)
def test_no_ratio_is_shown_between_records_measured_differently(
    difference: dict[str, object],
) -> None:
    fast = replace(OK, attention="fourier", steps_per_second=25.0, **difference)
    assert throughput_table(build_grid([OK, fast]))[2][4] == ""


def store(folder: Path, *records: Record) -> Path:
    for record in records:
        names = (record.scale, record.protocol, record.task, record.attention, record.variant)
        target = folder.joinpath(*names, f"seed{record.seed}")
        target.mkdir(parents=True)
        write_record(target, record)
    return folder


def test_tables_go_beside_the_runs_and_nothing_is_written_without_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def report(*words: str) -> None:
        monkeypatch.setattr("sys.argv", ["lra report", "scale=mini", *words])
        lra.report.__main__.main()

    for name, beside in (("runs", "results"), ("mine", "results/mine")):
        runs = store(tmp_path / "results" / name, OK)
        report(f"runs_dir={runs}")
        assert (tmp_path / beside / "mini/nystromformer/accuracy.md").is_file()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match="1"):
        report(f"runs_dir={tmp_path / 'none'}")
    assert f"no record in {tmp_path / 'none/mini/nystromformer'}" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_seeds_trained_with_several_versions_of_a_backend_are_reported(tmp_path: Path) -> None:
    own = replace(OK, attention="mine.Mine", attention_source="mine.py sha256 1111")
    runs = store(tmp_path / "runs", own, replace(own, seed=1, attention_source="mine.py sha256 2"))
    for full in (True, False):
        text = write_report(runs, tmp_path, "mini", "nystromformer", full=full)
        assert "Not one method: the seeds of listops/mine.Mine were trained with 2 vers" in text


def test_other_methods_are_compared_with_the_only_variant_of_softmax() -> None:
    short = replace(OK, variant="steps=120")
    fast = replace(short, attention="mra", steps_per_second=2 * OK.steps_per_second)
    assert build_grid([short, fast]).speed_ratio("listops", fast.method) == 2
    # Of several variants, only that of the recipe counts.
    other = replace(OK, variant="heads=1")
    assert build_grid([short, other, fast]).speed_ratio("listops", fast.method) is None
    assert build_grid([OK, short, fast]).speed_ratio("listops", fast.method) == 2


def test_a_report_writes_tables_a_figure_and_notes(tmp_path: Path) -> None:
    runs = store(tmp_path / "runs", OK, FAILED, replace(OK, seed=1, selected_on="test"))
    text = write_report(runs, tmp_path / "out", "mini", "nystromformer", ["image"])
    folder = tmp_path / "out" / "mini" / "nystromformer"
    page = (folder / "accuracy.md").read_text()
    assert page in text and (folder / "throughput.md").read_text() in text
    for words in (
        "scale mini, protocol nystromformer (generated data)",
        "sha256 abababababababab",
        "Processor X, cpu, float32, 2 threads, torch 2.13.0",
        "Code: c0ffeec0ffee",
        "Selected on the test set, as published: listops",
        "Failed: listops/fourier seed 0: loss nan in steps 1 to 20",
        "learning_rate 0.001",
        "* seeds are fixed",
    ):
        assert words in page, words
    assert (folder / "accuracy_vs_speed.svg").read_text().startswith("<?xml")
    with open(folder / "accuracy.csv", newline="") as file:
        rows = {(row["task"], row["attention"]): row for row in csv.DictReader(file)}
    assert rows["listops", "softmax"]["seeds"] == "2"
    assert rows["listops", "fourier"]["status"] == "failed"
    assert rows["image", "softmax"]["status"] == "missing"


def test_the_throughput_of_every_cell_is_written_as_numbers(tmp_path: Path) -> None:
    slow = replace(OK, seed=1, steps_per_second=8.0, tokens_per_second=800.0)
    slow = replace(slow, peak_memory_bytes=2**29)
    fast = replace(OK, attention="mra", steps_per_second=18.0, parameters=54_321)
    foreign = replace(fast, attention="linear", machine="Processor Y")
    runs = store(tmp_path / "runs", OK, slow, fast, foreign, FAILED)
    write_report(runs, tmp_path / "out", "mini", "nystromformer", ["image"])
    with open(tmp_path / "out/mini/nystromformer/throughput.csv", newline="") as file:
        rows = {(row["task"], row["attention"]): row for row in csv.DictReader(file)}
    columns = (
        "variant", "steps_per_second", "tokens_per_second", "ratio_to_softmax",
        "peak_memory_bytes", "parameters", "status", "source",
    )  # fmt: skip
    values = {key: [row[column] for column in columns] for key, row in rows.items()}
    # The median over seeds, and the largest of their memory.
    measured = ["9.0", "900.0", "1.0", str(2**29), "12345", "ok", "generated"]
    assert values["listops", "softmax"] == ["default", *measured]
    measured = ["18.0", "1000.0", "2.0", str(2**28), "54321", "ok", "generated"]
    assert values["listops", "mra"] == ["default", *measured]
    assert values["listops", "linear"][1:4] == ["18.0", "1000.0", ""]
    assert values["listops", "fourier"] == ["default", *[""] * 5, "failed", ""]
    assert values["image", "softmax"] == ["default", *[""] * 5, "missing", ""]
    assert len(rows) == 8


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    runs = store(tmp_path / "runs", OK, replace(OK, attention="fourier"))
    contents = []
    for name in ("a", "b"):
        write_report(runs, tmp_path / name, "mini", "nystromformer")
        files = sorted((tmp_path / name / "mini" / "nystromformer").iterdir())
        contents.append([file.read_bytes() for file in files])
    assert len(contents[0]) == 11 and contents[0] == contents[1]


def test_published_figures_appear_below_measured_ones_only_at_the_paper_scale(
    tmp_path: Path,
) -> None:
    runs = store(tmp_path / "runs", OK, replace(OK, scale="paper"))
    mini = write_report(runs, tmp_path / "out", "mini", "nystromformer")
    paper = write_report(runs, tmp_path / "out", "paper", "nystromformer")
    assert "Published figures" not in mini and "comparable only within this table" in mini
    measured, published = paper.split("## Published figures, protocol nystromformer")
    assert "37.1" in published and "mlpen/Nystromformer" in published
    assert "mlpen/Nystromformer" not in measured


def test_records_of_another_scale_or_protocol_are_never_mixed_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = store(tmp_path / "runs", OK)
    for seed, change in enumerate(({"scale": "paper"}, {"protocol": "lra"}), 1):
        foreign = scored(replace(OK, seed=seed, **change), 2000)
        folder = runs.joinpath("mini", "nystromformer", *foreign.place)
        folder.mkdir()
        write_record(folder, foreign)
    page = write_report(runs, tmp_path / "out", "mini", "nystromformer")
    assert "40.0 (n=1)" in page and caplog.text.count("left out:") == 2
    assert "has the record of mini/lra/listops/softmax/default" in caplog.text
    with pytest.raises(AssertionError, match="never mix"):
        build_grid([OK, replace(OK, scale="paper")])


def test_bad_rows_that_were_left_out_are_noted(tmp_path: Path) -> None:
    skipped = [replace(OK, seed=seed, data_skipped_rows=1_200) for seed in (0, 1)]
    store(tmp_path / "runs", *skipped)
    page = write_report(tmp_path / "runs", tmp_path / "out", "mini", "nystromformer")
    assert "Bad rows left out of listops: 1,200." in page


def test_stand_in_data_never_appear_at_the_paper_scale(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = store(tmp_path / "runs", replace(OK, scale="paper", data_source="stand-in"))
    page = write_report(runs, tmp_path / "out", "paper", "nystromformer", ["listops"], ["softmax"])
    assert "missing" in page and "40.0" not in page
    assert "left out: listops/softmax was trained on stand-in data" in caplog.text


def test_a_report_without_any_record_shows_what_is_missing(tmp_path: Path) -> None:
    page = write_report(tmp_path, tmp_path, "mini", "nystromformer", ["image"], ["softmax"])
    assert "missing" in page


def test_a_published_table_contains_only_its_own_protocol() -> None:
    methods = {row[0] for row in published_table("nystromformer", ["listops", "image"])[1:]}
    assert {"Transformer", "Nystromformer", "Skyformer"} <= methods
    assert published_table("unheard of", ["listops"]) == []


def test_markdown_columns_line_up() -> None:
    lines = markdown([["a", "long header"], ["longer cell", "b"]]).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 3


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    for record in (OK, FAILED):
        write_record(tmp_path, record)
        assert read_record(tmp_path / RECORD) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema 99, should be 1"),
        ({"seed": "zero"}, "seed='zero' must be int"),
        ({"status": "fine"}, r"status='fine' must be ok \| failed"),
        ({"test_accuracy": None}, "test_accuracy is null though status is ok"),
        ({"pretrain": "spt"}, "pretrain_loss is null though status is ok"),
        ({"surprise": 1}, "key 'surprise' is unknown"),
        ({"task": ...}, "key 'task' is missing"),
    ],
)
def test_an_invalid_record_is_refused_by_file_and_key(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    values = {key: v for key, v in (asdict(OK) | change).items() if v is not ...}
    file = tmp_path / RECORD
    file.write_text(json.dumps(values))
    with pytest.raises(RecordError, match=f"{file}: {message}"):
        read_record(file)


def test_a_record_older_than_a_key_with_a_default_is_read(tmp_path: Path) -> None:
    values = asdict(OK)
    del values["data_skipped_rows"]
    (tmp_path / RECORD).write_text(json.dumps(values))
    assert read_record(tmp_path / RECORD) == OK


def test_damaged_files_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store(tmp_path, OK)
    for name, content in {"x": "{", "y": "[1]", "z": "[" * 100_000}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / RECORD).write_text(content)
    with caplog.at_level(logging.WARNING):
        assert list(read_records(tmp_path)) == [OK]
    assert caplog.text.count("left out:") == 3
    assert f"{tmp_path / 'x' / RECORD}: not readable as JSON" in caplog.text


def test_changed_code_is_dirty_and_new_records_are_not(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        author = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
        command = ["git", *author, *arguments]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "lra").mkdir()
    (tmp_path / "lra" / "x.py").write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "result.json").write_text("{}")
    commit, dirty = code_version.__wrapped__(tmp_path)
    assert len(commit) == 40 and not dirty
    (tmp_path / "lra" / "x.py").write_text("1")
    assert code_version.__wrapped__(tmp_path) == (commit, True)


def test_a_record_in_a_folder_with_another_name_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store(tmp_path, OK)
    (folder,) = tmp_path.glob("**/seed0")
    shutil.copytree(folder, folder.with_name("seed0 copy"))
    assert list(read_records(tmp_path)) == [OK]
    assert "is the record of listops/softmax/default/seed0" in caplog.text


def test_records_are_found_from_within_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path, OK)
    (seed,) = tmp_path.glob("**/seed0")
    monkeypatch.chdir(seed)
    assert list(read_records(Path())) == [OK]
    monkeypatch.chdir(seed.parents[2])
    assert list(read_records(Path("softmax"))) == [OK]


def test_keys_that_a_record_leaves_out_match_at_their_defaults() -> None:
    words = ["task=listops", "attention=softmax", "scale=mini"]
    record = replace(OK, config=comparable(load(*words), device="cpu", threads=1))

    def selects(*more: str) -> bool:
        [selected] = selections(command([*words, *more]), groups([*words, *more]))
        return selected.has(record)

    assert selects("train.micro_batch=4", "model.norm=layer", "model.activation=gelu")
    assert not selects("model.norm=batch") and not selects("train.steps=3")


def test_a_record_that_contradicts_its_configuration_does_not_count_as_another_seed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    honest = replace(OK, config=CONFIG | {"seed": 0})
    store(tmp_path, honest)
    store(tmp_path, replace(honest, seed=1))
    assert list(read_records(tmp_path)) == [honest]
    assert "seed=1 contradicts its configuration, which has 0" in caplog.text


def test_an_accuracy_of_zero_is_a_result() -> None:
    assert accuracy_table(build_grid([scored(OK, 0)]))[1][1] == "0.0 (n=1) at chance"


def test_missing_seeds_are_counted() -> None:
    (cell,) = build_grid([OK], seeds=[0, 1, 2]).entries.values()
    assert cell.accuracy_text == "40.0 (n=1), 2 missing"


REAL = replace(
    scored(OK, 1700),
    task="text",
    test_majority_rate=0.5,
    data_source="published",
    data_fingerprint="cd" * 32,
)
STAND_IN = replace(
    scored(REAL, 1400),
    attention="fourier",
    test_majority_rate=0.6,
    data_source="stand-in",
    data_fingerprint="ef" * 32,
)


def test_accuracies_on_different_data_have_separate_columns(tmp_path: Path) -> None:
    records = [OK, replace(OK, attention="fourier"), REAL, STAND_IN]
    table = accuracy_table(build_grid(records, ["listops", "text"]))
    assert table == [
        [
            "attention",
            "listops",
            "text [published cdcdcdcd]",
            "text [stand-in efefefef]",
            "average",
            "above chance",
        ],
        ["softmax", "40.0 (n=1)", "85.0 (n=1)", "other data", "-", "-"],
        ["fourier", "40.0 (n=1)", "other data", "70.0 (n=1)", "-", "-"],
        # Each column has its own rate.
        ["(majority class)", "18.0", "50.0", "60.0", "-", "-"],
    ]
    for record in records:
        store(tmp_path / "runs", record)
    page = write_report(tmp_path / "runs", tmp_path, "mini", "nystromformer")
    assert "records of text come from different data sets, each with a column of its own" in page
    # So do seeds of one cell on different data.
    seeds = [OK, replace(scored(OK, 1000), seed=1, data_fingerprint="cd" * 32)]
    columns = accuracy_table(build_grid(seeds))
    assert columns[1][1:3] == ["40.0 (n=1)", "50.0 (n=1)"] and "average" in columns[0]


def test_equal_data_from_equal_sources_share_a_column_and_an_average() -> None:
    records = [OK, replace(OK, seed=1, data_description="generated elsewhere"), REAL]
    table = accuracy_table(build_grid(records))
    assert table[0] == ["attention", "listops", "text", "average", "above chance"]
    assert table[1][1].startswith("40.0 ± 0.0 (n=2)") and table[1][3] == "62.5"


def test_names_given_by_users_are_only_text_in_markdown_csv_and_figures(tmp_path: Path) -> None:
    names = ["=1+1", "+a", "-a", "@a", "a|b", "<b>x</b>", "$a_{b$", "a\x1b[31m", "two\nlines"]
    for index, name in enumerate(names):
        grid = build_grid([replace(OK, variant=name, data_description=name)])
        out = tmp_path / str(index)
        out.mkdir()
        save(accuracy_against_speed(grid, f"of {name}"), out / "figure")
        write_accuracy_csv(out / "accuracy.csv", grid, [], {})
        with open(out / "accuracy.csv", newline="") as file:
            _, line = csv.reader(file)
        assert line[3].removeprefix("'") == printable(name) and line[3][0] not in "=+-@"
        page = accuracy_page(grid, "mini", "nystromformer", [], {})
        assert "\x1b" not in page and "<b>" not in page
        rows = [text for text in page.splitlines() if text.startswith("| softmax")]
        assert len(rows) == 1 and len(re.findall(r"(?<!\\)\|", rows[0])) == 5
        failed = replace(OK, status="failed", reason=name, departures=name)
        printed = screen(build_grid([OK, replace(failed, seed=1)]), "mini", "nystromformer", [], {})
        assert "\x1b" not in printed and "two\n" not in printed and "Failed: " in printed


def test_stand_in_data_are_labelled_in_both_tables() -> None:
    grid = build_grid([replace(OK, data_source="stand-in")])
    assert accuracy_table(grid)[0][1] == throughput_table(grid)[1][0] == "listops (stand-in)"
