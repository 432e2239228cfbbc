"""Departures from a recipe: the names they give to folders, and their mark in every table."""

import csv
import itertools
import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from test_report import OK, store
from tiny_cell import TINY

from lra import variant
from lra.compose import departures, load, place
from lra.config import ConfigError
from lra.record import RECORD, read_record, write_record
from lra.report.deviations import concerns
from lra.report.pages import write_report
from lra.sweep import Outcome, summary

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["seed=3", "device=cpu", "threads=1", "data_dir=/x"], "default"),
        (["train.learning_rate=0.001", "train.steps=2000"], "learning_rate=0.001,steps=2000"),
        (["train.steps=2000", "train.learning_rate=1e-3"], "learning_rate=0.001,steps=2000"),
        # What the recipe has anyway is no departure.
        (["train.steps=5000", "model.layers=2"], "default"),
        (["model.classifier_dims=[64,32]"], "classifier_dims=64-32"),
        (["validation=test"], "validation=test"),
        (["scale=mini", "train.steps=700"], "steps=700"),
        (["attention=fourier", "attention.options.norm=ortho"], "norm=ortho"),
        (["attention=wavspa", "attention@attention.inner=mra"], "inner=mra"),
        (["train.steps=2000", "variant=short"], "short"),
        (["train.steps=2000", "variant=default"], "default"),
    ],
)
def test_a_variant_is_named_after_its_departures_from_the_recipe(
    words: list[str], name: str
) -> None:
    config, folder = place(*words)
    assert config.variant == name and folder.parts[-2] == name


def test_every_name_is_a_valid_folder_name_and_different_values_have_different_ones() -> None:
    def named(**values: object) -> str:
        return variant.name({key: (value, None) for key, value in values.items()})

    texts = ["a/b", "a|b", "a b", "a:b", "a_b", "ü", "x" * 300, "x" * 301]
    names = [named(path=text) for text in texts]
    assert len(set(names)) == len(texts) and max(map(len, names)) <= variant.MAX_LENGTH + 9
    assert not set("".join(names)) & set('/\\|<>:"?* ')
    assert variant.name({}) == "default"
    both = {"attention.options.rank": (1, 2), "attention.inner.options.rank": (3, 4)}
    assert variant.name(both) == "attention.options.rank=1,inner.options.rank=3"


def test_a_sweep_over_any_key_has_a_folder_for_each_of_its_cells() -> None:
    rates, layers = ("1e-3", "1e-4", "1e-5"), ("1", "2")
    folders = {
        place(f"train.learning_rate={rate}", f"model.layers={count}")[1]
        for rate, count in itertools.product(rates, layers)
    }
    assert len(folders) == 6


