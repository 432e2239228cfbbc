"""Signals that ask a run to stop: it saves first, then ends with 128 plus the signal's number.

SIGTERM and SIGHUP come from a system that shuts down or a terminal that closes, SIGINT is Ctrl-C,
and SIGUSR2 is what Slurm is asked to send some time before it takes the machine away.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Windows only has the first two.
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR2")
SIGNALS = tuple(signal.Signals[name] for name in _NAMES if hasattr(signal, name))
# Seconds between checks that the process that started a worker still exists.
LOOK_EVERY = 1.0
# Processes whose end ends this one.
_watched: list[int] = []


class StoppedError(BaseException):
    """A run was asked to stop; its checkpoint is written.

    Args:
        message: Where it stopped.
        number: The signal.
        code: The exit code; by default 143 for SIGTERM, 130 for Ctrl-C, 129 for SIGHUP and 140
            for SIGUSR2.
    """

    def __init__(self, message: str, number: int = signal.SIGTERM, code: int | None = None) -> None:
        super().__init__(message)
        self.number = number
        self.code = 128 + number if code is None else code


class UnfinishedError(Exception):
    """An update or evaluation was asked to stop before its last batch; it will be repeated."""


def never() -> bool:
    """Return False: nobody asks to stop."""
    return False


class Stop:
    """Signals that ask to stop: answered at once or, while there is something to save, on request.

    Nothing is received before `listen`.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._deferred = False
        handlers = {each: signal.getsignal(each) for each in SIGNALS}
        # Ignored signals stay ignored: nohup ignores SIGHUP.
        self._previous = {n: each for n, each in handlers.items() if each != signal.SIG_IGN}

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived that has not been answered yet."""
        return bool(self._received)

    def listen(self) -> None:
        """Receive the signals from now on."""
        for each in self._previous:
            signal.signal(each, self._receive)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note signals within this context; `answer` is called when everything is saved."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def restore(self) -> None:
        """Let signals do what they did before `listen`."""
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    def answer(self, message: str) -> None:
        """Stop, now that there is nothing left to save.

        A launcher that listened to the signal before us has its turn first: submitit's puts the
        job back into the queue. If it only takes note, the run continues.

        Args:
            message: Where the run stopped, for the error.

        Raises:
            StoppedError: Nobody else listened, or whoever did ends the process.
        """
        # If there are several processes, another one may have been asked.
        number = self._received.pop() if self._received else int(signal.SIGTERM)
        handler = self._previous.get(signal.Signals(number))
        self.restore()
        reason = f"{message} ({signal.Signals(number).name})"
        if not callable(handler) or handler is signal.default_int_handler:
            raise StoppedError(reason, number)
        try:
            handler(number, None)
        except SystemExit as error:
            # This is not an exit of a user's own code, which would be a failure.
            code = error.code if isinstance(error.code, int) else None
            raise StoppedError(reason, number, code) from error
        except Exception as error:  # such as a job that submitit may not requeue once more
            raise StoppedError(f"{reason}: {error}", number) from error
        self._received.clear()
        self.listen()

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._received.append(number)
        if not self._deferred:
            self.answer("stopped")
            return
        # A second signal does what it always did: it stops the process at once.
        self.restore()


@contextmanager
def listening() -> Iterator[Stop]:
    """Receive signals within this context; a thread other than the main one receives none."""
    stop = Stop()
    main = threading.current_thread() is threading.main_thread()
    if main:
        stop.listen()
    try:
        yield stop
    finally:
        if main:
            stop.restore()


def stop_without(parent: int) -> None:
    """Send this process SIGTERM once the process that started it has gone.

    Otherwise, a worker of a sweep would go on training for hours after the sweep was killed.

    Args:
        parent: Process id of the one that started it.
    """
    if _watched:
        return
    _watched.append(parent)

    def watch() -> None:
        while os.getppid() == parent:
            gone.wait(LOOK_EVERY)
        os.kill(os.getpid(), signal.SIGTERM)

    gone = threading.Event()
    threading.Thread(target=watch, name="parent watch", daemon=True).start()
