"""Raw data that are missing, misplaced, incomplete, changed, or stored differently by others."""

import io
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Picture
from PIL import PngImagePlugin

from lra.compose import load
from lra.tasks import DataError, Source, Task, cache, cifar10, hub, pathfinder, raw, text
from lra.tasks.image import Image
from lra.tasks.listops import FILES, ListOps
from lra.tasks.pathfinder import Pathfinder
from lra.tasks.picture import opened
from lra.tasks.retrieval import FILES as PAIRS
from lra.tasks.retrieval import Retrieval
from lra.tasks.stand_ins.text import TextStandIn
from lra.tasks.text import Text

TASKS: dict[str, Task] = {
    "listops": ListOps(),
    "text": Text(),
    "retrieval": Retrieval(),
    "image": Image(),
    "pathfinder": Pathfinder(),
}
HARD = "pathfinder32/curv_contour_length_14"


def listops_files(folder: Path) -> None:
    for name in FILES.values():
        (folder / name).write_text("Source\tTarget\n[MAX 1 2 ]\t2\n")


def pair_files(folder: Path) -> None:
    for name in PAIRS.values():
        (folder / name).write_text("1.0\ta\tb\tone\ttwo\n")


def reviews(folder: Path) -> None:
    for part in text.SIZES:
        for label, name in enumerate(text.CLASSES):
            (folder / part / name).mkdir(parents=True)
            for index in range(3):
                (folder / part / name / f"{index}_7.txt").write_text(f"{part} {label} {index}")


def binary_batches(folder: Path) -> None:
    for name in cifar10.PICKLE_MD5:
        (folder / f"{name}.bin").write_bytes(b"\0" * 3073)


def pictures(folder: Path) -> None:
    (folder / "imgs" / "0").mkdir(parents=True)
    (folder / "metadata").mkdir()
    lines = []
    for index in range(10):
        pixels = np.full((32, 32), index, np.uint8)
        Picture.fromarray(pixels).save(folder / "imgs" / "0" / f"{index}.png", compress_level=0)
        lines.append(f"imgs/0 {index}.png {index} {index % 2}")
    (folder / "metadata" / "0.npy").write_text("\n".join(lines) + "\n")


# Where the files of a task lie below a folder of raw data, and the function that writes them.
LAYOUTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "listops": ("listops-1000", listops_files),
    "retrieval": ("tsv_data", pair_files),
    "text": ("aclImdb", reviews),
    "image": ("cifar-10-batches-bin", binary_batches),
    "pathfinder": (HARD, pictures),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "SIZES", {"train": 6, "test": 6})
    monkeypatch.setattr(pathfinder, "NUM_IMAGES", 10)


def task_of(name: str) -> Task:
    few = {"pathfinder": Pathfinder(num_images=10), "text": Text(validation_percent=50)}
    return few.get(name, TASKS[name])


