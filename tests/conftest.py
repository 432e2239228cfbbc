import os
import shutil
from pathlib import Path

import pytest
import torch

import lra.compose
import lra.show
from lra.paths import CONFIGS

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value or not Path(value).is_dir():
        pytest.skip(f"{variable} is not set to a folder")
    return Path(value)


@pytest.fixture
def raw_data_dir() -> Path:
    return _folder("LRA_DATA_DIR")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def copied_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the configurations, from which `load` and `lra.show` read in the test."""
    copy = tmp_path / "configs"
    shutil.copytree(CONFIGS, copy)
    monkeypatch.setattr(lra.compose, "CONFIGS", copy)
    monkeypatch.setattr(lra.show, "CONFIGS", copy)
    return copy
