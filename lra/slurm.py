"""Slurm: one job of an array for each cell, submitted without waiting for it."""

import shutil
from collections.abc import Sequence
from typing import Any

import submitit
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import OmegaConf

from lra.config import ConfigError

_LAUNCHER = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
# Parameters of the launcher, not of its jobs.
_OF_EXECUTOR = ("submitit_folder", "max_num_timeout")


def submit(
    launcher: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
) -> Sequence[JobReturn]:
    """Submit a job for every cell, in place of the `launch` of submitit's launcher.

    Args:
        launcher: That launcher, a `SlurmLauncher`, which each job calls.
        job_overrides: The words of every cell.
        initial_job_idx: Number of the first job.
    """
    common = set(OmegaConf.structured(BaseQueueConf))
    parameters = {
        key if key in common else f"slurm_{key}": value
        for key, value in launcher.params.items()
        if key not in _OF_EXECUTOR
    }
    executor = submitit.AutoExecutor(
        folder=launcher.params["submitit_folder"],
        cluster="slurm",
        slurm_max_num_timeout=launcher.params["max_num_timeout"],
    )
    executor.update_parameters(**parameters)
    arguments: list[tuple[Any, ...]] = [
        (list(words), "hydra.sweep.dir", number, f"cell_{number}", Singleton.get_state())
        for number, words in enumerate(job_overrides, initial_job_idx)
    ]
    jobs = executor.map_array(launcher, *zip(*arguments, strict=True))
    for job, words in zip(jobs, job_overrides, strict=True):
        print(f"submitted as {job.job_id}: {' '.join(filter_overrides(words))}")
    print(f"{len(jobs)} cells are in the queue; `lra status` shows how far they are")
    return [JobReturn(status=JobStatus.COMPLETED)] * len(jobs)


def register() -> None:
    """Make Slurm's launcher return once the jobs are in the queue.

    Its own `launch` waits for the last of them, for days, in a shell that may be closed before
    then. Hydra takes launchers only from a package of its own, so ours cannot be a separate class.

    Raises:
        ConfigError: There is no Slurm here.
    """
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"hydra/launcher=slurm: there is no {program} on this machine; submit from a login"
                " node of the cluster"
            )
    # The class as Hydra has loaded it, which is not the one that an import gives.
    Plugins.instance().class_name_to_class[_LAUNCHER].launch = submit
