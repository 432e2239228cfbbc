"""How far the cells of a grid have got, judged by the files alone."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_cell import configure

import lra.compose
from lra.checkpoint import CHECKPOINT
from lra.loop import Run
from lra.record import NOTE, RECORD
from lra.runner import CellFailedError, run_cell
from lra.signals import StoppedError
from lra.status import begun, grid, page, status

GRID = ["task=listops", "scale=mini"]


def note(folder: Path, **values: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    own = {"host": socket.gethostname(), "pid": os.getpid(), "since": now, "updated": now}
    (folder / NOTE).write_text(json.dumps(own | values))


def test_a_grid_has_the_folders_that_a_sweep_gives_its_cells(tmp_path: Path) -> None:
    words = [*GRID, f"runs_dir={tmp_path}", "train.steps=300"]
    found = list(grid([*words, "attention=softmax,mra", "seed=range(0,2)", "variant=short"]))
    assert len(found) == 4 and all(asked == {"train.steps": 300} for _, asked in found)
    for folder, (attention, seed) in zip(
        [folder for folder, _ in found],
        [(a, s) for a in ("softmax", "mra") for s in (0, 1)],
        strict=True,
    ):
        cell = [*words, f"attention={attention}", f"seed={seed}", "variant=short"]
        assert folder == lra.compose.place(*cell)[1]
    for word, asked in (
        ("validation=test", {"validation": "test"}),
        ("++train.steps=7", {"train.steps": 7}),
    ):
        cell = [*GRID, f"runs_dir={tmp_path}", word, "attention=softmax", "seed=0"]
        assert list(grid(cell)) == [(lra.compose.place(*cell)[1], asked)]
    # A name that follows from other values is composed.
    ((folder, _),) = grid([*words, "attention=softmax", "seed=3", "variant=s${train.steps}"])
    assert folder.parts[-2:] == ("s300", "seed3")


def test_every_state_is_recognised_from_files(tmp_path: Path) -> None:
    folder = tmp_path / "mini" / "nystromformer" / "listops" / "softmax" / "default" / "seed0"
    assert status(folder).state == "to do"
    note(folder, step=5, steps=60)
    running = status(folder)
    assert (running.state, running.step, running.steps) == ("running", 5, 60)
    assert f"process {os.getpid()} on" in running.detail
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    note(folder, pid=child.pid, step=7, steps=60)
    assert (status(folder).state, status(folder).step) == ("killed", 7)
    note(folder, ended="StoppedError: stopped at step 9; start again to continue (SIGTERM)")
    assert status(folder).state == "stopped"
    note(folder, ended="DataError: no raw data")
    assert (status(folder).state, status(folder).detail) == ("failed", "DataError: no raw data")
    (folder / NOTE).unlink()
    (folder / CHECKPOINT).write_bytes(b"x")
    assert status(folder).state == "stopped"
    assert list(begun(tmp_path)) == [folder]


def test_a_finished_cell_is_done_and_another_configuration_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "mini" / "nystromformer" / "listops" / "softmax" / "default" / "seed0"
    folder.mkdir(parents=True)
    quick = ["train.steps=6", "train.warmup_steps=2", "train.validate_every=3"]
    assert run_cell(configure(tmp_path, *quick), folder) is not None
    done = status(folder, {"train.steps": 6})
    assert (done.state, done.step, done.steps) == ("done", 6, 6) and done.detail.startswith("test ")
    # The cell is listed whatever else its configuration contains.
    file = folder / RECORD
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"config": {"train": {"steps": "many"}}}))
    assert "6 of 6" in page([status(folder), status(Path("seed0"))])
    file.write_text(json.dumps(values))
    other = status(folder, {"train.steps": 7})
    assert (other.state, other.detail) == ("other", "train.steps=6 in the record, 7 asked for")
    values = json.loads((folder / RECORD).read_text())
    empty = dict.fromkeys(("test_accuracy", "test_correct", "test_total")) | {"test_by_length": []}
    (folder / RECORD).write_text(json.dumps(values | empty | {"status": "failed", "reason": "nan"}))
    assert (status(folder).state, status(folder).detail) == ("failed", "nan")
    text = re.sub(" +", " ", page([done, status(folder)]))
    assert "| mini | nystromformer | listops | softmax | 0 | failed | 6 of 6 |" in text
    assert text.endswith("2 cells: 1 done, 1 failed.")


def test_the_command_needs_no_torch_and_lists_cells_that_were_begun(tmp_path: Path) -> None:
    folder = tmp_path / "mini" / "nystromformer" / "listops" / "softmax" / "default" / "seed0"
    note(folder, step=5, steps=60)
    code = (
        "import sys; from lra.status import main;"
        f" sys.argv = ['lra status', 'runs_dir={tmp_path}'];"
        " main(); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| running | 5 of 60 |" in done.stdout and "1 cell: 1 running." in done.stdout


def test_a_wrong_word_is_refused_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lra.status import main

    monkeypatch.setattr(sys, "argv", ["lra status", "attention=softmx"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2 and "softmx" in capsys.readouterr().err


def test_a_value_that_a_record_leaves_out_counts_as_its_default(
    tmp_path: Path,
) -> None:
    run_cell(configure(tmp_path), tmp_path)
    assert status(tmp_path, {"model.norm": "layer"}).state == "done"
    assert status(tmp_path, {"model.norm": "batch"}).state == "other"


def test_a_later_attempt_counts_rather_than_the_failed_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(CellFailedError):
        patch.setattr("models.softmax.Softmax.forward", lambda *args: torch.empty(2**60))
        run_cell(configure(tmp_path), tmp_path)
    assert status(tmp_path).state == "failed"

    def stop(run: Run) -> None:
        raise StoppedError("enough")

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Run, "_save", stop)
        run_cell(configure(tmp_path, "train.checkpoint_seconds=0"), tmp_path)
    assert status(tmp_path).state == "stopped"
