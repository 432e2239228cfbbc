"""Which code this is: what git says about a checkout, and what a package was built from.

A package has no repository, so `setup.py` puts a stamp with a hash of the files into it: changes
since then are detected as in a checkout. If nothing is known, nothing is claimed.
"""

import hashlib
import json
import subprocess
from pathlib import Path

STAMP = "built_from.json"
# What can change a number; records and documents cannot.
CODE = ("lra", "models", "configs", "scripts", "pyproject.toml", "setup.py", "requirements.lock")


def version(root: Path, packages: Path) -> tuple[str, bool]:
    """Return the commit of the code, empty if unknown, and whether the code differs from it.

    Args:
        root: Top of a checkout, or folder of a package's own files.
        packages: Folder that contains `lra` and `models`.
    """
    if not (root / STAMP).is_file():
        return _by_git(root)
    known = json.loads((root / STAMP).read_text(encoding="utf-8"))
    return known["commit"], known["dirty"] or known["sha256"] != _content(root, packages)


def version_text(commit: str, dirty: bool, digits: int = 40) -> str:
    """Return a version of the code in words.

    Args:
        commit: Git commit; empty if it is unknown.
        dirty: Whether the code differs from it.
        digits: Number of digits of the commit to show.
    """
    return (commit[:digits] or "unknown") + (" with local changes" if dirty else "")


def write_stamp(folder: Path, root: Path) -> None:
    """Write a stamp of the code in `root` into a folder; nothing if its commit is unknown."""
    commit, dirty = version(root, root)
    if commit:
        known = {"commit": commit, "dirty": dirty, "sha256": _content(root, root)}
        (folder / STAMP).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def _by_git(root: Path) -> tuple[str, bool]:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # The suite may be inside another project's repository, which says nothing about it.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return "", False
        # A copy that the surrounding repository does not track would be clean whatever is in it.
        if not git("ls-files", "--", "lra"):
            return "", False
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", *CODE))
    except (OSError, subprocess.CalledProcessError):
        return "", False


def _content(root: Path, packages: Path) -> str:
    """Return the sha256 of the code in a package."""
    digest = hashlib.sha256()
    parts = (
        (packages / "lra", "*.py"),
        (packages / "models", "*.py"),
        (root / "configs", "*.yaml"),
    )
    for folder, pattern in parts:
        for file in sorted(folder.rglob(pattern)):
            name = f"{folder.name}/{file.relative_to(folder).as_posix()}"
            digest.update(f"{name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()
