"""What the commands share: parsers, errors without tracebacks, closed pipes, text as ASCII.

`run` wraps the `main` of a command, as in `python -m lra.report`.
"""

import argparse
import codecs
import errno
import io
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lra.threads import stray_threads_left

# Characters of tables and messages beyond ASCII.
_SPELLED = {"±": "+/-", "×": "x", "–": "-", "—": "-", "…": "...", "≥": ">=", "≤": "<="}
INTERRUPTED = 130


def spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """Spell out characters that a terminal lacks, for `codecs.register_error`."""
    assert isinstance(error, UnicodeEncodeError)
    text = ""
    for character in error.object[error.start : error.end]:
        plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
        text += _SPELLED.get(character) or plain or "?"
    return text, error.end


codecs.register_error("spelled", spelled)


def command_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `lra COMMAND`, which prints its description as it is written."""
    return argparse.ArgumentParser(
        prog=f"lra {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


@contextmanager
def refused(*errors: type[Exception]) -> Iterator[None]:
    """Print an error of these types without a traceback, and exit with status 2."""
    try:
        yield
    except errors as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def run(main: Callable[[], object]) -> None:
    """Run a command and exit with its status, whatever threads it leaves behind.

    If its reader goes away, as `head` does, it ends quietly. Ctrl-C ends it with status 130. A
    folder or file that cannot be read or written is named on one line, with status 2.
    """
    # A stream that was closed before the start is None, which much code that writes doesn't expect.
    sys.stdout, sys.stderr = (
        each if each is not None else open(os.devnull, "w")  # noqa: SIM115  # until the process ends
        for each in (sys.stdout, sys.stderr)
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spelled")
    with stray_threads_left():
        _run(main)


def _run(main: Callable[[], object]) -> None:
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            # Python would complain again about the output that is left.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        elif error.filename is None:
            raise
        place = error.filename or "output"
        print(f"{place}: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        sys.exit(2)