def test_a_warm_up_that_is_too_long_shrinks_with_the_number_of_updates(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO"):
        config = load("train.steps=60")
    assert (config.train.steps, config.train.warmup_steps) == (60, 12)
    assert "train.warmup_steps=12: in proportion to train.steps=60, as 1000 of 5000" in caplog.text
    # So does that of every schedule that ends with the run.
    assert load("protocol=s4", "task=image", "train.steps=100").train.warmup_steps == 10
    # It stays if it fits, as it did before, and if it was asked for.
    assert load("train.steps=2000").train.warmup_steps == 1000
    with pytest.raises(ConfigError, match=r"train.warmup_steps=70: .*fewer than train.steps=60"):
        load("train.steps=60", "train.warmup_steps=70")


def test_a_row_that_departs_from_its_recipe_is_marked_and_explained_in_every_table(
    tmp_path: Path,
) -> None:
    config = load("scale=mini", "attention=fourier", "train.steps=300")
    description = variant.describe(departures(asdict(config)))
    assert description == "train.steps=300 instead of 1000"
    plain = {"variant": "default", "departures": ""}
    rows = [asdict(OK) | plain]
    rows += [
        rows[0] | {"attention": "fourier", "variant": config.variant, "departures": description}
    ]
    runs = store(tmp_path / "runs", *(type(OK)(**row) for row in rows))
    pages = write_report(runs, tmp_path, "mini", "nystromformer")
    brief = write_report(runs, tmp_path, "mini", "nystromformer", full=False)
    line = f"[*] listops/fourier (steps=300) departs from its recipe: {description}."
    for text in (pages, brief):
        assert text.count("| fourier (steps=300) [*] |") == 2 and line in text
        assert "softmax [*]" not in text
    assert "[*]" in (tmp_path / "mini/nystromformer/accuracy_vs_speed.svg").read_text()
    for name in ("accuracy", "throughput"):
        with open(tmp_path / f"mini/nystromformer/{name}.csv", newline="") as file:
            found = {row["attention"]: row["departures"] for row in csv.DictReader(file)}
        assert found == {"softmax": "", "fourier": description}


def test_an_older_record_is_also_compared_with_its_recipe(tmp_path: Path) -> None:
    [file] = (ROOT / "results/runs/paper").glob("**/steps800/seed0/result.json")
    assert "departures" not in json.loads(file.read_text())
    folder = tmp_path.joinpath(*file.parts[-7:-1])
    folder.mkdir(parents=True)
    write_record(folder, read_record(file))
    page = write_report(tmp_path, tmp_path / "out", "paper", "nystromformer")
    assert "fourier (steps800) [*]" in page and "train.steps=800 instead of 5000" in page


def test_only_deviations_of_the_tasks_and_backends_that_ran_are_listed() -> None:
    general = "the whole test set counts; the published code drops the last partial batch"
    image = "Image is divided in the order of files and Pathfinder by a seed"
    performer = "Performer is FAVOR+ at the scale of softmax"
    for task, attention, expected in (
        ("listops", "softmax", [general]),
        ("image", "softmax", [general, image]),
        ("pathfinder", "performer", [general, image, performer]),
    ):
        record = type(OK)(**asdict(OK) | {"task": task, "attention": attention})
        lines = [each for each in (general, image, performer) if concerns(each, record)]
        assert lines == expected


def test_the_command_that_repeats_cells_has_the_words_on_where_they_run_and_lie() -> None:
    outcome = Outcome(words=["task=text", "seed=1"], name="a", folder="f", state="failed")
    around = ["hydra/launcher=joblib", "hydra.sweep.dir=/there", "hydra.searchpath=[file:///own]"]
    given = ["task=text", "seed=0,1", *around, "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=2"]
    [line] = [each for each in summary([outcome], given).splitlines() if "again" in each]
    assert shlex.split(line.partition(": ")[2])[2:] == ["task=text", "seed=1", *around]


@pytest.mark.slow
def test_a_sweep_reports_how_it_ended(tmp_path: Path) -> None:
    words = [word for word in TINY if not word.startswith("variant")]
    words += [f"cache_dir={tmp_path}/a, b", f"runs_dir={tmp_path}/runs"]
    command = [sys.executable, "-m", "lra", "train", "attention=softmax,fourier", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def run(*more: str) -> tuple[int, str]:
        done = subprocess.run(
            [*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        return done.returncode, done.stdout

    status, out = run("train.learning_rate=1e-3,1e30")
    end = out[out.index("4 cells: ") :]
    assert status == 1 and end.startswith("4 cells: 2 done, 2 failed.\n")
    assert "failed: listops/softmax " in end
    again = [
        line for line in end.splitlines() if line.startswith("run just these again: lra train ")
    ]
    assert len(again) == 1 and "train.learning_rate=1e+30" in again[0] and "0.001" not in again[0]
    assert end.index("| softmax") < end.index("Files: ") and "[*] listops/softmax" in end
    assert "Traceback" not in out and len(out.splitlines()) < 60
    status, out = run("train.learning_rate=1e-3")
    assert status == 0 and "2 cells: 2 skipped because already finished." in out
    assert len(list((tmp_path / "runs").glob(f"**/{RECORD}"))) == 4
