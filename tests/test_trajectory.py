"""What a run keeps of its losses and validations, through stops and failures, and if damaged."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_cell import configure

from lra import checkpoint
from lra.checkpoint import CHECKPOINT, load
from lra.loop import Run
from lra.record import RECORD, read_record
from lra.runner import CellFailedError, run_cell
from lra.signals import StoppedError
from lra.trajectory import (
    TRAJECTORY,
    TrajectoryError,
    fingerprint,
    read_trajectory,
    read_validations,
    write_trajectory,
)

ROOT = Path(__file__).resolve().parents[1]


def train(folder: Path, *overrides: str, name: str = "run") -> NDArray[np.float32]:
    """Train a tiny cell and return the losses it leaves, checked against its record."""
    (folder / name).mkdir(exist_ok=True)
    run_cell(configure(folder, *overrides), folder / name)
    record = read_record(folder / name / RECORD)
    assert record.loss_fingerprint
    return read_trajectory(folder / name, record.steps, record.loss_fingerprint)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> None:
    """Train into `run` and end after the checkpoint of a step."""
    save = Run._save

    def stop(run: Run) -> None:
        save(run)
        if run.progress.step == step:
            raise StoppedError("enough")

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Run, "_save", stop)
        (folder / "run").mkdir(exist_ok=True)
        run_cell(configure(folder, *overrides, "train.checkpoint_seconds=0"), folder / "run")


def stop_and_change(
    monkeypatch: pytest.MonkeyPatch, folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    """End `run` after step 33, and change what its checkpoint holds."""
    stop_at(33, monkeypatch, folder)
    file = folder / "run" / CHECKPOINT
    state = load(file, torch.device("cpu"))
    change(state)
    checkpoint.save(file, state)


def test_a_run_keeps_the_loss_of_every_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    update = Run._update

    def watched(run: Run) -> tuple[torch.Tensor, float]:
        loss, apart = update(run)
        seen.append(float(loss))
        return loss, apart

    monkeypatch.setattr(Run, "_update", watched)
    losses = train(tmp_path)
    assert losses.dtype == np.float32 and losses.tolist() == seen and len(seen) == 60


@pytest.mark.parametrize("micro_batch", ["null", "0", "3"])
def test_a_stopped_run_ends_with_the_losses_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: str
) -> None:
    words = f"train.micro_batch={micro_batch}"
    whole = train(tmp_path, words, name="whole")
    # In the middle of the losses that are read from the device at once.
    stop_at(33, monkeypatch, tmp_path, words)
    assert not (tmp_path / "run" / TRAJECTORY).exists()
    continued = train(tmp_path, words)
    assert np.isfinite(whole).all() and whole.tobytes() == continued.tobytes()
    curves = [read_validations(tmp_path / name) for name in ("whole", "run")]
    assert curves[0] == curves[1] and [*curves[0]] == [25, 50, 60]


def test_losses_that_an_earlier_version_did_not_keep_are_unknown_and_the_rest_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tmp_path, name="whole")
    stop_and_change(monkeypatch, tmp_path, lambda state: state.pop("losses"))
    continued = train(tmp_path)
    assert np.isnan(continued[:33]).all() and continued[33:].tobytes() == whole[33:].tobytes()


def test_validations_from_before_they_were_kept_are_not_invented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_and_change(monkeypatch, tmp_path, lambda state: state["progress"].pop("validations"))
    train(tmp_path)
    assert [*read_validations(tmp_path / "run")] == [50, 60]


def test_the_accuracy_that_chose_the_checkpoint_is_among_the_validations(tmp_path: Path) -> None:
    train(tmp_path)
    record = read_record(tmp_path / "run" / RECORD)
    curve = read_validations(tmp_path / "run")
    assert record.best_step is not None and record.best_accuracy == curve[record.best_step]
    assert record.best_accuracy == max(curve.values())


def test_a_failed_run_keeps_its_losses_up_to_the_one_that_made_it_fail(tmp_path: Path) -> None:
    with pytest.raises(CellFailedError):
        train(tmp_path, "train.learning_rate=1e30", "model.attention_dropout=0.0")
    record = read_record(tmp_path / "run" / RECORD)
    losses = read_trajectory(tmp_path / "run", record.steps, record.loss_fingerprint)
    assert np.isfinite(losses[0]) and not np.isfinite(losses).all()


def test_losses_are_read_as_they_were_written_from_a_small_file(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).random(10_000, dtype=np.float32)
    write_trajectory(tmp_path, losses)
    assert read_trajectory(tmp_path, 10_000, fingerprint(losses)).tobytes() == losses.tobytes()
    # Records from before the fingerprint have none.
    assert read_trajectory(tmp_path, 10_000, "").tobytes() == losses.tobytes()
    assert [file.name for file in tmp_path.iterdir()] == [TRAJECTORY]
    assert (tmp_path / TRAJECTORY).stat().st_size < 4.1 * 10_000


def test_losses_that_are_missing_damaged_or_of_another_run_are_refused(tmp_path: Path) -> None:
    losses = np.linspace(2, 1, 50, dtype=np.float32)
    with pytest.raises(TrajectoryError, match="no such file; runs of earlier versions kept none"):
        read_trajectory(tmp_path, 50, "")
    np.savez(tmp_path / TRAJECTORY, other=losses)
    with pytest.raises(TrajectoryError, match="holds no losses"):
        read_trajectory(tmp_path, 50, "")
    write_trajectory(tmp_path, losses)
    with pytest.raises(TrajectoryError, match=r"float32 of shape \(50,\), but the record has 60"):
        read_trajectory(tmp_path, 60, fingerprint(losses))
    changed = losses.copy()
    changed[7] = np.nextafter(changed[7], np.float32(0))
    with pytest.raises(TrajectoryError, match="not the losses that the run had"):
        read_trajectory(tmp_path, 50, fingerprint(changed))
    whole = (tmp_path / TRAJECTORY).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"text", whole[:80] + bytes(20) + whole[100:]):
        (tmp_path / TRAJECTORY).write_bytes(damaged)
        with pytest.raises(TrajectoryError, match="not readable as a trajectory"):
            read_trajectory(tmp_path, 50, fingerprint(losses))


def test_committed_validations_match_their_records() -> None:
    kept = 0
    for file in (ROOT / "results/runs").glob(f"*/**/{TRAJECTORY}"):
        if curve := read_validations(file.parent):
            record = read_record(file.parent / RECORD)
            assert record.best_step is not None and record.best_accuracy == max(curve.values())
            assert record.best_accuracy == curve[record.best_step] and max(curve) == record.steps
            kept += 1
    assert kept


def test_git_keeps_the_files_that_check_a_record_of_a_full_run() -> None:
    folder = "results/runs/paper/nystromformer/listops/mra/default/seed0"
    for name, ignored in {RECORD: 1, TRAJECTORY: 1, "predictions.npz": 1, "best.pt": 0}.items():
        command = ["git", "check-ignore", "--quiet", "--no-index", f"{folder}/{name}"]
        assert subprocess.run(command, cwd=ROOT).returncode == ignored, name
