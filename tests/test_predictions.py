"""Answers to every example of a split: their order, their storage, and accuracy by length."""

import io
import json
import logging
import random
import struct
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_report import OK
from tiny_cell import configure

from lra.batches import Batches
from lra.build import build_model, build_task
from lra.config import Config
from lra.evaluation import predict
from lra.predictions import (
    PREDICTIONS,
    Predictions,
    by_group,
    by_length,
    read_predictions,
    write_predictions,
)
from lra.record import RECORD, RecordError, read_record, write_record
from lra.runner import CellFailedError, run_cell
from lra.tasks import Split, cache
from lra.trajectory import (
    TRAJECTORY,
    TrajectoryError,
    read_trajectory,
    read_validations,
    write_trajectory,
)


def train(folder: Path, *overrides: str) -> Config:
    (folder / "run").mkdir(exist_ok=True)
    config = configure(folder, "train.steps=6", "train.warmup_steps=2", *overrides)
    run_cell(config, folder / "run")
    return config


def test_answers_come_in_the_order_of_the_split_whatever_the_batch_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, 37)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(0, 15, offsets[-1]).astype(np.uint8)
    split = Split(tokens, offsets, rng.integers(0, 10, 37))
    config = configure(tmp_path)
    torch.manual_seed(0)
    model = build_model(config).eval()

    def batches(which: Split) -> Batches:
        sizes = {"padded_length": 40, "truncate": 40, "id_shift": 1}
        return Batches(which, trim=True, device=torch.device("cpu"), **sizes)

    alone = []
    for k in range(37):
        part = tokens[offsets[k] : offsets[k + 1]]
        one = batches(Split(part, np.array([0, len(part)]), split.labels[k : k + 1])).gather(
            np.array([0])
        )
        with torch.no_grad():
            alone.append(int(model(one.tokens, one.mask).argmax()))
    for size in (1, 5, 64):
        settings = replace(config.train, eval_batch_size=size)
        answers = predict(model, batches(split), settings)
        assert answers.predicted.tolist() == alone
        assert (answers.labels == split.labels).all()
        expected = sum(a == b for a, b in zip(alone, split.labels, strict=True))
        assert expected == answers.num_correct


def test_a_run_keeps_its_test_predictions_and_its_record_counts_them(tmp_path: Path) -> None:
    config = train(tmp_path)
    record = read_record(tmp_path / "run" / RECORD)
    kept = read_predictions(tmp_path / "run", record.test_correct, record.test_total)
    assert kept is not None and kept.predicted.dtype == np.uint8
    data = cache.load("listops", build_task(config), Path(config.cache_dir), None)
    assert (kept.labels == data.splits["test"].labels).all() and record.test_total == 24
    bins = record.test_by_length
    assert sum(each["correct"] for each in bins) == record.test_correct
    assert sum(each["total"] for each in bins) == 24 and len(bins) > 4
    assert all(a["most"] < b["least"] for a, b in zip(bins, bins[1:], strict=False))


def test_a_cell_that_fails_when_trained_again_keeps_no_predictions(tmp_path: Path) -> None:
    train(tmp_path)
    assert (tmp_path / "run" / PREDICTIONS).exists()
    with pytest.raises(CellFailedError):
        train(tmp_path, "force=true", "train.learning_rate=1e30")
    assert not (tmp_path / "run" / PREDICTIONS).exists()


@pytest.mark.parametrize(("largest", "kind"), [(255, np.uint8), (256, np.uint16)])
def test_predictions_are_read_as_they_were_written_and_their_file_is_small(
    tmp_path: Path, largest: int, kind: type
) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, largest, 10_000)
    labels[0] = largest
    written = Predictions(rng.permutation(labels), labels)
    write_predictions(tmp_path, written)
    back = read_predictions(tmp_path, written.num_correct, 10_000)
    assert back is not None and back.predicted.dtype == kind
    assert (back.predicted == written.predicted).all() and (back.labels == labels).all()
    assert [file.name for file in tmp_path.iterdir()] == [PREDICTIONS]
    assert (tmp_path / PREDICTIONS).stat().st_size < 2.1 * 10_000 * np.dtype(kind).itemsize


