"""Generated data at the paper scale are the same on every machine, down to their fingerprints."""

from pathlib import Path

import pytest

import lra.compose
from lra.build import build_task
from lra.tasks import cache

# A change here means that numbers made before do not compare with numbers made after.
FINGERPRINTS = {
    "listops": "565dacce2286e29cf9b9adff734c14e08464a16165ea916280df09e562ec998a",
    "pathfinder": "b5eef60d2da253039df8de9cfa1f49f9f2a2e57412140fbeb4e500c5289b7036",
}


@pytest.mark.slow
@pytest.mark.parametrize("task", FINGERPRINTS)
def test_generated_data_have_their_known_fingerprint(tmp_path: Path, task: str) -> None:
    config = lra.compose.load(f"task={task}")
    data = cache.load(task, build_task(config), tmp_path)
    assert data.source.kind == "generated"
    assert data.fingerprint == FINGERPRINTS[task]
