"""What launchers of a sweep need of us: extras, a GPU for each cell, workers that end with it."""

import importlib.util
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

import psutil

from lra.config import Config, ConfigError
from lra.signals import SIGNALS
from lra.words import key_of

# The package of a launcher, and the extra of the project that brings it.
EXTRAS = {"joblib": "sweep", "submitit": "slurm", "slurm": "slurm"}
PACKAGES = {"sweep": "hydra_joblib_launcher", "slurm": "hydra_submitit_launcher"}
# Seconds that workers have to make their update and save.
PATIENCE = 120.0


def launcher(words: Iterable[str]) -> str:
    """Return the launcher that words choose."""
    chosen = [word.partition("=")[2] for word in words if key_of(word) == "hydra/launcher"]
    return chosen[-1] if chosen else "basic"


def prepare(name: str) -> None:
    """Make a launcher ready.

    Raises:
        ConfigError: Its package is not installed.
    """
    extra = EXTRAS.get(name.partition("_")[0])
    if extra is None:
        return
    package = PACKAGES[extra]
    if importlib.util.find_spec(f"hydra_plugins.{package}") is None:
        raise ConfigError(
            f"hydra/launcher={name}: {package.replace('_', '-')} is not installed; pip install -e"
            f" '.[{extra}]' brings it"
        )
    if name == "slurm":
        from lra import slurm

        slurm.register()


def with_own_gpu(config: Config, name: str, number: int) -> Config:
    """Return a cell that has one of several GPUs, where cells run beside each other.

    Args:
        config: The cell.
        name: The launcher; a job of Slurm sees its own GPU alone.
        number: Of the cell in its sweep, from 0.
    """
    if name != "joblib" or config.device != "auto":
        return config
    import torch

    gpus = torch.cuda.device_count()
    # Workers are used again, so that what they see of the machine cannot be narrowed.
    return replace(config, device=f"cuda:{number % gpus}") if gpus > 1 else config


@contextmanager
def workers_ended() -> Iterator[None]:
    """Hand a signal on to the workers of a sweep, which save, and end after them."""

    def hand_on(number: int, _: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        workers = [each for each in psutil.Process().children(recursive=True) if _is_worker(each)]
        for worker in workers:
            # One that has ended meanwhile needs none.
            if worker.is_running():
                worker.send_signal(signal.SIGTERM)
        sys.stdout.flush()
        # The pool would kill all of them as soon as the first one has saved and ended. It goes with
        # the program; the process stays, and only waits.
        code, numbers = str(128 + number), [str(worker.pid) for worker in workers]
        os.execv(sys.executable, [sys.executable, "-m", "lra.launch", code, *numbers])

    before = {each: signal.getsignal(each) for each in SIGNALS}
    for each, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(each, hand_on)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _is_worker(process: psutil.Process) -> bool:
    """Tell a worker from the process that clears up behind all of them."""
    try:
        return "resource_tracker" not in " ".join(process.cmdline())
    except psutil.Error:
        return False


def wait_for(pids: Iterable[int]) -> None:
    """Wait for processes to end, and end those that take too long."""
    there = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, left = psutil.wait_procs(there, timeout=PATIENCE)
    for process in left:
        process.kill()


if __name__ == "__main__":
    wait_for(map(int, sys.argv[2:]))
    sys.exit(int(sys.argv[1]))
