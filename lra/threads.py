"""Threads of a user's own code that never end, and do not hold the process."""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

# Seconds that they have to end by themselves.
PATIENCE = 2.0


@contextmanager
def stray_threads_left() -> Iterator[None]:
    """End the process after this context though threads of a user's own code are still running.

    Where there are none, nothing is done, and Python ends as it always does.
    """
    code = 0
    try:
        yield
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    except BaseException:
        code = 1
        raise
    finally:
        if stray := _stray():
            log.warning("the thread %s is still running; ended without it", stray.name)
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _stray() -> threading.Thread | None:
    """Return a thread that would hold the process, None where there is none."""
    ours = {threading.main_thread(), threading.current_thread()}
    for thread in threading.enumerate():
        # joblib's threads end in a hook of Python's that runs later.
        if thread in ours or thread.daemon or type(thread).__module__.startswith("joblib."):
            continue
        thread.join(PATIENCE)
        if thread.is_alive():
            return thread
    return None
