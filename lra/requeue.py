"""Whether a scheduler has restarted this job, for example after a preemption.

`force=true` trains a cell from scratch, and a restarted job has the same words, so it would never
finish. A cell's note therefore says which job began it from scratch, and with which configuration;
that job continues when it comes back with the same configuration.

Slurm and the restarts of torchrun are known. Elsewhere, `LRA_JOB` names the job, by any name that
stays the same when the job is restarted.
"""

import os
import socket

NAME = "LRA_JOB"


def _jobs() -> dict[str, bool]:
    """Return the names of the jobs that this process is in, and whether each was restarted."""
    given = os.environ.get
    found = {}
    if name := given(NAME):
        # Naming a job implies that it may come back.
        found[f"{NAME} {name}"] = True
    if number := given("SLURM_JOB_ID"):
        cluster = given("SLURM_CLUSTER_NAME", "")
        found[f"slurm {cluster} {number}"] = given("SLURM_RESTART_COUNT", "0") != "0"
    if number := given("TORCHELASTIC_RUN_ID"):
        # Runs that are not given an id all have the same one.
        agent = f"{socket.gethostname()} {os.getppid()}"
        found[f"torchrun {agent} {number}"] = given("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return found


def jobs(cell: str) -> list[str]:
    """Return what identifies this process's jobs; none if no scheduler started it.

    Args:
        cell: What the jobs work on, such as the hash of a configuration.
    """
    return [f"{name}, {cell}" for name in _jobs()]


def was_requeued(jobs: list[str], cell: str) -> bool:
    """Return whether one of the given jobs is this one, restarted for the same cell."""
    return any(again and f"{name}, {cell}" in jobs for name, again in _jobs().items())
