"""Text: the same content from every form in which IMDb is distributed; bad reviews are named."""

import hashlib
import logging
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lra.tasks import DataError, cache, text
from lra.tasks.text import Text

Reviews = dict[str, list[tuple[int, bytes]]]

SIZE = 46
# The fingerprint of the complete published data.
FINGERPRINT = "b7f54a8bcee0cd4f68ac5ca082cb63f8615d26ce9b220005146f79e99dd5dabc"


def test_equal_reviews_stay_on_one_side_even_where_the_share_would_divide_them() -> None:
    for percent in range(1, 51):
        texts = [b"%d" % (each // 2) for each in range(100)]
        chosen = Text(validation_percent=percent)._held_out(texts)
        # Pairs fill an even number of places; the last odd one has no review of its own.
        assert len(chosen) == percent - percent % 2
        assert {texts[each] for each in chosen}.isdisjoint(
            text for each, text in enumerate(texts) if each not in chosen
        )
        single = [*texts, b"single"]
        assert len(Text(validation_percent=percent)._held_out(single)) in (percent, percent - 1)


@pytest.fixture
def reviews(monkeypatch: pytest.MonkeyPatch) -> Reviews:
    """Return 46 reviews per part, positive ones first, two of them equal, of all kinds of bytes."""
    monkeypatch.setattr(text, "SIZES", {"train": SIZE, "test": SIZE})
    rng = random.Random(0)
    letters = "abc ä\t\n\u2603"
    parts: Reviews = {}
    for part in ("train", "test"):
        bodies = ["".join(rng.choices(letters, k=rng.randint(1, 90))) for _ in range(SIZE)]
        bodies[7] = bodies[5]
        parts[part] = [(int(i < 24), body.encode()) for i, body in enumerate(bodies)]
    return parts


def write_parquet(folder: Path, reviews: Reviews) -> Path:
    target = folder / "imdb" / "plain_text"
    target.mkdir(parents=True)
    for part, rows in reviews.items():
        # The hub has negative reviews first, in two files here.
        rows = sorted(rows, key=lambda row: row[0])
        for index, piece in enumerate((rows[:20], rows[20:])):
            table = pa.table(
                {"text": [body for _, body in piece], "label": [label for label, _ in piece]}
            )
            text_column = table.schema.get_field_index("text")
            # Bytes under the type of text, valid or not, as a damaged file would hold them.
            stored = pa.array(table["text"].to_pylist(), pa.binary()).view(pa.string())
            table = table.set_column(text_column, "text", stored)
            pq.write_table(table, target / f"{part}-0000{index}-of-00002.parquet")
    return folder


def write_texts(folder: Path, reviews: Reviews) -> Path:
    for part, rows in reviews.items():
        for index, (label, body) in enumerate(reversed(rows)):
            place = folder / "aclImdb" / part / ("neg", "pos")[label]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index}_{3 * label}.txt").write_bytes(body)
            (place / "urls_pos.html").write_text("not a review")
    return folder


def content(split: cache.Split) -> list[tuple[int, bytes]]:
    bounds = zip(split.labels, split.offsets[:-1], split.offsets[1:], strict=True)
    return [(int(label), split.tokens[a:b].tobytes()) for label, a, b in bounds]


def test_hub_files_and_publisher_files_give_the_same_fingerprint(
    tmp_path: Path, reviews: Reviews
) -> None:
    prints = set()
    for form, write in (("parquet", write_parquet), ("text", write_texts)):
        data = cache.load("text", Text(), tmp_path / "cache", write(tmp_path / form, reviews))
        assert f"{form} files" in data.source.description
        assert content(data.splits["test"]) == sorted(reviews["test"])
        prints.add(data.fingerprint)
    assert len(prints) == 1


def test_the_hub_gives_the_same_fingerprint_as_its_files(
    tmp_path: Path, reviews: Reviews, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked = []

    def load_dataset(name: str, *, revision: str, split: str) -> object:
        asked.append((name, revision, split))
        rows = [{"text": body.decode(), "label": label} for label, body in reviews[split]]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    fetched = cache.load("text", Text(), tmp_path / "cache")
    read = cache.load("text", Text(), tmp_path / "cache", write_parquet(tmp_path, reviews))
    assert fetched.folder != read.folder and fetched.fingerprint == read.fingerprint
    revision = "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"
    assert asked == [("stanfordnlp/imdb", revision, part) for part in ("train", "test")]


def test_a_seeded_tenth_of_each_class_validates(tmp_path: Path, reviews: Reviews) -> None:
    folder = write_texts(tmp_path, reviews)
    chosen = []
    for seed in (0, 1):
        splits = cache.load("text", Text(data_seed=seed), tmp_path / "cache", folder).splits
        train, validation = content(splits["train"]), content(splits["validation"])
        assert sorted(train + validation) == sorted(reviews["train"])
        # A tenth of 22 negative and of 24 positive reviews.
        assert np.bincount(splits["validation"].labels).tolist() == [2, 2]
        assert train == sorted(train) and validation == sorted(validation)
        chosen.append(validation)
    assert chosen[0] != chosen[1]
    half = cache.load("text", Text(validation_percent=50), tmp_path / "cache", folder)
    assert np.bincount(half.splits["validation"].labels).tolist() == [11, 12]


def test_bytes_that_are_not_text_are_kept_as_they_are(tmp_path: Path, reviews: Reviews) -> None:
    reviews["test"][0] = (1, b"\xff\xfe\x00 caf\xe9\r\n")
    for form, write in (("parquet", write_parquet), ("text", write_texts)):
        data = cache.load("text", Text(), tmp_path / "cache", write(tmp_path / form, reviews))
        assert reviews["test"][0] in content(data.splits["test"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((2, b"good"), r"test-00001-of-00002\.parquet, row 25: label 2, should be 0.*or 1"),
        ((1, b""), r"test-0000[01]-of-00002\.parquet, row \d+: the review is empty"),
    ],
)
def test_a_bad_review_is_named_or_left_out_and_counted(
    tmp_path: Path,
    reviews: Reviews,
    row: tuple[int, bytes],
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reviews["test"][3] = row
    folder = write_parquet(tmp_path, reviews)
    with pytest.raises(DataError, match=message):
        cache.load("text", Text(), tmp_path / "cache", folder)
    with caplog.at_level(logging.WARNING):
        data = cache.load("text", Text(on_bad_row="skip"), tmp_path / "cache", folder)
    assert len(data.splits["test"]) == SIZE - 1
    assert data.num_skipped == {"train": 0, "validation": 0, "test": 1}
    assert "left out of test" in caplog.text
    again = cache.load("text", Text(on_bad_row="skip"), tmp_path / "cache", folder)
    assert again.num_skipped == data.num_skipped


def test_an_empty_file_of_the_publisher_is_named(tmp_path: Path, reviews: Reviews) -> None:
    reviews["train"][30] = (0, b"")
    with pytest.raises(DataError, match=r"train/neg/15_0\.txt: the review is empty.*on_bad_row"):
        cache.load("text", Text(), tmp_path / "cache", write_texts(tmp_path, reviews))


def test_a_missing_review_is_reported_and_leaves_no_data_behind(
    tmp_path: Path, reviews: Reviews
) -> None:
    del reviews["test"][3]
    task = Text(on_bad_row="skip")
    with pytest.raises(DataError, match="aclImdb: 45 test reviews, IMDb has 46"):
        cache.load("text", task, tmp_path / "cache", write_texts(tmp_path, reviews))
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


@pytest.mark.parametrize("percent", [0, 51])
def test_an_option_out_of_range_is_named(percent: int) -> None:
    with pytest.raises(ValueError, match=f"task.options.validation_percent={percent}: .*1 to 50"):
        Text(validation_percent=percent)


@pytest.mark.slow
def test_the_real_reviews_have_their_known_statistics(tmp_path: Path, raw_data_dir: Path) -> None:
    data = cache.load("text", Text(), tmp_path, raw_data_dir)
    assert data.fingerprint == FINGERPRINT
    sizes = {name: np.bincount(split.labels).tolist() for name, split in data.splits.items()}
    assert sizes == {"train": [11_250] * 2, "validation": [1_250] * 2, "test": [12_500] * 2}
    held = [data.splits[name] for name in ("train", "validation")]
    lengths = np.concatenate([split.lengths for split in held])
    test = data.splits["test"].lengths
    assert (lengths.sum(), test.sum()) == (33_132_823, 32_350_685)
    assert (np.median(lengths), np.median(test)) == (979, 963)
    assert (lengths.max(), test.max()) == (13_704, 12_988)
    assert ((lengths > 4_000).sum(), (test > 4_000).sum()) == (792, 718)
    # No review is in both splits.
    digests = [{hashlib.md5(body).digest() for _, body in content(split)} for split in held]
    assert not digests[0] & digests[1]
