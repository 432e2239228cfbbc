"""Whether a process is running, and how file systems say that they have no locks."""

import errno

import psutil

# Error codes of file systems without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def is_alive(pid: int) -> bool:
    """Return whether a process of this machine is running."""
    try:
        return bool(psutil.pid_exists(pid))
    except OverflowError:
        return True