def lay_out(name: str, data_dir: Path) -> Path:
    folder, write = LAYOUTS[name]
    (data_dir / folder).mkdir(parents=True)
    write(data_dir / folder)
    return data_dir / folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_raw_data_path_that_is_not_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data_dir=.*nothing does not exist"):
        task_of(name).locate(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data_dir=.*file is not a folder"):
        task_of(name).locate(tmp_path / "file")


@pytest.mark.parametrize("task", [ListOps(num_train=9), TextStandIn()])
def test_a_missing_raw_data_folder_is_refused_even_for_tasks_that_read_none(
    tmp_path: Path, task: Task
) -> None:
    with pytest.raises(DataError, match=r"data_dir=.*nothing does not exist"):
        cache.load("own", task, tmp_path, tmp_path / "nothing")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_folder_of_a_task_is_found_from_above_and_from_within(
    name: str, tmp_path: Path
) -> None:
    folder = lay_out(name, tmp_path / "raw")
    found = [task_of(name).locate(place) for place in (tmp_path / "raw", folder, folder.parent)]
    assert len({source.files for source in found}) == 1 and found[0].files
    assert len({source.signature for source in found}) == 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_error_for_a_misplaced_folder_suggests_a_data_dir_that_works(
    name: str, tmp_path: Path
) -> None:
    lay_out(name, tmp_path / "raw" / "one" / "more")
    with pytest.raises(
        DataError, match=r"is not in a folder that is searched.* data_dir=(\S+) would"
    ) as e:
        task_of(name).locate(tmp_path / "raw")
    advised = str(e.value).split("data_dir=")[-1].split(" would")[0]
    assert task_of(name).locate(Path(advised)).files


@pytest.mark.parametrize("kind", ["a broken link", "a folder"])
def test_what_lies_in_the_right_place_but_is_no_file_is_not_called_misplaced(
    tmp_path: Path, kind: str
) -> None:
    folder = lay_out("listops", tmp_path)
    for file in [*folder.iterdir()]:
        file.unlink()
        file.mkdir() if kind == "a folder" else file.symlink_to("nowhere")
    with pytest.raises(DataError, match=f"is {kind}, without the data"):
        task_of("listops").locate(folder)


@pytest.mark.parametrize("name", ["text", "image"])
def test_the_folder_of_a_task_may_be_the_current_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lay_out(name, tmp_path))
    assert task_of(name).locate(Path(".")).files


@pytest.mark.parametrize(
    ("name", "missing", "words"),
    [
        ("listops", "basic_test.tsv", r"lacks basic_test\.tsv; it has basic_train\.tsv, basic_val"),
        ("retrieval", "new_aan_pairs.eval.tsv", r"tsv_data lacks new_aan_pairs\.eval\.tsv; it has"),
        ("text", "test/pos", r"aclImdb lacks the folder test/pos"),
        ("image", "data_batch_3.bin", r"lacks data_batch_3\.bin; it has data_batch_1\.bin"),
        ("pathfinder", "imgs", r"curv_contour_length_14 lacks imgs"),
        ("pathfinder", "metadata", r"curv_contour_length_14 lacks metadata/\*\.npy"),
    ],
)
def test_a_missing_file_of_the_raw_data_is_named(
    name: str, missing: str, words: str, tmp_path: Path
) -> None:
    path = lay_out(name, tmp_path) / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=words):
        task_of(name).locate(tmp_path)


@pytest.mark.parametrize("task", [Text(), Image()])
def test_a_missing_parquet_file_is_named(task: Task, tmp_path: Path) -> None:
    folder = tmp_path / ("imdb" if isinstance(task, Text) else "cifar10")
    folder.mkdir()
    (folder / "train-0.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"lacks test-\*\.parquet; it has train-"):
        task.locate(tmp_path)


def test_parquet_files_of_one_task_are_not_mistaken_for_those_of_another(tmp_path: Path) -> None:
    for part in ("train", "test"):
        pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / f"{part}-0.parquet")
    assert Text().locate(tmp_path).files and not Image().locate(tmp_path).files
    for part in ("train", "test"):
        pq.write_table(pa.table({"img": ["a"], "label": [0]}), tmp_path / f"{part}-0.parquet")
    assert Image().locate(tmp_path).files and not Text().locate(tmp_path).files
    for part in ("train", "test"):
        pq.write_table(pa.table({"img": ["a"], "fine_label": [0]}), tmp_path / f"{part}-0.parquet")
    with pytest.raises(DataError, match="has img, fine_label: that is CIFAR-100, not CIFAR-10"):
        Image().locate(tmp_path)


