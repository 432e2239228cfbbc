"""Bars that show how far something is: on a terminal and in a notebook, never in a log file."""

import sys
from typing import Any

from tqdm.auto import tqdm

# What a terminal of 80 columns must show comes first, the loss among it; the rest may be cut.
FORMAT = "{desc} {percentage:3.0f}%{postfix} {bar} {n_fmt}/{total_fmt} {remaining} left, {rate_fmt}"
LONGEST = 36


def shortened(label: str) -> str:
    """Return the name of what a bar is of, cut where the bar would have no room beside it."""
    return label if len(label) <= LONGEST else f"{label[: LONGEST - 4]} ..."


def progress_bar(*arguments: Any, **options: Any) -> Any:
    """Return a bar of tqdm's, with its arguments and options.

    In a notebook it is one of widgets, or of text where `ipywidgets` is not installed.
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    # A kernel's output is no terminal, by which tqdm goes.
    disable = None if getattr(shell, "kernel", None) is None else False
    # A service, or a program of windows alone, may have nothing to write to.
    if sys.stderr is None:
        disable = True
    return tqdm(*arguments, disable=disable, **options)
