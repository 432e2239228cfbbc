"""Retrieval: bytes of both texts as they are, bad lines named, memory for one line at a time."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lra.compose import load
from lra.runner import run_cell
from lra.tasks import DataError, Source, cache, retrieval
from lra.tasks.retrieval import FILES, FOLDERS, Retrieval

LINES = [
    b"1.0\tP01\tP02\tthe first caf\xe9\tthe second \xff\xfe",
    b"0.0\tP03\tP04\t" + b"a" * 60 + b'\t "quoted" ' + b"b" * 60,
]


def write(folder: Path, lines: list[bytes] = LINES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES.values():
        (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    return folder


def texts(split: cache.Split) -> list[bytes]:
    bounds = zip(split.offsets[:-1], split.offsets[1:], strict=True)
    return [split.tokens[a:b].tobytes() for a, b in bounds]


def test_both_texts_are_kept_byte_by_byte(tmp_path: Path) -> None:
    write(tmp_path / "aan")
    data = cache.load("retrieval", Retrieval(), tmp_path / "cache", tmp_path)
    for split in data.splits.values():
        assert split.labels.tolist() == [1, 0]
        first, second = (line.split(b"\t")[3:] for line in LINES)
        assert texts(split) == first + second


def test_texts_are_cut_to_the_number_of_bytes_to_keep(tmp_path: Path) -> None:
    write(tmp_path)
    data = cache.load("retrieval", Retrieval(keep_bytes=17), tmp_path / "cache", tmp_path)
    kept = [b"the first caf\xe9", b"the second \xff\xfe", b"a" * 17, b' "quoted" ' + b"b" * 7]
    assert texts(data.splits["test"]) == kept
    assert Retrieval().keep_bytes == 4_000


def test_carriage_returns_at_the_end_of_lines_are_not_text(tmp_path: Path) -> None:
    write(tmp_path, [line + b"\r" for line in LINES])
    data = cache.load("retrieval", Retrieval(), tmp_path / "cache", tmp_path)
    assert texts(data.splits["train"])[1] == b"the second \xff\xfe"


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_are_found_at_every_known_depth(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder)
    assert Retrieval().locate(tmp_path).files[0].parent == tmp_path / folder


def test_missing_files_are_named_with_their_source(tmp_path: Path) -> None:
    (write(tmp_path / "aan") / FILES["test"]).unlink()
    with pytest.raises(
        DataError, match=r"aan lacks new_aan_pairs\.test\.tsv; it has new_aan_pairs"
    ):
        Retrieval().locate(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"pairs\.test\.tsv.*aan, .*lra_release\.gz.*data_dir"):
        Retrieval().locate(tmp_path / "empty")
    with pytest.raises(DataError, match="LRA_DATA_DIR.* is not set"):
        Retrieval().locate(None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1.0\tP01\tP02\tonly one text", "4 columns, should be 5"),
        (b"1.0\tP01\tP02\ta\tb\tc", "6 columns, should be 5"),
        (b"", "1 columns, should be 5"),
        (b"2.0\tP01\tP02\ta\tb", r"label b'2\.0', should be 0\.0 or 1\.0"),
        (b"1.0\tP01\tP02\t\tb", "text 1 is empty"),
        (b"1.0\tP01\tP02\ta\t", "text 2 is empty"),
    ],
)
def test_a_bad_line_is_named_or_left_out_and_counted(
    tmp_path: Path, line: bytes, message: str
) -> None:
    write(tmp_path, [LINES[0], line, LINES[1]])
    with pytest.raises(DataError, match=rf"pairs\.train\.tsv, line 2: {message}.*on_bad_row=skip"):
        cache.load("retrieval", Retrieval(), tmp_path / "cache", tmp_path)
    data = cache.load("retrieval", Retrieval(on_bad_row="skip"), tmp_path / "cache", tmp_path)
    assert data.num_skipped == dict.fromkeys(FILES, 1)
    assert data.splits["train"].labels.tolist() == [1, 0]


def test_lines_left_out_are_counted_in_the_record(tmp_path: Path) -> None:
    write(tmp_path, [*LINES, b"bad"])
    config = load(
        "task=retrieval",
        "task.truncate=32",
        "model.max_length=32",
        "train={steps: 4, warmup_steps: 2, batch_size: 2, validate_every: 4}",
        "+task.options.on_bad_row=skip",
        "device=cpu",
        f"data_dir={tmp_path}",
        f"cache_dir={tmp_path}/cache",
    )
    record = run_cell(config, tmp_path)
    assert record is not None
    assert (record.data_skipped_rows, record.data_source, record.test_total) == (3, "other", 2)


def test_a_file_of_nothing_but_bad_lines_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [b"nothing"])
    with pytest.raises(DataError, match="no example for train"):
        cache.load("retrieval", Retrieval(on_bad_row="skip"), tmp_path / "cache", tmp_path)


def test_a_file_without_line_breaks_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "MAX_LINE", 200)
    write(tmp_path, [b"x" * 1_000])
    with pytest.raises(DataError, match=r"train\.tsv: has a line of over 200 bytes"):
        cache.load("retrieval", Retrieval(), tmp_path / "cache", tmp_path)


def test_pairs_other_than_the_published_ones_are_described_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    source = Retrieval().locate(tmp_path)
    assert (source.kind, "not Long Range Arena's own" in source.description) == ("other", True)
    monkeypatch.setattr(retrieval, "PUBLISHED_BYTES", 100)
    assert Retrieval().locate(tmp_path).kind == "published"
    with pytest.raises(DataError, match="holds 2 pairs, the published file has 147086"):
        cache.load("retrieval", Retrieval(), tmp_path / "cache", tmp_path)


class Nowhere:
    """Accept examples and keep none."""

    count = 0

    def add(self, label: int, *sequences: bytes | np.ndarray) -> None:
        self.count += len(sequences)

    def skip(self, reason: str) -> None:
        raise AssertionError(reason)


def test_reading_needs_the_memory_of_a_line_not_of_a_file(tmp_path: Path) -> None:
    text = b"lorem ipsum " * 4_000
    file = tmp_path / FILES["train"]
    with open(file, "wb") as out:
        for index in range(400):
            out.write(b"%d.0\tP1\tP2\t%s\t%s\n" % (index % 2, text, text))
    assert file.stat().st_size > 38_000_000
    split = Nowhere()
    source = Source("other", "synthetic", (file, file, file))
    tracemalloc.start()
    Retrieval().write(source, dict.fromkeys(FILES, split))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert split.count == 3 * 800
    # A line has 96 kB; its columns and the read-ahead come on top.
    assert peak < 1_000_000


@pytest.mark.parametrize("count", [0, 10_001])
def test_an_option_out_of_range_is_named(count: int) -> None:
    with pytest.raises(ValueError, match=f"task.options.keep_bytes={count}: must be 1 to 10,000"):
        Retrieval(keep_bytes=count)
