"""The files that a user's own class is made of, hashed when it is loaded.

These are its module and what that imports, directly or indirectly, from its own package or folder.
The commit covers the suite; noting the versions of installed packages is left to the user.
"""

import ast
import functools
import hashlib
import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

# Number of digits of a hash that records show.
DIGITS = 16
# Packages of the suite, which its commit covers.
_SUITE = tuple(Path(__file__).resolve().parents[1] / name for name in ("lra", "models"))


def hashes(module_name: str) -> str:
    """Return the sha256 of a module's file, and the names and hashes of the files it imports.

    The hashes are those of the first call, when the module is loaded: a file that is edited while
    its code trains has another hash, which is not that of the code that trained.

    Args:
        module_name: A module, imported or not, such as `my_pkg.my_file`.
    """
    own, *others = of_module(importlib.import_module(module_name)).items()
    if not own[1]:
        return "without a file"
    named = [f"{name} {digest[:DIGITS]}" for name, digest in others]
    return f"sha256 {own[1][:DIGITS]}" + (f" with {', '.join(named)}" if named else "")


def code(module_name: str) -> str:
    """Return one sha256, 64 hex digits, of a module's file and the files it imports.

    If it imports none of its own, this is the hash of the file; it is empty if there is no file.

    Args:
        module_name: A module, imported or not, such as `my_pkg.my_file`.
    """
    own, *others = of_module(importlib.import_module(module_name)).items()
    return hashlib.sha256(json.dumps([own, *others]).encode()).hexdigest() if others else own[1]


def of_module(module: ModuleType) -> dict[str, str]:
    """Return the sha256 of a module's file, and of the files it imports, by name; its own is first.

    Args:
        module: The imported module; one that was typed in has an empty hash.
    """
    # A module that is loaded again has another specification, and perhaps another text.
    return _of_module(module, id(module.__spec__))


@functools.cache
def _of_module(module: ModuleType, _: int) -> dict[str, str]:
    module_name = module.__name__
    file = Path(getattr(module, "__file__", None) or "")
    if not file.is_file():
        return {module_name: ""}
    file = Path(inspect.getsourcefile(module) or file).resolve()
    # The folder in which the first part of the module's name is looked up.
    root = file.parents[module_name.count(".") + (file.name == "__init__.py")]
    within = root / module_name.split(".")[0] if "." in module_name else root
    others = sorted(_imported(file, root, within) - {file})
    return {module_name: _hash(file)} | {
        each.relative_to(root).as_posix(): _hash(each) for each in others
    }


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _imported(file: Path, root: Path, within: Path) -> set[Path]:
    """Return a file and the files below `within` that it imports, directly or indirectly."""
    found, left = {file}, [file]
    while left:
        for each in _imports(left.pop(), root):
            suite = any(each.is_relative_to(package) for package in _SUITE)
            # An empty __init__.py contributes nothing.
            if each not in found and each.is_relative_to(within) and not suite and _has_text(each):
                found.add(each)
                left.append(each)
    return found


def _has_text(file: Path) -> bool:
    return file.stat().st_size > 0


def _imports(file: Path, root: Path) -> Iterator[Path]:
    """Yield the files below `root` that the import statements of a file may read."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # compiled, or under a condition that never holds
        return
    package = list(file.parent.relative_to(root).parts)
    names: list[list[str]] = [[*package, file.stem]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            names += [base, *([*base, alias.name] for alias in node.names)]
    for name in names:
        # The __init__ of a package runs before any of its modules.
        for depth in range(1, len(name) + 1):
            place = root.joinpath(*name[:depth])
            for candidate in (place.with_suffix(".py"), place / "__init__.py"):
                if place.name and candidate.is_file():
                    yield candidate.resolve()
