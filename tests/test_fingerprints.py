"""Generated data at the paper scale are the same on every machine, down to their fingerprints."""

from pathlib import Path

import numpy as np
import pytest

import lra.compose
from lra.build import build_task
from lra.report.submissions import known_data
from lra.tasks import cache

# A change here means that earlier numbers cannot be compared with later ones.
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
    check_known(data, "paper")


def check_known(data: cache.Dataset, scale: str) -> None:
    """Check that results on data may be submitted, and what is recorded of their test set."""
    [row] = [row for row in known_data() if row["fingerprint"] == data.fingerprint]
    labels = data.splits["test"].labels
    assert scale in row["scales"].split()
    assert (row["source"], row["test_total"]) == (data.source.kind, str(len(labels)))
    assert float(row["majority_rate"]) == pytest.approx(
        np.bincount(labels).max() / len(labels), 1e-5
    )


@pytest.mark.parametrize("scale", ["mini", pytest.param("small", marks=pytest.mark.slow)])
def test_generated_data_of_smaller_scales_are_known_data(tmp_path: Path, scale: str) -> None:
    config = lra.compose.load("task=listops", f"scale={scale}")
    check_known(cache.load("listops", build_task(config), tmp_path), scale)


def test_the_published_reviews_are_known_data(tmp_path: Path, raw_data_dir: Path) -> None:
    task = build_task(lra.compose.load("task=text"))
    check_known(cache.load("text", task, tmp_path, raw_data_dir), "paper")