def test_predictions_that_are_damaged_or_from_another_record_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_predictions(tmp_path, 1, 2) is None and not caplog.text
    write_predictions(tmp_path, Predictions(np.array([0, 1]), np.array([0, 0])))
    whole = (tmp_path / PREDICTIONS).read_bytes()
    with caplog.at_level(logging.WARNING):
        assert read_predictions(tmp_path, 2, 2) is None
        assert read_predictions(tmp_path, 1, 3) is None
        for damaged in (
            whole[: len(whole) // 2],
            b"",
            b"text",
            whole[:80] + bytes(20) + whole[100:],
        ):
            (tmp_path / PREDICTIONS).write_bytes(damaged)
            assert read_predictions(tmp_path, 1, 2) is None
        # The files are intact, but classes and groups must be whole numbers.
        answers, words = np.array([0, 1]), np.array(["a", "b"])
        for labels, groups in ((np.zeros(2), answers), (np.zeros(2, int), words)):
            arrays = {"predicted": answers, "labels": labels, "groups": groups}
            np.savez(tmp_path / PREDICTIONS, **arrays)
            assert read_predictions(tmp_path, 1, 2) is None
    assert caplog.text.count("left out:") == 8


def npz_of(header: str) -> bytes:
    """Return an archive of arrays with the same header and a little content each."""
    text = header.encode().ljust(117) + b"\n"
    content, array = io.BytesIO(), b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    with zipfile.ZipFile(content, "w") as archive:
        for name in ("predicted", "labels", "loss"):
            archive.writestr(f"{name}.npy", array + bytes(80))
    return content.getvalue()


def test_any_damage_to_an_archive_of_arrays_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    write_predictions(tmp_path, Predictions(np.arange(10), np.arange(10)))
    losses = np.linspace(2, 1, 10, dtype=np.float32)
    write_trajectory(tmp_path, losses, [(5, 0.5), (10, 0.6)])
    rng, refused = random.Random(0), 0
    for file in (tmp_path / PREDICTIONS, tmp_path / TRAJECTORY):
        whole = file.read_bytes()
        damaged = [bytearray(whole) for _ in range(400)]
        for each in damaged:
            each[rng.randrange(len(each))] ^= 1 << rng.randrange(8)
        # A compression and a version that nothing reads, a password, and various wrong headers.
        for at, value in ((8, 99), (4, 255), (6, 1)):
            damaged.append(bytearray(whole))
            place = whole.rindex(b"PK\x01\x02")
            damaged[-1][place + at + 2] = value
        shape = "{'descr': '<i8', 'fortran_order': False, 'shape': %s}"
        damaged += [npz_of(text) for text in (shape % "(10000000000000,)", "{", shape % "(-1,)")]
        for each in damaged:
            file.write_bytes(each)
            if file.name == PREDICTIONS:
                found = read_predictions(tmp_path, 10, 10)
                refused += found is None
                for array in (found.predicted, found.labels) if found else ():
                    assert array.tolist() == [*range(10)]
            else:
                with suppress(TrajectoryError):
                    assert read_trajectory(tmp_path, 10, "").tobytes() == losses.tobytes()
                with suppress(TrajectoryError):
                    assert read_validations(tmp_path).items() <= {5: 0.5, 10: 0.6}.items()
    # Every file that was refused is named in a warning.
    assert refused == sum(f"left out: {tmp_path / PREDICTIONS}" in each for each in caplog.messages)
    assert refused > 100


def test_length_bins_hold_equal_numbers_and_state_their_edges() -> None:
    lengths = np.random.default_rng(2).permutation(np.arange(100, 180))
    right = lengths < 120
    bins = by_length(lengths, right)
    assert [each["total"] for each in bins] == [10] * 8
    assert [each["correct"] for each in bins] == [10, 10, 0, 0, 0, 0, 0, 0]
    assert [(each["least"], each["most"]) for each in bins[:2]] == [(100, 109), (110, 119)]


def test_examples_of_equal_length_stay_together() -> None:
    lengths = np.array([3] * 50 + [4] * 30 + [1024] * 20)
    bins = by_length(lengths, lengths > 3)
    assert bins == [
        {"least": 3, "most": 3, "correct": 0, "total": 50},
        {"least": 4, "most": 4, "correct": 30, "total": 30},
        {"least": 1024, "most": 1024, "correct": 20, "total": 20},
    ]
    assert by_length(np.full(9, 1024), np.ones(9, dtype=bool)) == []


@given(st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1), st.randoms())
def test_bins_lose_no_example_and_the_order_changes_nothing(
    examples: list[tuple[int, bool]], random: object
) -> None:
    def binned(given: list[tuple[int, bool]]) -> list[dict[str, int]]:
        lengths, right = (np.array(column) for column in zip(*given, strict=True))
        return by_length(lengths, right)

    bins = binned(examples)
    random.shuffle(examples)
    assert binned(examples) == bins and len(bins) <= 8
    if bins:
        assert sum(each["total"] for each in bins) == len(examples)
        assert sum(each["correct"] for each in bins) == sum(right for _, right in examples)


def test_examples_can_be_grouped_by_any_property() -> None:
    right: NDArray[np.bool_] = np.array([True, False, True, True])
    groups = {value: part.tolist() for value, part in by_group(np.array([7, 2, 7, 2]), right)}
    assert groups == {2: [False, True], 7: [True, True]}
    with pytest.raises(ValueError, match=r"values of shape \(3,\): must be \(4,\)"):
        list(by_group(np.arange(3), right))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": 799}, r"sums to correct=799, should be test_correct=800"),
        ({"total": 1999}, r"sums to total=1999, should be test_total=2000"),
        ({"least": 9}, "is impossible"),
        ({"more": 1}, "should have correct, least, most, total"),
    ],
)
def test_a_record_with_impossible_bins_is_refused(
    tmp_path: Path, change: dict[str, int], message: str
) -> None:
    whole = {"least": 1, "most": 8, "correct": 800, "total": 2000}
    write_record(tmp_path, replace(OK, test_by_length=[whole]))
    assert read_record(tmp_path / RECORD).test_by_length == [whole]
    write_record(tmp_path, replace(OK, test_by_length=[whole | change]))
    with pytest.raises(RecordError, match=message):
        read_record(tmp_path / RECORD)


def test_a_record_older_than_accuracy_by_length_is_read(tmp_path: Path) -> None:
    write_record(tmp_path, OK)
    values = json.loads((tmp_path / RECORD).read_text())
    del values["test_by_length"]
    (tmp_path / RECORD).write_text(json.dumps(values))
    assert read_record(tmp_path / RECORD) == OK
