"""Make sure that `models` is the suite's package of networks, whatever the current folder holds.

Many projects have a folder or a file of that name, and Python looks in the current folder first.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

NAME = "models"
FOLDER = Path(__file__).resolve().parents[1] / NAME


class OursFirst(MetaPathFinder):
    """Find the suite's `models` before any other; its submodules are then found in its folder."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of `models`, or None for any other name."""
        if name != NAME:
            return None
        folder = [str(FOLDER)]
        return spec_from_file_location(
            name, FOLDER / "__init__.py", submodule_search_locations=folder
        )


def claim() -> None:
    """Make `import models` find the suite's package from now on.

    Raises:
        ImportError: Another module of that name has already been imported.
    """
    there = sys.modules.get(NAME)
    folders = [Path(folder).resolve() for folder in getattr(there, "__path__", ())]
    if there is not None and FOLDER not in folders:
        place = getattr(there, "__file__", None) or ", ".join(map(str, folders)) or "elsewhere"
        raise ImportError(
            f"lra needs the name {NAME!r} for its networks, {FOLDER}, but {place} has already been"
            " imported under that name: import lra first, or rename the other module"
        )
    if not any(isinstance(finder, OursFirst) for finder in sys.meta_path):
        sys.meta_path.insert(0, OursFirst())


def hint(module: str) -> str:
    """Return why a module that a user names is not found, if the name `models` is the reason."""
    if module.split(".")[0] != NAME:
        return ""
    return f"; {NAME} is the suite's own package, {FOLDER}: rename yours"
