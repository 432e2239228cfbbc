"""Keep threads of a user's own code that never end from holding up the process."""

import concurrent.futures.thread
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

# Seconds that they have to end on their own.
PATIENCE = 2.0


@contextmanager
def stray_threads_left() -> Iterator[None]:
    """End the process after this context even if threads that began within it are still running.

    If there are none, nothing is done, and Python ends as it always does.
    """
    code, before = 0, set(threading.enumerate())
    try:
        yield
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    except BaseException:
        code = 1
        raise
    finally:
        if stray := _stray(before):
            log.warning("the thread %s is still running; ended without it", stray.name)
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _stray(before: set[threading.Thread]) -> threading.Thread | None:
    """Return a thread, not one of `before`, that would hold up the process; None without one."""
    for thread in threading.enumerate():
        if thread in before or thread.daemon or _ends_at_exit(thread):
            continue
        thread.join(PATIENCE)
        if thread.is_alive():
            return thread
    return None


def _ends_at_exit(thread: threading.Thread) -> bool:
    """Return whether a hook that Python runs later ends a thread: of an executor or of joblib."""
    of_executors = getattr(concurrent.futures.thread, "_threads_queues", {})
    return thread in of_executors or type(thread).__module__.startswith("joblib.")
