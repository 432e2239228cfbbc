"""Where the suite's own files are, and where it keeps what it makes.

In a checkout, both are inside the checkout. An installed package contains its own files, and keeps
data sets and runs in the user's folders. These are the same wherever a command is started, because
a run that is looked for elsewhere would be trained again.
"""

import os
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

# Made by setup.py; a checkout does not have it.
_INSTALLED = Path(__file__).resolve().parent / "files"
IS_CHECKOUT = not _INSTALLED.is_dir()
# The folder that contains `lra` and `models`.
PACKAGES = Path(__file__).resolve().parents[1]
ROOT = PACKAGES if IS_CHECKOUT else _INSTALLED
CONFIGS = ROOT / "configs"
PUBLISHED = ROOT / "results" / "published.csv"
KNOWN_DATA = ROOT / "results" / "known_data.csv"

APP = "lra"
# File in a run folder from which the run continues; see `lra.checkpoint`.
CHECKPOINT = "checkpoint.pt"
# Folder in a run folder for the checkpoints and curves of pretraining.
PRETRAINING = "pretraining"


def cache_dir() -> str:
    r"""Return the folder of built data sets: LRA_CACHE_DIR, else `data/cache` of the checkout.

    Without a checkout, it is the user's cache folder: `~/.cache/lra` on Linux,
    `~/Library/Caches/lra` on macOS, `%LOCALAPPDATA%\lra\Cache` on Windows.
    """
    own = ROOT / "data" / "cache" if IS_CHECKOUT else user_cache_path(APP, appauthor=False)
    return _chosen("LRA_CACHE_DIR") or _from_here(own)


def runs_dir() -> str:
    """Return the folder of run folders: LRA_RUNS_DIR, else `runs` within `results_dir`."""
    return _chosen("LRA_RUNS_DIR") or str(Path(results_dir(), "runs"))


def submissions_dir() -> Path:
    """Return the folder of results that others submitted, `submissions` within `results_dir`."""
    return Path(results_dir(), "submissions")


def results_dir() -> str:
    r"""Return the folder of tables: `results` of the checkout, else the user's data folder.

    That is `~/.local/share/lra` on Linux, `~/Library/Application Support/lra` on macOS,
    `%LOCALAPPDATA%\lra` on Windows.
    """
    return _from_here(ROOT / "results" if IS_CHECKOUT else user_data_path(APP, appauthor=False))


def _chosen(variable: str) -> str:
    """Return the folder that a variable of the environment names; empty if it is not set."""
    return os.path.expanduser(os.environ.get(variable, ""))


def _from_here(folder: Path) -> str:
    """Return the path of a folder, relative (and so shorter) if it is below the current one."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def existing(folder: Path) -> Path:
    """Return the folder itself if it exists, otherwise the nearest one above it that does."""
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())
