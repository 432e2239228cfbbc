"""Support for the launchers of a sweep: extras, and workers that end with it."""

import importlib.util
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

from lra.config import ConfigError
from lra.signals import SIGNALS
from lra.words import key_of

# The project's extra for each launcher, and the package that each extra installs.
EXTRAS = {"joblib": "sweep", "submitit": "slurm", "slurm": "slurm"}
PACKAGES = {"sweep": "hydra_joblib_launcher", "slurm": "hydra_submitit_launcher"}
# Seconds that workers have to finish their update and save.
PATIENCE = 120.0


def launcher(words: Iterable[str]) -> str:
    """Return the launcher that words choose."""
    chosen = [word.partition("=")[2] for word in words if key_of(word) == "hydra/launcher"]
    return chosen[-1] if chosen else "basic"


def prepare(name: str) -> None:
    """Prepare a launcher for use.

    Raises:
        ConfigError: Its package is not installed.
    """
    extra = EXTRAS.get(name.partition("_")[0])
    if extra is None:
        return
    package = PACKAGES[extra]
    if importlib.util.find_spec(f"hydra_plugins.{package}") is None:
        raise ConfigError(
            f"hydra/launcher={name}: {package.replace('_', '-')} is not installed; run"
            f" pip install -e '.[{extra}]'"
        )
    if name == "slurm":
        from lra import slurm

        slurm.register()


@contextmanager
def workers_ended() -> Iterator[None]:
    """Pass a signal on to the workers of a sweep, which save, and end after they do."""

    def hand_on(number: int, _: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        workers = [each for each in psutil.Process().children(recursive=True) if _is_worker(each)]
        for worker in workers:
            # A worker that has ended meanwhile needs no signal.
            if worker.is_running():
                worker.send_signal(signal.SIGTERM)
        sys.stdout.flush()
        # The pool would kill all workers as soon as the first one has saved and ended. Replacing
        # the program removes the pool; the process remains, and only waits.
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
    """Return whether a process is a worker, and not the one that cleans up after all of them."""
    try:
        return "resource_tracker" not in " ".join(process.cmdline())
    except psutil.Error:
        return False


def wait_for(pids: Iterable[int]) -> None:
    """Wait for processes to end, and kill those that take too long."""
    there = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, left = psutil.wait_procs(there, timeout=PATIENCE)
    for process in left:
        process.kill()


if __name__ == "__main__":
    wait_for(map(int, sys.argv[2:]))
    sys.exit(int(sys.argv[1]))
