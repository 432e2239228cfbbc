"""One cell on two processes, as torchrun starts them: the same updates and the same files."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_cell import TINY, configure

from lra import memory, processes
from lra.build import build_model
from lra.checkpoint import load, load_best, load_last
from lra.config import ConfigError
from lra.division import WHOLE, Division
from lra.evaluation import evaluation_division
from lra.loop import Run
from lra.processes import ALONE, Processes, joined, own_device
from lra.record import NOTE, RECORD, read_record
from lra.runner import run_cell
from lra.signals import StoppedError
from lra.trajectory import read_trajectory

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
# No dropout, since each process draws its own masks; an odd batch, so that the shares differ.
WORDS = ["attention=softmax", "model.dropout=0.0", "model.attention_dropout=0.0"]
WORDS += ["train.batch_size=5", "train.steps=40", "train.validate_every=10", "train.clip_norm=0.5"]
# Each process has several batches per validation.
WORDS += ["train.eval_batch_size=2"]


def torchrun(folder: Path, *words: str, processes: int = 2) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    command += ["--standalone", "-m", "lra.train", *TINY, *WORDS, *words]
    command += [f"cache_dir={folder / 'cache'}", f"runs_dir={folder / 'runs'}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def run_folder(folder: Path) -> Path:
    return folder / "runs" / "mini" / "nystromformer" / "listops" / "softmax" / "default" / "seed0"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run_folder(folder).mkdir(parents=True)
    run_cell(configure(folder, *WORDS), run_folder(folder))
    return run_folder(folder)


def assert_alike(ours: Path, theirs: Path) -> None:
    states = [load(folder / "checkpoint.pt", CPU) for folder in (ours, theirs)]
    for name, value in states[0]["model"].items():
        torch.testing.assert_close(value, states[1]["model"][name], rtol=1e-3, atol=1e-4)
    records = [read_record(folder / RECORD) for folder in (ours, theirs)]
    for key in ("steps", "test_total", "config_hash", "data_fingerprint"):
        assert getattr(records[0], key) == getattr(records[1], key), key


@pytest.mark.slow
def test_two_processes_make_the_same_updates_as_one_and_only_the_first_writes(
    tmp_path: Path, alone: Path
) -> None:
    output = torchrun(tmp_path)
    folder = run_folder(tmp_path)
    assert_alike(alone, folder)
    record = read_record(folder / RECORD)
    assert (record.processes, read_record(alone / RECORD).processes) == (2, 1)
    # Each process validated half of the split, and all of it counts.
    assert record.test_total == 24 and output.count("step 40/40: validation") == 1
    progress = [load(each / "checkpoint.pt", CPU)["progress"] for each in (alone, folder)]
    assert progress[0]["tokens"] == progress[1]["tokens"]
    # Several files, for curves and for values of the configuration, but from one process.
    written = {file.name.split(".")[5] for file in folder.glob("events.out.tfevents.*")}
    assert len(written) == 1 and (folder / NOTE).exists()
    ours, theirs = (
        read_trajectory(each, 40, read_record(each / RECORD).loss_fingerprint)
        for each in (alone, folder)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert load_best(folder, CPU).keys() == load_best(alone, CPU).keys()
    # A finished cell is finished for both processes.
    assert "is finished" in torchrun(tmp_path)


@pytest.mark.slow
def test_a_run_resumes_with_a_different_number_of_processes(
    tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, save = run_folder(tmp_path), Run._save
    folder.mkdir(parents=True)

    def stop(run: Run) -> None:
        save(run)
        if run.progress.step == 17:
            raise StoppedError("enough")

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Run, "_save", stop)
        run_cell(configure(tmp_path, *WORDS, "train.checkpoint_seconds=0"), folder)
    assert load_last(folder, CPU)[1]["progress"]["step"] == 17
    assert "continues at step 17" in torchrun(tmp_path)
    assert_alike(alone, folder)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (2, 3)])
def test_a_cell_begun_by_torchrun_resumes_with_more_or_fewer_processes(
    tmp_path: Path, alone: Path, first: int, then: int
) -> None:
    words = [*WORDS, f"cache_dir={tmp_path / 'cache'}", f"runs_dir={tmp_path / 'runs'}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={first}", str(ROOT / "tests" / "stopped_midway.py")]
    done = subprocess.run(
        [*command, *TINY, *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    folder = run_folder(tmp_path)
    state = load(folder / "checkpoint.pt", CPU)
    # All processes heard the signal at the same update, in the second validation's first batch.
    assert state["progress"]["step"] == 20 and state["unvalidated"], done.stdout
    assert "stopped at step 20; start again to continue (SIGTERM)" in done.stdout
    output = torchrun(tmp_path, processes=then)
    assert "continues at step 20" in output
    assert read_record(folder / RECORD).processes == then
    assert_alike(alone, folder)


@pytest.mark.slow
def test_a_sweep_under_torchrun_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="torchrun trains one cell"):
        torchrun(tmp_path, "seed=0,1")


def test_without_torchrun_there_is_one_process() -> None:
    with joined(CPU, 1) as processes:
        assert processes == ALONE and processes.writes
        assert ALONE.add_up([], torch.zeros(()), True, False) == (True, False)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torchrun start two processes, of which this is the second, on two GPUs."""
    for name, value in {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "LOCAL_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("gpus")
def test_each_process_has_its_own_gpu_and_there_must_be_one_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [own_device(name) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    message = "device=cuda:0: each of the 2 processes that torchrun starts here needs a GPU of its"
    with pytest.raises(ConfigError, match=message):
        own_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="which device=auto gives it, and there are 1"):
        own_device("auto")
    assert own_device("cpu") == "cpu"


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("the disk is full"), 2), (ValueError("of a backend"), 1)]
)
def test_on_gpus_a_process_that_fails_ends_without_waiting_for_the_others(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    done = []
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(processes.dist, name, lambda *_, name=name, **__: done.append(name))
    monkeypatch.setattr(processes.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(processes.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)

    def leave(code: int) -> None:
        done.append(code)
        raise KeyboardInterrupt

    monkeypatch.setattr(processes.os, "_exit", leave)
    cuda = torch.device("cuda:1")
    with pytest.raises(KeyboardInterrupt), joined(cuda, 8):
        raise error
    # The exit that ends the process here raises instead, so that the group is left after it.
    assert done[:3] == [cuda, "init_process_group", code]
    assert str(error) in caplog.text
    done.clear()
    with pytest.raises(StoppedError), joined(cuda, 8):
        raise StoppedError("saved")
    assert done == [cuda, "init_process_group", "destroy_process_group"]


def test_processes_on_gpus_divide_evaluation_alike_whatever_their_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path, *WORDS)
    model = build_model(config)
    there = next(model.parameters())
    two = Processes(0, 2)
    assert evaluation_division(config.train, model, two) != WHOLE
    monkeypatch.setattr(
        type(there), "device", property(lambda _: torch.device("cuda")), raising=False
    )
    monkeypatch.setattr(memory, "total", lambda device: 2**30)
    assert evaluation_division(config.train, model, two) == WHOLE
    assert evaluation_division(config.train, model, ALONE) != WHOLE
    # A given number of examples is the same for all.
    given = replace(config.train, micro_batch=2)
    assert evaluation_division(given, model, two) == Division(examples=2)


def test_more_processes_than_examples_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="train.batch_size=3: must be at least 4"), joined(CPU, 3):
        pass
