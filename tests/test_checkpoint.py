"""Checkpoints are read as written or named as damaged; disk errors are reported by key."""

import errno
import json
import logging
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train import run
from test_trajectory import stop_and_change, stop_at
from tiny_cell import configure
from torch import Tensor

from lra import checkpoint
from lra.build import build_task
from lra.cell import resolved_values
from lra.checkpoint import (
    BEST,
    CHECKPOINT,
    PREVIOUS,
    DamagedError,
    load,
    load_best,
    load_last,
    read_config,
)
from lra.config import ConfigError
from lra.folders import FolderError, writing
from lra.loop import Run
from lra.predictions import PREDICTIONS
from lra.record import NOTE, RECORD, RecordError, inconsistency, read_record
from lra.runner import CellFailedError, run_cell
from lra.trajectory import TRAJECTORY
from models.softmax import Softmax

CPU = torch.device("cpu")
QUICK = ["train.steps=9", "train.warmup_steps=2", "train.validate_every=3"]
STATE = {
    "identity": "0123456789abcdef",
    "progress": {"step": 7, "seconds": 0.1},
    "model": {"weight": torch.arange(6.0).view(2, 3), "half": torch.ones(3, dtype=torch.bfloat16)},
    "optimiser": {"state": {0: {"step": torch.tensor(7.0)}}, "groups": [{"betas": (0.9, 0.99)}]},
    "schedule": {"last_epoch": 7},
    "random": {"cpu": torch.get_rng_state()},
    "best_model": {},
}


def equal(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def test_a_flipped_bit_never_changes_what_is_read(tmp_path: Path) -> None:
    file = tmp_path / CHECKPOINT
    checkpoint.save(file, STATE)
    written = file.read_bytes()
    rng, noticed = random.Random(0), 0
    for _ in range(300):
        at = rng.randrange(len(written))
        flipped = bytes([written[at] ^ 1 << rng.randrange(8)])
        file.write_bytes(written[:at] + flipped + written[at + 1 :])
        try:
            _, state = load_last(tmp_path, CPU)
        except DamagedError:
            noticed += 1
            continue
        # Most of a small file is padding, and times and names that are never read.
        assert equal(state, STATE), at
    assert noticed > 50


def test_a_checkpoint_without_a_checksum_is_read_as_before(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / CHECKPOINT)
    assert equal(load_last(tmp_path, CPU), (tmp_path / CHECKPOINT, STATE))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a dict"),
        ({key: STATE[key] for key in STATE if key != "optimiser"}, "lacks 'optimiser'"),
        (STATE | {"modell": {}}, "holds an unknown 'modell'"),
        (STATE | {"progress": {"step": -3}}, r"progress.step=-3"),
        (STATE | {"progress": None}, r"progress.step=None"),
    ],
)
def test_a_malformed_checkpoint_is_reported_in_one_line(
    tmp_path: Path, content: object, message: str
) -> None:
    torch.save(content, tmp_path / CHECKPOINT)
    with pytest.raises(DamagedError, match=f"{CHECKPOINT}: not a readable .*{message}") as caught:
        load_last(tmp_path, CPU)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_does_not_fit_into_memory_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(torch.OutOfMemoryError):
        load(tmp_path / CHECKPOINT, CPU)


