"""Bars that show how far something is: on a terminal and in a notebook, never in a log file."""

import sys
from typing import Any

from tqdm.auto import tqdm


def progress_bar(*arguments: Any, **options: Any) -> Any:
    """Return a bar of tqdm's, with its arguments and options.

    In a notebook it is one of widgets, or of text where `ipywidgets` is not installed.
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    # A kernel's output is no terminal, by which tqdm goes.
    disable = None if getattr(shell, "kernel", None) is None else False
    return tqdm(*arguments, disable=disable, **options)
