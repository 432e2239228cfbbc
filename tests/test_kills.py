"""A cell that is killed again and again, at any point of its life, ends with the same bits."""

import json
import multiprocessing
import random
import shutil
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from tiny_cell import configure

from lra import checkpoint
from lra.build import build_task
from lra.checkpoint import BEST, CHECKPOINT, load_best, load_last
from lra.lock import read_note
from lra.record import NOTE, RECORD, read_record
from lra.runner import run_cell
from lra.tasks import cache

KILLS = 20
WORDS = ["attention=fourier", "train.steps=40", "train.validate_every=8"]
WORDS += ["train.checkpoint_seconds=0"]
CPU = torch.device("cpu")


def train(folder: Path, name: str) -> None:
    """Train a cell; this runs in a process of its own."""
    torch.set_num_threads(1)
    (folder / name).mkdir(exist_ok=True)
    run_cell(configure(folder, *WORDS), folder / name)


def start(folder: Path, name: str) -> ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    # Torch is imported only once, so that a cell begins in milliseconds.
    context.set_forkserver_preload(["lra.runner", "tiny_cell", "test_kills"])
    process = context.Process(target=train, args=(folder, name))
    process.start()
    return process


def check_files(folder: Path, run: Path) -> str:
    """Read every file that has its final name; return the stage that the cell had reached."""
    config = configure(folder, *WORDS)
    task = build_task(config)
    cached = cache.built("listops", task, folder / "cache", task.locate(None))
    if any((folder / "cache").glob("listops-*/manifest.json")):
        assert cached is not None
    found = load_last(run, CPU)
    if (run / BEST).exists():
        assert checkpoint.load(run / BEST, CPU)["model"]
    if (run / RECORD).exists():
        assert read_record(run / RECORD).status == "ok"
        return "record"
    if (run / NOTE).exists():
        note = read_note(run / NOTE)
        # The cell was killed, so its note mentions no end, and no process works on it.
        assert note is not None and not note.ended and not note.is_active
    if cached is None:
        return "data"
    return "first update" if found is None else f"step {found[1]['progress']['step']}"


def end_of(run: Path) -> dict[str, torch.Tensor]:
    record = json.loads((run / RECORD).read_text())
    counts = [record[key] for key in ("test_correct", "best_step", "steps")]
    return {"counts": torch.tensor(counts), **load_best(run, CPU)}


def saved(run: Path) -> int:
    """Return when the last checkpoint was written, or 0 if there is none."""
    file = run / CHECKPOINT
    return file.stat().st_mtime_ns if file.exists() else 0


def first_save(process: ForkServerProcess, run: Path, before: int) -> float:
    """Wait until a process first saves a checkpoint or ends; return the seconds waited."""
    began = time.monotonic()
    while saved(run) == before and process.is_alive():
        time.sleep(0.005)
    return time.monotonic() - began


@pytest.mark.slow
def test_a_cell_that_is_killed_twenty_times_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    # The first process also waits for the import of torch.
    start(tmp_path, "unused").join()
    process = start(whole, "run")
    early = first_save(process, whole / "run", 0)
    began = time.monotonic()
    process.join()
    late = time.monotonic() - began
    assert process.exitcode == 0
    expected = end_of(whole / "run")

    folder, rng, points, ends = tmp_path / "killed", random.Random(0), [], 0
    folder.mkdir()
    while len(points) < KILLS:
        before = saved(folder / "run")
        process = start(folder, "run")
        if rng.random() < 0.3:
            process.join(rng.uniform(0, early))
        else:
            first_save(process, folder / "run", before)
            process.join(rng.uniform(0, late / 2))
        if process.is_alive():
            process.kill()
            process.join()
            points.append(check_files(folder, folder / "run"))
            continue
        assert process.exitcode == 0
        ours = end_of(folder / "run")
        assert all(torch.equal(ours[key], expected[key]) for key in expected), points
        # Start over; every second time, the data are built again as well.
        ends += 1
        shutil.rmtree(folder if ends % 2 else folder / "run")
        folder.mkdir(exist_ok=True)
    process = start(folder, "run")
    process.join()
    assert process.exitcode == 0, points
    ours = end_of(folder / "run")
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in expected), points
    # Enough distinct points that a change to the tiny cell does not put all kills in one place.
    assert len(set(points)) > KILLS / 4, points