def test_a_checkpoint_of_a_later_version_is_reported_and_leaves_no_failed_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_and_change(monkeypatch, tmp_path, lambda state: state["progress"].update(moons=3))
    with pytest.raises(DamagedError, match="written by a later version .*moons"):
        run_cell(configure(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run" / RECORD).exists()


def test_two_checkpoints_are_kept_and_the_earlier_is_read_if_the_later_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        state = STATE | {"progress": {"step": step}}
        checkpoint.save(tmp_path / CHECKPOINT, state, tmp_path / PREVIOUS)
    assert sorted(os.listdir(tmp_path)) == [PREVIOUS, CHECKPOINT]
    assert load_last(tmp_path, CPU)[1]["progress"]["step"] == 3
    (tmp_path / CHECKPOINT).write_bytes(b"half of it")
    assert load_last(tmp_path, CPU)[1]["progress"]["step"] == 2
    assert f"continuing from the one before, {PREVIOUS}" in caplog.text
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(DamagedError, match=f"{CHECKPOINT}: not a readable .*nor is {PREVIOUS}"):
        load_last(tmp_path, CPU)


def test_a_run_with_a_damaged_last_checkpoint_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*QUICK, "train.checkpoint_seconds=0"]
    run(tmp_path, *options, name="whole")
    stop_at(6, monkeypatch, tmp_path, *QUICK)
    whole, broken = tmp_path / "whole", tmp_path / "run"
    assert load(broken / PREVIOUS, CPU)["progress"]["step"] == 5
    (broken / CHECKPOINT).write_bytes(b"half of it")
    kept = (broken / PREVIOUS).read_bytes()
    # The next save leaves the only good checkpoint where it is.
    stop_at(6, monkeypatch, tmp_path, *QUICK)
    assert (broken / PREVIOUS).read_bytes() == kept
    run(tmp_path, *options)
    assert equal(load(whole / BEST, CPU), load(broken / BEST, CPU))
    losses = [(folder / TRAJECTORY).read_bytes() for folder in (whole, broken)]
    assert losses[0] == losses[1]


def test_the_chosen_parameters_are_read_from_the_checkpoint_if_best_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, *QUICK)
    folder = tmp_path / "run"
    expected = load_best(folder, CPU)
    (folder / BEST).write_bytes(b"half of it")
    assert equal(load_best(folder, CPU), expected)
    assert "reading the same parameters from checkpoint.pt" in caplog.text
    (folder / CHECKPOINT).unlink()
    with pytest.raises(DamagedError, match="best.pt: not a readable checkpoint"):
        load_best(folder, CPU)


def test_on_a_full_disk_key_and_folder_are_named_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path / CHECKPOINT, STATE)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        expected = rf"runs_dir={tmp_path}: the disk is full \(\d+ MiB free\) while writing .* stays"
        with pytest.raises(FolderError, match=expected):
            checkpoint.save(tmp_path / CHECKPOINT, STATE | {"identity": "x"}, tmp_path / PREVIOUS)
    assert os.listdir(tmp_path) == [CHECKPOINT]
    assert equal(load_last(tmp_path, CPU), (tmp_path / CHECKPOINT, STATE))


@pytest.mark.parametrize(
    ("number", "state"),
    [(errno.EROFS, "is on a read-only file system"), (errno.EACCES, "may not be written to")],
)
def test_a_folder_that_cannot_be_written_to_is_named(
    tmp_path: Path, number: int, state: str
) -> None:
    with (
        pytest.raises(FolderError, match=f"runs_dir={tmp_path}: it {state}.*choose another runs_d"),
        writing("runs_dir", tmp_path, "x"),
    ):
        raise OSError(number, "refused")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "name", [".lock", NOTE, CHECKPOINT, PREVIOUS, BEST, PREDICTIONS, TRAJECTORY, RECORD]
)
def test_a_folder_in_place_of_a_file_of_a_run_is_reported_in_one_line(
    tmp_path: Path, name: str, force: bool
) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    words = [*QUICK, f"force={force}"]
    if name == RECORD:
        # Kept aside, like anything else that is not a record.
        assert run(tmp_path, *words).status == "ok"
        assert (tmp_path / "run" / "result.aside-1.json").is_dir()
        return
    with pytest.raises(ConfigError) as refused:
        run(tmp_path, *words)
    assert name in str(refused.value) and "\n" not in str(refused.value)


def test_a_run_folder_that_vanishes_ends_the_run_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="runs_dir=.*gone: it is gone, while writing"):
        checkpoint.save(tmp_path / "gone" / CHECKPOINT, STATE)


