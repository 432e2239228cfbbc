"""A run that is asked to stop saves at once, even in a validation, and resumes to the same bits.

So does one that was forced to start over: once per job, however often the job is restarted.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_cell import configure
from torch import Tensor, nn

import lra.evaluation
from lra.batches import Batch
from lra.checkpoint import BEST, CHECKPOINT, load
from lra.config import ConfigError
from lra.lock import read_note
from lra.record import NOTE, RECORD, Record, read_record
from lra.runner import run_cell
from lra.signals import StoppedError
from lra.tasks import DataError, cache
from lra.trajectory import read_trajectory
from models.encoder import Classifier

CPU = torch.device("cpu")
# There are three validations of four batches each: after 25, 50 and 60 updates.
WORDS = ["train.eval_batch_size=4", "train.checkpoint_seconds=1e9"]
ANSWER = lra.evaluation._answer


def train(folder: Path, name: str, *words: str) -> Record | None:
    (folder / name).mkdir(exist_ok=True)
    return run_cell(configure(folder, *WORDS, *words), folder / name)


def assert_same_bits(ours: Path, theirs: Path) -> None:
    for file, keys in ((CHECKPOINT, ("model", "best_model", "random")), (BEST, ("model",))):
        states = [load(folder / file, CPU) for folder in (ours, theirs)]
        for key in keys:
            one, other = states[0][key], states[1][key]
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one), key
    records = [read_record(folder / RECORD) for folder in (ours, theirs)]
    for key in ("test_correct", "best_step", "best_accuracy", "config_hash", "steps"):
        assert getattr(records[0], key) == getattr(records[1], key), key


def drawing(model: nn.Module, batch: Batch, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a random number, as a user's backend may, so that a validation leaves a trace."""
    torch.rand(1)
    return ANSWER(model, batch, precision)


def interrupting(number: int, calls: list[int]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def answer(model: nn.Module, batch: Batch, precision: str) -> tuple[Tensor, Tensor, Tensor]:
        calls.append(len(calls) + 1)
        if calls[-1] == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return drawing(model, batch, precision)

    return answer


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        patch.setattr(lra.evaluation, "_answer", drawing)
        train(tmp_path, "whole")
    return tmp_path / "whole"


@pytest.mark.parametrize(("batch", "step"), [(1, 25), (6, 50), (11, 60)])
def test_a_signal_during_a_validation_takes_effect_at_the_next_batch_and_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, batch: int, step: int
) -> None:
    calls: list[int] = []
    with monkeypatch.context() as patch, pytest.raises(StoppedError) as stopped:
        patch.setattr(lra.evaluation, "_answer", interrupting(batch, calls))
        train(tmp_path, "broken")
    assert stopped.value.code == 143
    assert str(stopped.value).startswith(f"stopped at step {step}; start again to continue")
    # No batch follows the one in which the signal came.
    assert calls[-1] == batch
    state = load(tmp_path / "broken" / CHECKPOINT, CPU)
    assert state["progress"]["step"] == step and state["unvalidated"]
    monkeypatch.setattr(lra.evaluation, "_answer", drawing)
    train(tmp_path, "broken")
    assert_same_bits(tmp_path / "broken", whole)
    assert "unvalidated" not in load(tmp_path / "broken" / CHECKPOINT, CPU)


def test_a_signal_in_the_update_before_a_validation_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    import lra.loop

    update, made = lra.loop.apply, [0]

    def apply(*arguments: object) -> None:
        made[0] += 1
        if made[0] == 24:
            os.kill(os.getpid(), signal.SIGTERM)
        update(*arguments)  # type: ignore[arg-type]

    calls: list[int] = []
    with monkeypatch.context() as patch, pytest.raises(StoppedError, match="stopped at step 25"):
        patch.setattr(lra.loop, "apply", apply)
        patch.setattr(lra.evaluation, "_answer", interrupting(0, calls))
        train(tmp_path, "broken")
    assert not calls
    monkeypatch.setattr(lra.evaluation, "_answer", drawing)
    train(tmp_path, "broken")
    assert_same_bits(tmp_path / "broken", whole)


# One micro-batch for each of four examples; Performer redraws its directions at each of them.
WITHIN = {
    "softmax": ["train.micro_batch=1"],
    "performer": ["train.micro_batch=1", "attention=performer", "attention.options.redraw=1"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "performer")) for n in WITHIN]
)
def test_a_signal_during_an_update_takes_effect_at_the_next_micro_batch_and_changes_no_bit(
    tmp_path: Path, name: str
) -> None:
    train(tmp_path, "whole", *WITHIN[name])
    calls: list[int] = []

    def count(module: nn.Module, arguments: object) -> None:
        if isinstance(module, Classifier) and module.training:
            calls.append(len(calls) + 1)
            # The second part of the update after the 30th.
            if calls[-1] == 30 * 4 + 2:
                os.kill(os.getpid(), signal.SIGTERM)

    hook = nn.modules.module.register_module_forward_pre_hook(count)
    try:
        with pytest.raises(StoppedError, match="stopped at step 30"):
            train(tmp_path, "broken", *WITHIN[name])
    finally:
        hook.remove()
    assert calls[-1] == 30 * 4 + 2
    train(tmp_path, "broken", *WITHIN[name])
    assert_same_bits(tmp_path / "broken", tmp_path / "whole")
    losses = [read_trajectory(tmp_path / each, 60, "") for each in ("broken", "whole")]
    assert np.array_equal(*losses)


