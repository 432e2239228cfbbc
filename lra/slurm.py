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
# Of the launcher, not of its jobs.
_OF_EXECUTOR = ("submitit_folder", "max_num_timeout")


def submit(
    launcher: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
) -> Sequence[JobReturn]:
    """Submit a job for every cell, as the `launch` of submitit's launcher.

    Args:
        launcher: It, a `SlurmLauncher`, which is what a job calls.
        job_overrides: The words of every cell.
        initial_job_idx: Number of the first.
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
    print(f"{len(jobs)} cells are in the queue; `lra status` tells how they are")
    return [JobReturn(status=JobStatus.COMPLETED)] * len(jobs)


def register() -> None:
    """Let Slurm's launcher return when the jobs are in the queue.

    Its own `launch` waits for the last of them, for days, in a shell that may be closed before.
    Hydra takes launchers from a package of its own only, so that ours cannot be a class beside it.

    Raises:
        ConfigError: There is no Slurm here.
    """
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"hydra/launcher=slurm: there is no {program} on this machine; submit from a login"
                " node of the cluster"
            )
    # As Hydra has loaded it, which is not what an import gives.
    Plugins.instance().class_name_to_class[_LAUNCHER].launch = submit
