"""Put what lies outside the packages into a wheel: configurations, published figures, the commit.

Everything else about the distribution is in pyproject.toml. A build leaves nothing behind: what
setuptools would write into this folder goes into a temporary one.
"""

import runpy
import shutil
import sys
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
# By its path, since lra is not importable while it is built.
write_stamp = runpy.run_path(str(ROOT / "lra" / "stamp.py"))["write_stamp"]


class BuildWithFiles(build_py):
    """Copy the suite's files to where `lra.paths` looks for them in an installed package."""

    def run(self) -> None:
        """Build; an editable install reads the checkout's files."""
        super().run()
        if self.editable_mode:
            return
        files = Path(self.build_lib, "lra", "files")
        shutil.copytree(ROOT / "configs", files / "configs", dirs_exist_ok=True)
        (files / "results").mkdir(exist_ok=True)
        for name in ("published.csv", "known_data.csv"):
            shutil.copy(ROOT / "results" / name, files / "results")
        write_stamp(files, ROOT)


class TidySdist(sdist):
    """Say the commit, and remove the metadata it is made from, unless that was there before."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Make the folder that is packed."""
        super().make_release_tree(base_dir, files)
        write_stamp(Path(base_dir), ROOT)

    def run(self) -> None:
        """Make the source distribution."""
        folder = Path(self.get_finalized_command("egg_info").egg_info)
        existed = folder.exists()
        super().run()
        if not existed:
            shutil.rmtree(folder)


with tempfile.TemporaryDirectory() as scratch:
    options = {"build": {"build_base": scratch}}
    if "sdist" not in sys.argv:
        # A source distribution holds its metadata, which therefore must lie within this folder.
        options["egg_info"] = {"egg_base": scratch}
    setup(cmdclass={"build_py": BuildWithFiles, "sdist": TidySdist}, options=options)