def test_parameters_that_are_not_finite_are_never_saved_and_fail_the_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, calls = Run._update, []

    def spoilt(run: Run) -> tuple[Tensor, float]:
        made = update(run)
        calls.append(made)
        if len(calls) == 9:
            # As a gradient of NaN leaves them, after a finite loss.
            next(run.model.parameters()).data.fill_(torch.nan)
        return made

    monkeypatch.setattr(Run, "_update", spoilt)
    with pytest.raises(CellFailedError, match="is not finite at step 9, learning rate"):
        run(tmp_path, *QUICK, "train.checkpoint_seconds=0")
    record = read_record(tmp_path / "run" / RECORD)
    assert record.status == "failed" and record.test_accuracy is None
    assert record.reason.endswith("the last good checkpoint is from step 8")
    assert load_last(tmp_path / "run", CPU)[1]["progress"]["step"] == 8
    assert not (tmp_path / "run" / BEST).exists()


def test_answers_that_are_not_finite_fail_the_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.softmax import Softmax

    forward = Softmax.forward

    def broken(self: Softmax, x: Tensor, mask: Tensor | None = None) -> Tensor:
        mixed = forward(self, x, mask)
        return mixed if self.training else mixed * torch.nan

    monkeypatch.setattr(Softmax, "forward", broken)
    with pytest.raises(CellFailedError, match="answers in evaluation are not finite, at step 3"):
        run(tmp_path, *QUICK)
    assert read_record(tmp_path / "run" / RECORD).status == "failed"


def test_a_record_of_another_schema_is_kept_aside_and_never_overwritten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, *QUICK)
    file = tmp_path / "run" / RECORD
    later = json.dumps({"schema": 2, "accuracy": "another form"})
    for number in (1, 2):
        file.write_text(later)
        run(tmp_path, *QUICK)
        assert (tmp_path / "run" / f"result.aside-{number}.json").read_text() == later
        assert f"kept as result.aside-{number}.json" in caplog.text
        assert read_record(file).status == "ok"


def test_a_record_with_an_unknown_key_counts_as_another_configuration(
    tmp_path: Path,
) -> None:
    run(tmp_path, *QUICK)
    file = tmp_path / "run" / RECORD
    values = json.loads(file.read_text())
    values["config"]["train"]["label_smoothing"] = 0.1
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="another configuration, .*label_smoothing.*variant="):
        run(tmp_path, *QUICK)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("test_accuracy", 37.0, "test_accuracy=37.0 is impossible, should be a share"),
        ("test_majority_rate", 2.0, "test_majority_rate=2.0 is impossible"),
        ("test_correct", 25, "test_correct=25 is impossible with test_total=24"),
        ("test_accuracy", 0.123, "test_accuracy=0.123 is impossible for"),
        ("steps_per_second", float("nan"), "steps_per_second=nan is impossible"),
        ("parameters", 10**22, "parameters=1.*0 is impossible"),
        ("best_step", 61, "best_step=61 is impossible with steps=9"),
        ("threads", 0, "threads=0 is impossible, should be at least 1"),
        ("config", {"train": 5}, "config.train=5 is impossible, should hold keys"),
        ("config", {"task": ["x"]}, r"config.task=\['x'\] is impossible, should hold keys"),
    ],
)
def test_impossible_numbers_are_named(
    finished: dict[str, object], tmp_path: Path, key: str, value: object, message: str
) -> None:
    file = tmp_path / RECORD
    file.write_text(json.dumps(finished | {key: value}))
    with pytest.raises(RecordError, match=message):
        read_record(file)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("finished")
    assert inconsistency(run(folder, *QUICK)) == ""
    values: dict[str, object] = json.loads((folder / "run" / RECORD).read_text())
    return values