@pytest.mark.parametrize("name", ["listops", "pathfinder"])
def test_generating_data_although_a_folder_was_given_is_reported(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = task_of(name).locate(tmp_path)
    assert source.kind == "generated" and f"below {tmp_path}" in str(source)
    assert not task_of(name).locate(None).place
    task = ListOps(num_train=1, num_validation=1, num_test=1, min_length=3, max_length=9)
    with caplog.at_level(logging.WARNING):
        cache.load("listops", task, tmp_path / "cache", tmp_path)
    # No published files have these options, so there was nothing to find.
    assert not caplog.text


def test_a_source_can_be_required(tmp_path: Path) -> None:
    lay_out("listops", tmp_path)
    lay_out("pathfinder", tmp_path)
    for generated, published in (
        (ListOps(source="generated"), ListOps(source="published")),
        (
            Pathfinder(num_images=10, source="generated"),
            Pathfinder(num_images=10, source="published"),
        ),
    ):
        assert generated.locate(tmp_path).kind == "generated"
        assert published.locate(tmp_path).kind == "published"
        with pytest.raises(DataError, match=r"source=published: data_dir.* is not set"):
            published.locate(None)
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match="source=published: no .* is in .* below"):
            published.locate(tmp_path / "empty")
    for other in (ListOps(num_train=9, source="published"), Pathfinder(source="published")):
        with pytest.raises(DataError, match="source=published: .*published"):
            other.locate(tmp_path)


# The keys from before there was a choice of source.
KEYS = {"listops": "92f8fee76b1f", "pathfinder": "bdb55fad7612"}


@pytest.mark.parametrize("name", KEYS)
def test_generated_data_keep_their_previous_cache_folder(name: str) -> None:
    assert cache.key(TASKS[name], TASKS[name].locate(None)) == KEYS[name]


def test_home_and_environment_variables_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("PROJECT", "/project")
    monkeypatch.delenv("LRA_DATA_DIR", raising=False)
    config = load("data_dir='~/raw'", "cache_dir=${oc.env:PROJECT}/cache")
    assert config.raw_data_dir() == Path("/home/someone/raw")
    assert config.cache_dir == "/project/cache"
    assert load("cache_dir='$PROJECT/cache'").cache_dir == "/project/cache"
    monkeypatch.setenv("LRA_DATA_DIR", "$PROJECT/raw")
    assert load().raw_data_dir() == Path("/project/raw")


def edit(path: Path, content: bytes) -> None:
    """Overwrite a file with as many bytes as it had, dated a second later."""
    assert len(content) == path.stat().st_size and content != path.read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 10**9))


def swap(one: Path, other: Path) -> None:
    for path, content in ((one, other.read_bytes()), (other, one.read_bytes())):
        edit(path, content)


CHANGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a label": (
        "pathfinder",
        lambda f: edit(
            f / "metadata/0.npy", (f / "metadata/0.npy").read_bytes().replace(b" 0 0", b" 0 1")
        ),
    ),
    "two pictures": ("pathfinder", lambda f: swap(f / "imgs/0/1.png", f / "imgs/0/2.png")),
    "a picture removed": ("pathfinder", lambda f: (f / "imgs/0/1.png").unlink()),
    "a picture added": ("pathfinder", lambda f: (f / "imgs/0/x.png").write_bytes(b"")),
    "a review": ("text", lambda f: edit(f / "test/pos/0_7.txt", b"test 1 9")),
    "a review moved": (
        "text",
        lambda f: (f / "test/pos/0_7.txt").rename(f / "test/neg/5_7.txt"),
    ),
    "an expression": (
        "listops",
        lambda f: edit(f / "basic_test.tsv", b"Source\tTarget\n[MAX 1 3 ]\t3\n"),
    ),
    "a pair": ("retrieval", lambda f: edit(f / PAIRS["test"], b"0.0\ta\tb\tone\ttwo\n")),
    "a batch": ("image", lambda f: edit(f / "test_batch.bin", b"\1" * 3073)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_to_the_data_changes_their_cache_key(change: str, tmp_path: Path) -> None:
    name, act = CHANGES[change]
    folder = lay_out(name, tmp_path)
    task = task_of(name)
    before = task.locate(tmp_path)
    assert task.locate(tmp_path).signature == before.signature
    act(folder)
    after = task.locate(tmp_path)
    assert after.files and cache.key(task, after) != cache.key(task, before)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_copy_of_the_data_in_another_folder_has_another_signature(
    name: str, tmp_path: Path
) -> None:
    lay_out(name, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copy2)
    sources = [task_of(name).locate(tmp_path / place) for place in ("one", "two")]
    assert sources[0].signature != sources[1].signature


JUNK = ("._0.npy", "._0.png", "._0_7.txt", ".DS_Store", "Thumbs.db", "desktop.ini")


@pytest.mark.parametrize("name", ["pathfinder", "text"])
def test_files_left_behind_by_file_managers_are_ignored(name: str, tmp_path: Path) -> None:
    folder = lay_out(name, tmp_path)
    task = task_of(name)
    before = task.locate(tmp_path)
    expected = cache.load(name, task, tmp_path / "cache", tmp_path)
    for place in [path for path in folder.rglob("*") if path.is_dir()]:
        for junk in JUNK:
            (place / junk).write_bytes(b"\0\5\x16\7")
    assert task.locate(tmp_path) == before
    actual = cache.load(name, task, tmp_path / "other", tmp_path)
    assert actual.fingerprint == expected.fingerprint


def test_junk_beside_parquet_files_is_not_read(tmp_path: Path) -> None:
    for part in ("train", "test"):
        pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / f"{part}-0.parquet")
    (tmp_path / "._train-0.parquet").write_bytes(b"x")
    assert len(Text().locate(tmp_path).files) == 2
    assert not hub.parquet_files(tmp_path, "._train")


