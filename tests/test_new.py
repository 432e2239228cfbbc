"""The skeleton of a backend keeps the contract, and no file is overwritten."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lra import completion, new

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_generated_backend_passes_its_own_test(tmp_path: Path) -> None:
    assert [file.name for file in new.write("mine:Mine", tmp_path)] == ["mine.py", "test_mine.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("mine")
    with pytest.raises(ValueError, match=r"test_mine.py already exists; nothing was written"):
        new.write("mine:Mine", tmp_path)
    assert not (tmp_path / "mine.py").exists()


@pytest.mark.parametrize("path", ["mine", "my-file:Mine", ":Mine", "../x:Y"])
def test_an_invalid_path_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="must be module:Class"):
        new.write(path, tmp_path)


def test_a_module_in_a_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="my_pkg.mine:Mine: the module must be a name without"):
        new.write("my_pkg.mine:Mine", tmp_path)


@pytest.mark.parametrize("module", ["random", "torch", "lra", "pytest", "__main__"])
def test_the_name_of_an_installed_module_is_refused(tmp_path: Path, module: str) -> None:
    with pytest.raises(ValueError, match=f"{module} is the name of an existing module"):
        new.write(f"{module}:Mine", tmp_path)
    assert not [*tmp_path.iterdir()]


def test_command_line_words_are_completed() -> None:
    assert completion.candidates("lra tr") == ["train "]
    assert completion.candidates("lra train task=li") == ["listops"]
    assert completion.candidates("lra train attention=softmax,lin") == [
        "softmax,linear",
        "softmax,linformer",
    ]
    assert "train.learning_rate=" in completion.candidates("lra plan train.le")
    assert completion.candidates("lra plan nothing.le") == []
