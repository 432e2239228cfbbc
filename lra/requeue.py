"""Whether this job is one that a scheduler has started again, as after a preemption.

`force=true` trains a cell anew, and a job that is started again has the same words: it would never
end. So a cell's note says which job began it anew, and by which configuration, and that job goes on
when it comes back with the same one.

Known are Slurm and the restarts of torchrun. Elsewhere `LRA_JOB` names the job, by any name that
stays the same when it is started again.
"""

import os
import socket

NAME = "LRA_JOB"


def _jobs() -> dict[str, bool]:
    """Return the names of the jobs that this process is in, and whether each was started again."""
    given = os.environ.get
    found = {}
    if name := given(NAME):
        # Whoever names a job says by that that it may come back.
        found[f"{NAME} {name}"] = True
    if number := given("SLURM_JOB_ID"):
        cluster = given("SLURM_CLUSTER_NAME", "")
        found[f"slurm {cluster} {number}"] = given("SLURM_RESTART_COUNT", "0") != "0"
    if number := given("TORCHELASTIC_RUN_ID"):
        # Without a name of its own every run has the same.
        agent = f"{socket.gethostname()} {os.getppid()}"
        found[f"torchrun {agent} {number}"] = given("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return found


def jobs(cell: str) -> list[str]:
    """Return what this process's jobs are known by; none where no scheduler started it.

    Args:
        cell: What they do, such as the hash of a configuration.
    """
    return [f"{name}, {cell}" for name in _jobs()]


def is_back(jobs: list[str], cell: str) -> bool:
    """Tell whether one of some jobs is the one here, started again to do the same."""
    return any(again and f"{name}, {cell}" in jobs for name, again in _jobs().items())