def test_a_launcher_that_only_notes_the_signal_leaves_the_run_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        monkeypatch.setattr(lra.evaluation, "_answer", interrupting(6, []))
        train(tmp_path, "noted")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert_same_bits(tmp_path / "noted", whole)


JOBS = {
    "slurm": ({"SLURM_JOB_ID": "7"}, {"SLURM_RESTART_COUNT": "1"}),
    "torchrun": ({"TORCHELASTIC_RUN_ID": "none"}, {"TORCHELASTIC_RESTART_COUNT": "2"}),
    "named": ({"LRA_JOB": "grid of Monday"}, {}),
}


def environment(patch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for jobs in JOBS.values():
        for name in {**jobs[0], **jobs[1]}:
            patch.delenv(name, raising=False)
    for name, value in values.items():
        patch.setenv(name, value)


def stopped_midway(folder: Path, patch: pytest.MonkeyPatch, *words: str) -> str:
    """Train with a signal in the second validation, after 50 updates; return the message."""
    with patch.context() as here, pytest.raises(StoppedError) as stopped:
        here.setattr(lra.evaluation, "_answer", interrupting(6, []))
        train(folder, "forced", *words)
    return str(stopped.value)


@pytest.mark.parametrize(
    "job", [pytest.param(j, marks=[pytest.mark.slow] * (j != "slurm")) for j in JOBS]
)
def test_a_forced_cell_starts_over_once_in_the_lifetime_of_a_job(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    whole: Path,
    job: str,
) -> None:
    caplog.set_level("INFO")
    first, again = JOBS[job]
    monkeypatch.setattr(lra.evaluation, "_answer", drawing)
    environment(monkeypatch, {})
    # A record of another configuration, which only force replaces.
    train(tmp_path, "forced", "train.learning_rate=1e-4")
    environment(monkeypatch, first)
    message = stopped_midway(tmp_path, monkeypatch, "force=true")
    assert message.startswith("stopped at step 50; start again without force=true to continue")
    environment(monkeypatch, first | again)
    train(tmp_path, "forced", "force=true")
    assert "started over by this job, which now continues it" in caplog.text
    assert "continues at step 50" in caplog.text
    assert_same_bits(tmp_path / "forced", whole)
    # A sweep that is restarted once more does not train its finished cells again.
    assert train(tmp_path, "forced", "force=true") is None
    # Another job does, and so does a start by hand or of the same job without a restart.
    for values in ({}, {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"}, {"SLURM_JOB_ID": "7"}):
        environment(monkeypatch, values)
        assert train(tmp_path, "forced", "force=true") is not None
    # So does the same job with another configuration.
    environment(monkeypatch, first)
    train(tmp_path, "forced", "force=true")
    environment(monkeypatch, first | again)
    assert train(tmp_path, "forced", "force=true", "seed=1") is not None


def test_a_forced_cell_outside_any_job_starts_over_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    environment(monkeypatch, {})
    stopped_midway(tmp_path, monkeypatch, "force=true")
    stopped_midway(tmp_path, monkeypatch, "force=true")
    assert "continues at step" not in caplog.text
    # By hand it is continued unless forced, and the job that began it is remembered.
    environment(monkeypatch, {"SLURM_JOB_ID": "7"})
    stopped_midway(tmp_path, monkeypatch, "force=true")
    environment(monkeypatch, {})
    train(tmp_path, "forced")
    assert "continues at step 50" in caplog.text
    note = read_note(tmp_path / "forced" / NOTE)
    assert note is not None and [each.partition(",")[0] for each in note.forced] == ["slurm  7"]


def test_a_job_that_ended_before_starting_over_still_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(monkeypatch, {"SLURM_JOB_ID": "7"})
    train(tmp_path, "forced", "train.learning_rate=1e-4")

    def missing(*arguments: object) -> None:
        raise DataError("no data")

    with monkeypatch.context() as patch, pytest.raises(DataError):
        patch.setattr(cache, "load", missing)
        train(tmp_path, "forced", "force=true")
    environment(monkeypatch, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"})
    with pytest.raises(ConfigError, match="another configuration"):
        train(tmp_path, "forced")
    assert train(tmp_path, "forced", "force=true") is not None
