"""The whole path on tiny cells: records, skipping, failing, and continuing to the same bits."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from tiny_cell import TINY, configure
from torch import nn

import lra.runner
import lra.tasks.cache
import lra.train
from lra.batches import Batches
from lra.build import batches_for, build_attention, build_model, build_task
from lra.checkpoint import BEST, CHECKPOINT, load, load_best
from lra.compose import place
from lra.config import ConfigError
from lra.loop import Run
from lra.predictions import Predictions
from lra.record import RECORD, Record, read_record, read_records
from lra.runner import CellFailedError, run_cell
from lra.tasks import DataError, Source
from lra.tasks.listops import ListOps
from lra.words import Groups

ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path, *overrides: str, name: str = "run") -> Record:
    target = folder / name
    target.mkdir(exist_ok=True)
    record = run_cell(configure(folder, *overrides), target)
    assert record is not None
    return record


def test_a_cell_leaves_a_record_that_says_what_was_done(tmp_path: Path) -> None:
    record = run(tmp_path, "attention=fourier", "seed=3")
    assert read_record(tmp_path / "run" / RECORD) == record
    assert (record.task, record.attention, record.seed) == ("listops", "fourier", 3)
    assert (record.status, record.scale, record.data_source) == ("ok", "mini", "generated")
    assert record.test_total == 24 and record.steps == 60
    assert record.test_accuracy == record.test_correct / 24
    assert record.best_step in (25, 50, 60)
    assert len(record.data_fingerprint) == 64
    assert record.config["task"]["options"]["num_train"] == 64
    assert record.machine and record.torch == torch.__version__
    assert any(file.name.startswith("events") for file in (tmp_path / "run").iterdir())


def test_a_finished_cell_is_skipped_at_once_and_trained_again_if_forced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path, "train.checkpoint_seconds=0")

    def refused(*arguments: object, **named: object) -> None:
        raise AssertionError("a finished cell needs neither data nor a model")

    with monkeypatch.context() as without, caplog.at_level(logging.INFO):
        without.setattr(lra.tasks.cache, "load", refused)
        without.setattr(lra.runner, "build_model", refused)
        assert run_cell(configure(tmp_path), tmp_path / "run") is None
    assert "listops/softmax seed0 is finished" in caplog.text
    with caplog.at_level(logging.INFO):
        again = run(tmp_path, "force=true")
    assert "continues at step" not in caplog.text
    assert again.test_correct == first.test_correct


def test_a_forced_cell_keeps_its_old_record_until_the_new_data_are_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path)

    def missing(*arguments: object) -> None:
        raise DataError("no data")

    monkeypatch.setattr(lra.tasks.cache, "load", missing)
    with pytest.raises(DataError):
        run(tmp_path, "force=true")
    assert read_record(tmp_path / "run" / RECORD) == first


def test_newer_options_count_at_their_defaults_in_an_older_record(tmp_path: Path) -> None:
    run(tmp_path)
    file = tmp_path / "run" / RECORD
    values = json.loads(file.read_text())
    del values["config"]["model"]["gelu"], values["config"]["train"]["clip_norm"]
    file.write_text(json.dumps(values))
    assert run_cell(configure(tmp_path), tmp_path / "run") is None


def test_a_cell_finished_on_generated_data_is_not_finished_for_published_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    published = Source("published", "files")
    monkeypatch.setattr(ListOps, "locate", lambda self, data_dir: published)
    with pytest.raises(ConfigError, match="data.source: generated there, published here"):
        run(tmp_path)


def test_a_checkpoint_of_other_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    (tmp_path / "run" / RECORD).unlink()
    monkeypatch.setattr(lra.tasks.cache, "fingerprint", lambda splits: "00" * 32)
    with pytest.raises(ConfigError, match="another configuration, other data or an attention"):
        run(tmp_path)


def test_two_processes_never_train_the_same_cell(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (
        FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(ConfigError, match="another process trains this cell"),
    ):
        run(tmp_path)


def test_a_record_of_another_configuration_stops_the_run_and_shows_the_difference(
    tmp_path: Path,
) -> None:
    run(tmp_path)
    with pytest.raises(ConfigError, match=r"(?s)train.steps: 60 there, 50 here.*variant=\.\.\."):
        run(tmp_path, "train.steps=50")


def test_a_damaged_record_is_named_and_the_cell_is_trained_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path)
    (tmp_path / "run" / RECORD).write_text("{")
    run(tmp_path)
    assert "not readable as JSON" in caplog.text


def test_the_same_seed_gives_the_same_bits_and_another_seed_gives_different_ones(
    tmp_path: Path,
) -> None:
    run(tmp_path, name="a")
    run(tmp_path, name="b")
    run(tmp_path, "seed=1", name="c")
    a, b, c = (load(tmp_path / n / BEST, torch.device("cpu"))["model"] for n in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(torch.equal(a[key], c[key]) for key in a if key.endswith("qkv.weight"))


def test_a_loss_that_is_not_finite_ends_the_cell_as_failed(tmp_path: Path) -> None:
    with pytest.raises(CellFailedError, match="listops/softmax seed0 failed: loss nan"):
        run(tmp_path, "train.learning_rate=1e30", "model.attention_dropout=0.0")
    record = read_record(tmp_path / "run" / RECORD)
    assert record.status == "failed" and record.reason.startswith("loss nan in steps")
    assert record.test_accuracy is None
    # A failed cell is not finished: it may be tried again.
    with pytest.raises(CellFailedError):
        run(tmp_path, "train.learning_rate=1e30", "model.attention_dropout=0.0")


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "train.checkpoint_seconds=0")
    (tmp_path / "run" / RECORD).unlink()
    with pytest.raises(ConfigError, match="belongs to another configuration"):
        run(tmp_path, "train.learning_rate=1e-4")


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"half of it")
    with pytest.raises(ConfigError, match=f"{CHECKPOINT}: not a readable checkpoint"):
        run(tmp_path)


def test_validation_chooses_and_the_test_set_is_used_only_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lra.classification
    import lra.runner

    sizes = []

    def counting(model: object, batches: Batches, *_: object) -> Predictions:
        sizes.append(len(batches))
        answers = np.zeros(len(batches), dtype=np.int64)
        return Predictions(answers, (np.arange(len(batches)) >= len(sizes)).astype(np.int64))

    monkeypatch.setattr(lra.classification, "predict", counting)
    monkeypatch.setattr(lra.runner, "predict", counting)
    record = run(tmp_path)
    assert sizes == [16, 16, 16, 24]
    assert (record.selected_on, record.best_step) == ("validation", 60)
    sizes.clear()
    assert run(tmp_path, "validation=test", name="other").selected_on == "test"
    assert sizes == [24, 24, 24, 24]


def test_the_test_set_is_given_the_parameters_that_validation_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested, predict = [], lra.runner.predict

    def spy(model: nn.Module, *rest: Any) -> Predictions:
        tested.append({key: value.clone() for key, value in model.state_dict().items()})
        return predict(model, *rest)

    monkeypatch.setattr(lra.runner, "predict", spy)
    # Nothing is learned, so that the first validation is the best.
    record = run(tmp_path, "train.learning_rate=1e-9")
    best = load_best(tmp_path / "run", torch.device("cpu"))
    last = load(tmp_path / "run" / CHECKPOINT, torch.device("cpu"))["model"]
    assert record.best_step < record.steps
    assert all(torch.equal(tested[0][key], best[key]) for key in best)
    assert not all(torch.equal(tested[0][key], last[key]) for key in best)


def test_seeds_have_their_own_initial_values(tmp_path: Path) -> None:
    one, two = (build_model(configure(tmp_path, f"seed={n}")).state_dict() for n in (0, 1))
    drawn = [key for key in one if key.endswith("qkv.weight")]
    assert drawn and not any(torch.equal(one[key], two[key]) for key in drawn)


def test_seeds_have_their_own_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, fit = [], Run.fit

    def spy(self: Run) -> None:
        drawn.append(torch.get_rng_state().clone())
        fit(self)

    monkeypatch.setattr(Run, "fit", spy)
    for seed in (0, 1):
        run(tmp_path, f"seed={seed}", "train.steps=7", name=f"seed{seed}")
    assert not torch.equal(*drawn)


def test_a_run_counts_real_tokens_and_the_majority_of_the_test_set(tmp_path: Path) -> None:
    record = run(tmp_path)
    progress = load(tmp_path / "run" / CHECKPOINT, torch.device("cpu"))["progress"]
    config = configure(tmp_path)
    data = lra.tasks.cache.load("listops", build_task(config), tmp_path / "cache").splits
    batches = batches_for(config, build_task(config), build_model(config), data["train"])
    assert progress["tokens"] == sum(batches.num_tokens(step, 4, 0) for step in range(60))
    assert record.test_majority_rate == np.bincount(data["test"].labels).max() / 24
    assert record.test_majority_rate != np.bincount(data["train"].labels).max() / 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=0,0"], "this cell is asked for 2 times"),
        (["seed=range(3,0)"], "this sweep has no cell"),
        (["search=learning_rate", "seed=0,1"], "seed=0,1: a search must not choose"),
        (["search=learning_rate", "task=listops,text"], "task=listops,text: a search must not"),
    ],
)
def test_a_sweep_that_cannot_mean_what_it_says_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["lra train", *words])
    with pytest.raises(SystemExit) as stopped:
        lra.train.main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_a_search_is_not_sent_to_a_queue() -> None:
    with pytest.raises(ConfigError, match="a search needs the result of each trial"):
        lra.train._check_sweep([], Groups(()), None, "slurm")


def test_training_also_works_in_bfloat16_and_on_two_threads(tmp_path: Path) -> None:
    steps = ["train.steps=4", "train.warmup_steps=2"]
    try:
        record = run(tmp_path, "train.precision=bfloat16", "threads=2", *steps)
    finally:
        torch.set_num_threads(1)
    assert (record.dtype, record.threads) == ("bfloat16", 2)


def test_attention_names_are_checked_when_the_attention_is_built(tmp_path: Path) -> None:
    config = configure(tmp_path)
    wrong = replace(config.attention, name="softmx")
    with pytest.raises(ConfigError, match="attention.name=softmx: no such backend; choose one of"):
        build_attention(wrong)


def test_an_inner_backend_is_required_or_refused_depending_on_the_outer_one(tmp_path: Path) -> None:
    softmax = configure(tmp_path).attention
    wavspa = configure(tmp_path, "attention=wavspa").attention
    with pytest.raises(ConfigError, match="attention.inner: wavspa needs a backend"):
        build_attention(replace(wavspa, inner=None))
    with pytest.raises(ConfigError, match="attention.inner: softmax takes no inner backend"):
        build_attention(replace(softmax, inner=softmax))
    nested = configure(tmp_path, "attention=wavspa", "attention@attention.inner=fourier")
    assert nested.attention.inner is not None and nested.attention.inner.name == "fourier"
    build_attention(nested.attention)


def test_too_few_classes_for_the_labels_are_refused(tmp_path: Path) -> None:
    message = "task.num_classes=5: the labels of listops are 0 to 9, so it must be at least 10"
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, "task.num_classes=5")


def command(folder: Path, *overrides: str) -> list[str]:
    values = [*TINY, f"cache_dir={folder / 'cache'}", f"runs_dir={folder / 'runs'}", *overrides]
    flags = ["-m"] if any("," in override for override in overrides) else []
    return [sys.executable, "-m", "lra.train", *flags, *values]


def heed_signals() -> None:
    """Undo that nohup, or a shell that runs the tests in the background, has signals ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(folder: Path, *overrides: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(folder, *overrides),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_signals,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Wait for a process; return its exit code and what it printed."""
    output = process.communicate()[0]
    return process.returncode, output


def run_folder(folder: Path) -> Path:
    return folder / "runs" / "mini" / "nystromformer" / "listops" / "softmax" / "default" / "seed0"


def test_a_run_that_is_told_to_stop_saves_its_checkpoint_first(tmp_path: Path) -> None:
    options = ["train.steps=100000", "train.validate_every=10", "train.checkpoint_seconds=1e9"]
    process = start(tmp_path, *options)
    assert process.stdout is not None
    for line in process.stdout:
        if "step 30/" in line:
            break
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 143
    step = load(run_folder(tmp_path) / CHECKPOINT, torch.device("cpu"))["progress"]["step"]
    assert step >= 30 and f"stopped at step {step}; start again to continue" in output


@pytest.mark.slow
def test_a_run_of_fewer_updates_than_the_warm_up_is_found_under_its_name(
    tmp_path: Path,
) -> None:
    few = {"variant", "train.steps", "train.warmup_steps"}
    words = [word for word in TINY if word.partition("=")[0] not in few]
    words += [f"cache_dir={tmp_path / 'cache'}", f"runs_dir={tmp_path / 'runs'}", "train.steps=4"]
    subprocess.run([sys.executable, "-m", "lra.train", *words], cwd=ROOT, check=True)
    [record] = read_records(tmp_path)
    assert record.steps == 4 and record.config["train"]["warmup_steps"] == 2


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits_as_an_uninterrupted_one(tmp_path: Path) -> None:
    # Enough steps to be killed in the middle; a checkpoint after each.
    options = ["train.steps=100", "train.validate_every=25", "train.checkpoint_seconds=0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert finish(start(whole, *options))[0] == 0
    process = start(broken, *options)
    checkpoint = run_folder(broken) / CHECKPOINT
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if checkpoint.exists() and load(checkpoint, torch.device("cpu"))["progress"]["step"] > 30:
            break
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[0]
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    step = load(checkpoint, torch.device("cpu"))["progress"]["step"]
    assert 30 < step < 100
    code, output = finish(start(broken, *options))
    assert code == 0, output
    assert f"continues at step {step}" in output
    states = [load(run_folder(f) / CHECKPOINT, torch.device("cpu")) for f in (whole, broken)]
    for key in ("model", "best_model", "random"):
        ours, theirs = states[0][key], states[1][key]
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), key
    assert states[0]["schedule"] == states[1]["schedule"]
    assert len(states[0]["losses"]) == 100 and torch.equal(states[0]["losses"], states[1]["losses"])
    moments = [state["optimiser"]["state"] for state in states]
    assert all(
        torch.equal(moments[0][index][name], moments[1][index][name])
        for index in moments[0]
        for name in ("exp_avg", "exp_avg_sq", "step")
    )
    records = [read_record(run_folder(f) / RECORD) for f in (whole, broken)]
    for key in ("test_correct", "best_step", "best_accuracy", "config_hash", "steps"):
        assert getattr(records[0], key) == getattr(records[1], key), key


@pytest.mark.slow
def test_testing_a_finished_run_again_gives_the_same_count(tmp_path: Path) -> None:
    assert finish(start(tmp_path))[0] == 0
    arguments = [sys.executable, "-m", "lra.eval", str(run_folder(tmp_path))]
    arguments += ["--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = read_record(run_folder(tmp_path) / RECORD)
    assert f"({record.test_correct} of 24)" in done.stdout


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("attention.options.fast=1", "attention.options.fast: no such option; the options are: fu"),
        pytest.param("train.steps=0", "train.steps=0: must be", marks=pytest.mark.slow),
        pytest.param("task=listop", "task=listop: did you", marks=pytest.mark.slow),
        pytest.param("device=cuda:99", "device=cuda:99: torch sees", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_command_line_is_refused_before_any_data_are_built(
    tmp_path: Path, override: str, message: str
) -> None:
    overrides = ["device=cpu", override] if not override.startswith("task=") else [override]
    code, output = finish(start(tmp_path, *overrides))
    assert code != 0
    assert message in output and "Traceback" not in output
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_a_sweep_continues_after_a_failed_cell_and_ends_with_an_error(tmp_path: Path) -> None:
    sweep = start(tmp_path, "attention=softmax,fourier", "train.learning_rate=1e30")
    code, output = finish(sweep)
    assert code == 1, output
    records = [json.loads(file.read_text()) for file in (tmp_path / "runs").glob("**/result.json")]
    assert {(r["attention"], r["status"]) for r in records} == {
        ("softmax", "failed"),
        ("fourier", "failed"),
    }


def test_finished_cells_are_reported_even_if_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"cache_dir={tmp_path / 'cache'}", f"runs_dir={tmp_path / 'runs'}"]
    config, folder = place(*words)
    folder.mkdir(parents=True)
    run_cell(config, folder)
    before = sorted(tmp_path.rglob("*"))
    # As on a disk that is mounted read-only, where not even root may write.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(sys, "argv", ["lra train", *words])
    lra.train.main()
    assert "listops/softmax" in (printed := capsys.readouterr().out) and "is finished" in printed
    monkeypatch.setattr(sys, "argv", ["lra train", *words, "seed=0,1"])
    assert lra.train._finished_for_good([words, [*words, "seed=1"]]) == []
    assert sorted(tmp_path.rglob("*")) == before
