"""Where the suite's own files lie, and where it keeps what it makes.

From a checkout both are the checkout's. An installed package has its files inside it, and keeps
data sets and runs in the user's own folders, which are the same wherever a command is started: a
run that is looked for elsewhere would be trained again.
"""

import os
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

# Made by setup.py; a checkout has none.
_INSTALLED = Path(__file__).resolve().parent / "files"
IS_CHECKOUT = not _INSTALLED.is_dir()
# The folder with `lra` and `models` in it.
PACKAGES = Path(__file__).resolve().parents[1]
ROOT = PACKAGES if IS_CHECKOUT else _INSTALLED
CONFIGS = ROOT / "configs"
PUBLISHED = ROOT / "results" / "published.csv"
KNOWN_DATA = ROOT / "results" / "known_data.csv"

APP = "lra"


def cache_dir() -> str:
    r"""Return the folder of built data sets: LRA_CACHE_DIR, else `data/cache` of the checkout.

    Without a checkout it is the user's cache folder: `~/.cache/lra` on Linux,
    `~/Library/Caches/lra` on macOS, `%LOCALAPPDATA%\lra\Cache` on Windows.
    """
    own = ROOT / "data" / "cache" if IS_CHECKOUT else user_cache_path(APP, appauthor=False)
    return os.environ.get("LRA_CACHE_DIR") or _from_here(own)


def runs_dir() -> str:
    """Return the folder of run folders: LRA_RUNS_DIR, else `runs` within `results_dir`."""
    return os.environ.get("LRA_RUNS_DIR") or str(Path(results_dir(), "runs"))


def submissions_dir() -> Path:
    """Return the folder of what others submitted, `submissions` within `results_dir`."""
    return Path(results_dir(), "submissions")


def results_dir() -> str:
    r"""Return the folder of tables: `results` of the checkout, else the user's data folder.

    That is `~/.local/share/lra` on Linux, `~/Library/Application Support/lra` on macOS,
    `%LOCALAPPDATA%\lra` on Windows.
    """
    return _from_here(ROOT / "results" if IS_CHECKOUT else user_data_path(APP, appauthor=False))


def _from_here(folder: Path) -> str:
    """Return a folder below the current one by its relative path, which is shorter to read."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


# In a run folder, to continue from; see `lra.checkpoint`.
CHECKPOINT = "checkpoint.pt"
# Folder in a run folder, for the checkpoints and curves of pretraining.
PRETRAINING = "pretraining"