@pytest.mark.parametrize("kind", ["U", "S"])
def test_metadata_may_be_the_numpy_files_that_their_names_suggest(
    kind: str, tmp_path: Path
) -> None:
    folder = lay_out("pathfinder", tmp_path)
    task = task_of("pathfinder")
    expected = cache.load("pathfinder", task, tmp_path / "cache", tmp_path)
    file = folder / "metadata" / "0.npy"
    rows = np.array([line.split() for line in file.read_text().splitlines()], kind)
    np.save(file, rows)
    actual = cache.load("pathfinder", task, tmp_path / "cache", tmp_path)
    assert actual.fingerprint == expected.fingerprint and actual.folder != expected.folder
    np.save(file, np.array([" ".join(row) for row in rows.astype("U")]))
    actual = cache.load("pathfinder", task, tmp_path / "cache", tmp_path)
    assert actual.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.array([1, 2, 3]), r"0\.npy: int64 of shape \(3,\), should be rows of text"),
        (np.array([["a", 1], ["b", 2]], object), r"0\.npy: not a readable NumPy file"),
        (b"\x93NUMPY", r"0\.npy: not a readable NumPy file"),
        (b"\x93NUMPY\1\0\5\0{'a'(", r"0\.npy: not a readable NumPy file"),
    ],
)
def test_numpy_metadata_that_are_not_rows_of_text_are_refused_by_name(
    content: Any, words: str, tmp_path: Path
) -> None:
    file = lay_out("pathfinder", tmp_path) / "metadata" / "0.npy"
    file.write_bytes(content) if isinstance(content, bytes) else np.save(file, content)
    with pytest.raises(DataError, match=words):
        cache.load("pathfinder", task_of("pathfinder"), tmp_path / "cache", tmp_path)


def test_trailing_blank_lines_are_not_rows_but_inner_ones_are(tmp_path: Path) -> None:
    lines = [b"a\r\n", b"\n", b"b\n", b"\r\n", b""]
    assert list(raw.numbered(lines)) == [(1, b"a"), (2, b""), (3, b"b")]
    folder = lay_out("pathfinder", tmp_path)
    expected = cache.load("pathfinder", task_of("pathfinder"), tmp_path / "cache", tmp_path)
    file = folder / "metadata" / "0.npy"
    file.write_text(file.read_text() + "\n\r\n")
    actual = cache.load("pathfinder", task_of("pathfinder"), tmp_path / "cache", tmp_path)
    assert actual.fingerprint == expected.fingerprint


