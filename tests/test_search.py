"""A real search of ten trials, and a check that every file of words can be composed."""

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny_cell import TINY

from lra.compose import command, groups, known_keys, load
from lra.paths import CONFIGS
from lra.record import RECORD, read_record
from lra.words import expand, key_of

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted(file.stem for file in (CONFIGS / "experiment").glob("*.yaml"))
SEARCHES = sorted(file.stem for file in (CONFIGS / "search").glob("*.yaml"))


# The experiments of papers have the most cells.
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * n.endswith("_paper")) for n in EXPERIMENTS],
)
def test_every_cell_of_an_experiment_can_be_composed(name: str) -> None:
    words = command([f"experiment={name}"])
    cells = list(expand(words, groups()))
    assert len(cells) > 10
    for cell in cells:
        chosen = dict(word.partition("=")[::2] for word in cell)
        config = load(*cell)
        assert (config.task.name, config.attention.name) == (chosen["task"], chosen["attention"])
        assert config.variant == "default"


def test_words_given_with_an_experiment_override_its_own() -> None:
    words = command(["experiment=mra_paper", "task=text", "seed=0,1"])
    keys = [key_of(word) for word in words]
    assert len(keys) == len(set(keys)) and {"task=text", "seed=0,1", "scale=paper"} < set(words)


@pytest.mark.parametrize("folder", ["experiment", "search"])
def test_a_header_gives_the_command_that_runs_its_file(folder: str) -> None:
    for file in (CONFIGS / folder).glob("*.yaml"):
        [line] = [each for each in file.read_text().splitlines() if each.startswith("# Run: lra ")]
        words = [word for word in shlex.split(line)[4:] if not word.startswith("data_dir=")]
        assert f"{folder}={file.stem}" in words
        command([word for word in words if key_of(word) != "search"])


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_is_over_existing_keys(name: str) -> None:
    params = OmegaConf.load(CONFIGS / "search" / f"{name}.yaml").hydra.sweeper.params
    assert len(params) and set(params) <= set(known_keys())


def test_debug_is_a_cell_of_seconds_at_the_mini_scale_unless_another_scale_is_named() -> None:
    config = load("debug=true", "task=text")
    assert (config.scale, config.variant) == ("mini", "debug")
    assert config.train.steps * config.train.batch_size <= 100
    assert load("debug=true", "scale=paper").scale == "paper"
    assert load("debug=false").variant == "default"


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="the extra optuna is not installed"
)
def test_a_search_of_ten_trials_maximises_the_validation_accuracy(tmp_path: Path) -> None:
    words = [word for word in TINY if not word.startswith(("variant", "train.steps"))]
    words += ["train.steps=20", f"cache_dir={tmp_path}/cache", f"runs_dir={tmp_path}/runs"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "lra", "train", "search=learning_rate", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    records = [read_record(file) for file in (tmp_path / "runs").glob(f"**/{RECORD}")]
    rates = {record.config["train"]["learning_rate"] for record in records}
    assert len(records) == len(rates) == 10 and min(rates) >= 1e-4 and max(rates) <= 0.1
    found = OmegaConf.load(next((tmp_path / "runs").glob("**/optimization_results.yaml")))
    best = max(record.best_accuracy or 0 for record in records)
    assert found.best_value == pytest.approx(best)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("best by validation")]
    assert line.startswith(f"best by validation, {100 * best:.1f} %: lra train ")
    # The command trains that trial, and does not search again.
    assert "search=" not in line