def test_a_run_that_other_code_started_has_both_commits_in_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import lra.runner

    options = [*QUICK, "train.checkpoint_seconds=0"]
    monkeypatch.setattr(lra.runner, "code_name", lambda: "c0ffee")
    run(tmp_path, *options)
    (tmp_path / "run" / RECORD).unlink()
    monkeypatch.setattr(lra.runner, "code_name", lambda: "decaf with local changes")
    record = run(tmp_path, *options)
    assert record.earlier_code == "c0ffee"
    assert "was started by other code, c0ffee" in caplog.text
    code = load(tmp_path / "run" / CHECKPOINT, CPU)["code"]
    assert code == ["c0ffee", "decaf with local changes"]
    # The first version ends it after all.
    (tmp_path / "run" / RECORD).unlink()
    monkeypatch.setattr(lra.runner, "code_name", lambda: "c0ffee")
    assert run(tmp_path, *options).earlier_code == "c0ffee, decaf with local changes"


def test_a_run_that_moved_has_both_machines_and_the_larger_memory_in_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lra.loop

    options = [*QUICK, "train.checkpoint_seconds=0"]
    monkeypatch.setattr(lra.loop, "described", lambda _: "abacus, torch 1.0")
    monkeypatch.setattr(lra.loop.memory, "peak", lambda _: 2**50)
    assert run(tmp_path, *options).earlier_machines == ""
    monkeypatch.undo()
    (tmp_path / "run" / RECORD).unlink()
    moved = run(tmp_path, *options)
    assert moved.earlier_machines == "abacus, torch 1.0"
    assert moved.peak_memory_bytes == 2**50


def test_a_run_that_is_forced_is_resolved_for_the_device_it_will_be_trained_on(
    tmp_path: Path,
) -> None:
    run(tmp_path, *QUICK)
    config, gpu = configure(tmp_path, *QUICK, "device=auto"), torch.device("cuda")
    task, folder = build_task(config), tmp_path / "run"
    assert resolved_values(config, task, gpu, folder)["device"] == "cpu"
    forced = replace(config, force=True)
    assert resolved_values(forced, task, gpu, folder)["device"] == "cuda"


def test_a_cell_continues_with_the_threads_it_started_with(tmp_path: Path) -> None:
    options = [*QUICK, "train.checkpoint_seconds=0"]
    try:
        first = run(tmp_path, *options, "threads=2")
        torch.set_num_threads(1)
        # Left to the machine: finished with two, and continued with two once the record is gone.
        assert run_cell(configure(tmp_path, *options, "threads=0"), tmp_path / "run") is None
        (tmp_path / "run" / RECORD).unlink()
        again = run(tmp_path, *options, "threads=0")
        assert (again.threads, again.config_hash) == (2, first.config_hash)
        (tmp_path / "run" / RECORD).unlink()
        with pytest.raises(ConfigError, match=r"(?s)belongs to another.*threads: 2 there, 1 here"):
            run(tmp_path, *options, "threads=1")
    finally:
        torch.set_num_threads(1)


def test_more_threads_than_a_machine_can_bear_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="threads=100000: this machine has .* must be at most"):
        run(tmp_path, "threads=100000")


def test_a_failing_event_file_causes_one_warning_and_the_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    with caplog.at_level(logging.WARNING):
        assert run(tmp_path, *QUICK).status == "ok"
    assert caplog.text.count("no more TensorBoard events") == 1


def test_the_configuration_of_a_started_run_is_read_without_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_config(tmp_path) == {}
    for threads in (3, 5):
        state = STATE | {"config": {"threads": threads}}
        checkpoint.save(tmp_path / CHECKPOINT, state, tmp_path / PREVIOUS)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "checksum", None)
        assert read_config(tmp_path) == {"threads": 5}
    (tmp_path / CHECKPOINT).write_bytes(b"half of it")
    assert read_config(tmp_path) == {"threads": 3}
    # From before checkpoints held it.
    torch.save(STATE, tmp_path / PREVIOUS)
    assert read_config(tmp_path) == {}


def test_a_backend_may_keep_state_that_is_not_a_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Softmax, "get_extra_state", lambda self: {"calls": 3})
    monkeypatch.setattr(Softmax, "set_extra_state", lambda self, state: None)
    run(tmp_path, *QUICK)
    model = load(tmp_path / "run" / BEST, CPU)["model"]
    assert {"calls": 3} in [each for each in model.values() if isinstance(each, dict)]