def stored(values: list[Any], kind: pa.DataType) -> list[Any]:
    array = pa.array(values)
    array = array.dictionary_encode() if pa.types.is_dictionary(kind) else array.cast(kind)
    return hub._stored(array)


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
)
def test_text_is_read_as_bytes_however_it_is_stored(kind: pa.DataType) -> None:
    assert stored(["a", "ä", None, "a"], kind) == [b"a", "ä".encode(), None, b"a"]


def test_dictionary_encoded_labels_are_read() -> None:
    assert stored([0, 1, 1], pa.dictionary(pa.int32(), pa.int64())) == [0, 1, 1]


@pytest.mark.parametrize(
    ("label", "number"),
    [(3, 3), (3.0, 3), (3.5, None), (float("nan"), None), (float("inf"), None), (None, None)]
    + [("3", None), (b"3", None), (True, None)],
)
def test_a_label_is_a_whole_number_or_none(label: Any, number: int | None) -> None:
    assert hub.whole_number(label) == number


@pytest.mark.parametrize("label", [None, 0.5, float("nan"), "pos", 2, -1])
def test_a_review_without_a_valid_label_is_named_or_left_out(label: Any, tmp_path: Path) -> None:
    for part in text.SIZES:
        kind = pa.string() if isinstance(label, str) else pa.float64()
        labels = pa.array(["0", "1"] * 3 if kind == pa.string() else [0, 1] * 3, kind).to_pylist()
        labels[2] = label
        rows = pa.table({"text": list("abcdef"), "label": pa.array(labels, kind)})
        pq.write_table(rows, tmp_path / f"{part}-0.parquet")
    with pytest.raises(DataError, match=r"train-0\.parquet, row [02]: label .*should be 0"):
        cache.load("text", Text(), tmp_path / "cache", tmp_path)
    if not isinstance(label, str):
        half = Text(on_bad_row="skip", validation_percent=50)
        data = cache.load("text", half, tmp_path / "cache", tmp_path)
        assert data.num_skipped == {"train": 1, "validation": 0, "test": 1}


def png(size: tuple[int, int] = (32, 32), mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Picture.new(mode, size).save(file, "PNG", **options)
    return file.getvalue()


def claiming(width: int, height: int) -> bytes:
    """Return a small picture whose header says that it is huge."""
    content = bytearray(png())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def with_long_text() -> bytes:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("bomb", "0" * (2**27), zip=True)
    return png(pnginfo=notes)


@pytest.mark.parametrize(
    ("image", "label", "words"),
    [
        ({"bytes": None, "path": "a.png"}, 3, "row 1: an image without bytes"),
        (None, 3, "row 1: an image without bytes"),
        ({"bytes": claiming(60_000, 60_000), "path": None}, 3, "row 1: not a readable image"),
        ({"bytes": claiming(10_000, 10_000), "path": None}, 3, "row 1: not a readable image"),
        ({"bytes": claiming(9_000, 9_000), "path": None}, 3, r"image of shape \(9000, 9000, 3\)"),
        ({"bytes": with_long_text(), "path": None}, 3, "row 1: not a readable image"),
        ({"bytes": b"", "path": None}, 3, "row 1: not a readable image"),
        ({"bytes": png(), "path": None}, 3.5, r"row 1: label 3\.5, should be 0 to 9"),
        ({"bytes": png(), "path": None}, float("nan"), r"row 1: label nan, should be 0 to 9"),
        ({"bytes": png(), "path": None}, None, r"row 1: label None, should be 0 to 9"),
        ({"bytes": png(), "path": None}, 10.0**30, r"test image 1: label 99"),
    ],
)
def test_an_invalid_picture_or_label_is_named(
    image: Any, label: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cifar10.SIZES, "test", 2)
    rows = [{"img": {"bytes": png(), "path": None}, "label": 3.0}, {"img": image, "label": label}]
    for part in cifar10.SIZES:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{part}-0.parquet")
    with pytest.raises(DataError, match=words):
        cifar10.read(cifar10.locate(tmp_path), "test")


def test_pictures_may_be_in_a_column_with_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cifar10.SIZES, "test", 1)
    for part in cifar10.SIZES:
        pq.write_table(pa.table({"image": [png()], "label": [4]}), tmp_path / f"{part}-0.parquet")
    images, labels = cifar10.read(cifar10.locate(tmp_path), "test")
    assert images.shape == (1, 1024, 3) and labels.tolist() == [4]


