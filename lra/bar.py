"""Progress bars: shown on a terminal and in a notebook, never in a log file."""

import sys
from typing import Any

from tqdm.auto import tqdm

# What an 80-column terminal must show comes first, the loss included; the rest may be cut off.
FORMAT = "{desc} {percentage:3.0f}%{postfix} {bar} {n_fmt}/{total_fmt} {remaining} left, {rate_fmt}"
MAX_LENGTH = 36


def shortened(label: str) -> str:
    """Return a bar's label, shortened if it would leave no room for the bar itself."""
    return label if len(label) <= MAX_LENGTH else f"{label[: MAX_LENGTH - 4]} ..."


def progress_bar(*arguments: Any, **options: Any) -> Any:
    """Return a tqdm progress bar, built from the arguments and options of tqdm.

    In a notebook the bar is a widget, or plain text if `ipywidgets` is not installed.
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    # tqdm shows a bar only on a terminal, and the output of a notebook kernel is not one.
    disable = None if getattr(shell, "kernel", None) is None else False
    # A service, or a program with a graphical interface only, may have no stderr.
    if sys.stderr is None:
        disable = True
    return tqdm(*arguments, disable=disable, **options)
