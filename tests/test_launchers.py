"""Sweeps with every launcher, the request to Slurm, and workers that end with their sweep."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from test_train import finish, start
from tiny_cell import TINY, configure

from lra import launch
from lra.checkpoint import load_last
from lra.config import ConfigError
from lra.lock import read_note
from lra.processes import own_device
from lra.record import NOTE, read_records
from lra.signals import StoppedError, listening

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["train.steps=6", "train.warmup_steps=2", "train.validate_every=3"]
GRID = ["attention=softmax,fourier", "seed=0,1", *QUICK]
LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_two_by_two_sweep_ends_with_four_records(tmp_path: Path, name: str) -> None:
    if name != "basic":
        pytest.importorskip(launch.PACKAGES[launch.EXTRAS[name.partition("_")[0]]].split("_")[1])
    code, output = finish(start(tmp_path, *GRID, *LAUNCHERS[name]))
    assert code == 0, output
    records = list(read_records(tmp_path / "runs"))
    assert {(record.attention, record.seed, record.status) for record in records} == {
        (attention, seed, "ok") for attention in ("softmax", "fourier") for seed in (0, 1)
    }
    assert "4 cells: 4 done" in output


SBATCH = """#!/bin/sh
cat "$@" > {folder}/asked
echo Submitted batch job 4711
"""


def test_slurm_is_asked_for_a_gpu_time_and_memory_and_the_command_returns(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(SBATCH.format(folder=tmp_path))
    sbatch.chmod(0o755)
    (tmp_path / "bin" / "srun").symlink_to(sbatch)
    words = [*TINY, f"cache_dir={tmp_path / 'cache'}", f"runs_dir={tmp_path / 'runs'}", *GRID]
    words += ["hydra/launcher=slurm", "hydra.launcher.timeout_min=90", "hydra.launcher.mem_gb=7"]
    done = subprocess.run(
        [sys.executable, "-m", "lra.train", *words],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{sbatch.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "submitted as 4711_0" in done.stdout and "4 cells are in the queue" in done.stdout
    asked = (tmp_path / "asked").read_text().splitlines()
    for line in (
        "#SBATCH --array=0-3%4",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=7GB",
        "#SBATCH --time=90",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --requeue",
    ):
        assert line in asked, asked
    # The job finds the cell again, even though this process has ended.
    assert any("submitit.core._submit" in line for line in asked)
    assert not list((tmp_path / "runs").glob("**/result.json"))


def test_a_machine_without_slurm_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    code, output = finish(start(tmp_path, *GRID, "hydra/launcher=slurm"))
    assert code == 2 and "there is no sbatch on this machine" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_single_cell_goes_to_the_launcher_too(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    code, output = finish(start(tmp_path, *QUICK, "hydra/launcher=slurm"))
    assert code == 2 and "there is no sbatch on this machine" in output
    code, output = finish(start(tmp_path, *QUICK, *LAUNCHERS["submitit_local"]))
    assert code == 0 and "1 cell: 1 done" in output


@pytest.mark.parametrize(("name", "extra"), [("joblib", "sweep"), ("slurm", "slurm")])
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, name: str, extra: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"hydra/launcher={name}: .*; run pip .*'\.\[{extra}\]'"):
        launch.prepare(name)
    launch.prepare("basic")


def test_parallel_cells_are_spread_over_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    joblib = pytest.importorskip("joblib")
    [real] = joblib.Parallel(n_jobs=2)(
        joblib.delayed(lambda: multiprocessing.current_process().name)() for _ in range(1)
    )
    assert re.fullmatch(r"LokyProcess-\d+", real)
    names = ["LokyProcess-1", "LokyProcess-2"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def devices(name: str) -> list[str]:
        found = []
        for worker in names:
            monkeypatch.setattr(multiprocessing.current_process(), "_name", worker)
            found.append(own_device(name))
        return found

    assert sorted(devices("auto")) == sorted(devices("cuda")) == ["cuda:0", "cuda:1"]
    assert devices("cpu") == ["cpu", "cpu"] and devices("cuda:1") == ["cuda:1", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices("auto") == ["auto", "auto"]


def descendants(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_parallel_sweep_leaves_no_worker_behind(tmp_path: Path, number: signal.Signals) -> None:
    pytest.importorskip("joblib")
    endless = ["train.steps=1000000", "train.validate_every=1000000"]
    grid = ["attention=softmax,fourier", *endless, "train.checkpoint_seconds=1e6"]
    process = start(tmp_path, *grid, *LAUNCHERS["joblib"])
    deadline = time.monotonic() + 120
    training = 0
    # Before its first update, a cell has nothing to save.
    while time.monotonic() < deadline and training < 2:
        time.sleep(0.2)
        logs = [file.read_text() for file in tmp_path.glob("runs/**/train.log")]
        training = sum("1000000 updates of" in text for text in logs)
    assert training == 2
    time.sleep(3)
    workers = descendants(process)
    assert len(workers) >= 2
    process.send_signal(number)
    finish(process)
    _, left = psutil.wait_procs(workers, timeout=30)
    assert not left
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    for file in tmp_path.glob(f"runs/**/{NOTE}"):
        note = read_note(file)
        assert note is not None and note.ended.startswith("StoppedError: stopped at step")
        assert (file.parent / "checkpoint.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR2, 140)]
)
def test_every_signal_saves_the_run_and_ends_it_with_its_exit_code(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    options = ["train.steps=100000", "train.validate_every=10", "train.checkpoint_seconds=1e9"]
    process = start(tmp_path, *options)
    assert process.stdout is not None
    for line in process.stdout:
        if "step 30/" in line:
            break
    process.send_signal(number)
    ended, output = finish(process)
    assert ended == code and f"start again to continue ({number.name})" in output
    assert list(tmp_path.glob("runs/**/checkpoint.pt"))


def test_a_launcher_that_also_listens_gets_the_signal_once_everything_is_saved() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    # Under nohup, SIGHUP is ignored.
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with listening() as stop, stop.deferred():
            os.kill(os.getpid(), signal.SIGUSR2)
            assert stop.requested and not heard
            # It only takes note, as submitit does of SIGTERM: the run goes on and hears the next.
            stop.answer("saved")
            assert heard == [signal.SIGUSR2] and not stop.requested
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(StoppedError, match="saved .SIGHUP.") as caught:
                stop.answer("saved")
            assert caught.value.code == 129
        assert signal.getsignal(signal.SIGUSR2) not in (signal.SIG_DFL, stop._receive)
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.signal(signal.SIGHUP, hangup)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening() as stop, stop.deferred():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_preempted_job_is_requeued_and_continues_at_its_last_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitit = pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    options = ["train.steps=200000", "train.validate_every=200000"]
    options += ["train.checkpoint_seconds=1e6"]
    (tmp_path / "run").mkdir()
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=5)
    job = executor.submit(Cell(), tmp_path, options)

    def wait_until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, f"{job.stdout()}{job.stderr()}"
            time.sleep(0.1)

    try:
        wait_until(lambda: "updates of 4" in str(job.stderr()))
        time.sleep(1)
        # As Slurm does before it takes the machine away; the job is then started again.
        note = read_note(tmp_path / "run" / NOTE)
        assert note is not None
        os.kill(note.pid, signal.SIGUSR2)
        wait_until(lambda: "continues at step" in str(job.stderr()))
        # Read it before the cancelled run saves another one.
        _, state = load_last(tmp_path / "run", torch.device("cpu"))
    finally:
        job.cancel()
        job._process.wait(timeout=60)
    log = str(job.stderr())
    assert log.index("Calling checkpoint method") < log.index("continues at step")
    assert f"continues at step {state['progress']['step']}\n" in log


class Cell:
    """A submitit job, like the launcher's."""

    def __call__(self, folder: Path, options: list[str]) -> None:
        import logging

        from lra.runner import run_cell

        logging.basicConfig(level=logging.INFO, force=True)
        try:
            run_cell(configure(folder, *options), folder / "run")
        except StoppedError as error:
            sys.exit(error.code)

    def checkpoint(self, *arguments: object) -> object:
        import submitit

        return submitit.helpers.DelayedSubmission(self, *arguments)


def test_a_launcher_that_ends_the_process_stops_the_run_with_its_own_exit_code() -> None:
    def requeue(number: int, frame: object) -> None:
        sys.exit(7)

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with listening() as stop, stop.deferred():
            os.kill(os.getpid(), signal.SIGUSR2)
            with pytest.raises(StoppedError, match="saved .SIGUSR2.") as caught:
                stop.answer("saved")
        assert caught.value.code == 7
    finally:
        signal.signal(signal.SIGUSR2, before)