def test_a_huge_picture_is_refused_before_its_pixels_are_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a readable image"), opened(claiming(60_000, 60_000)):
        pass
    file = tmp_path / "x.png"
    file.write_bytes(claiming(9_000, 9_000))
    with pytest.raises(ValueError, match=r"RGB of shape \(9000, 9000\), should be L of \(32, 32\)"):
        pathfinder.read_image(file, 32)
    Picture.fromarray(np.full((32, 32), 900, np.uint16)).save(file)
    with pytest.raises(ValueError, match=r"I;16 of shape \(32, 32\), should be L of \(32, 32\)"):
        pathfinder.read_image(file, 32)


def test_other_reviews_in_the_published_form_are_not_called_published(tmp_path: Path) -> None:
    lay_out("text", tmp_path)
    data = cache.load("text", task_of("text"), tmp_path / "cache", tmp_path)
    assert data.source.kind == "other" and "than published" in data.source.description
    with pytest.raises(DataError, match="source=published: IMDb text files of other reviews"):
        strict = Text(validation_percent=50, source="published")
        cache.load("text", strict, tmp_path / "cache", tmp_path)


@pytest.mark.slow
def test_the_real_reviews_are_called_published_unless_their_labels_differ(
    tmp_path: Path, raw_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "SIZES", {"train": 25_000, "test": 25_000})
    data = cache.load("text", Text(source="published"), tmp_path / "cache", raw_data_dir)
    assert data.source.kind == "published"
    for part in text.SIZES:
        [file] = (raw_data_dir / "imdb" / "plain_text").glob(f"{part}-*.parquet")
        table = pq.read_table(file)
        place = table.schema.get_field_index("label")
        (tmp_path / "raw").mkdir(exist_ok=True)
        table = table.set_column(place, "label", pa.array([1] * len(table)))
        pq.write_table(table, tmp_path / "raw" / file.name)
    data = cache.load("text", Text(), tmp_path / "cache", tmp_path / "raw")
    assert data.source.kind == "other"


@pytest.mark.slow
def test_pictures_that_went_through_jpeg_are_reported(raw_data_dir: Path) -> None:
    source = cifar10.locate(raw_data_dir)
    images, labels = cifar10.read(source, "test")
    assert (
        cifar10.verdict(source, "test", images, labels) == "of which 20 in test went through JPEG"
    )
    # Whoever has the exact pictures has what was published.
    images[int(cifar10.UNSEEN["test"].split()[0])] ^= 1
    assert not cifar10.verdict(source, "test", images, labels)
    images[0, 0, 0] ^= 1
    assert "than published" in cifar10.verdict(source, "test", images, labels)


def test_differences_from_the_published_data_are_reported_for_both_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    monkeypatch.setattr(cifar10, "read", lambda source, part: (pixels, np.array([0, 1])))
    monkeypatch.setattr(cifar10, "verdict", lambda source, part, *content: f"of which 3 in {part}")
    rows: list[object] = []
    writer = SimpleNamespace(add=lambda label, tokens: rows.append(label))
    source = Source("published", "files")
    written: Any = dict.fromkeys(cache.SPLITS, writer)
    found = Image().write(source, written)
    assert found is not None and found.kind == "other" and len(rows) == 4
    assert found.description == "files of which 3 in train and of which 3 in test"
