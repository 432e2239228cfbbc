import errno
import io
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from tiny_cell import configure

from lra.loop import Run
from lra.runner import CellFailedError, run_cell
from lra.tasks import DataError, Source, Writer, cache, lock


@dataclass(frozen=True)
class Toy:
    """Three splits of tiny sequences; after `fail_after` examples of one, the disk is full."""

    version: ClassVar[int] = 1
    id_shift: ClassVar[int] = 0

    salt: int = 0
    fail_after: int = 99

    def locate(self, data_dir: Path | None) -> Source:
        return Source("generated", "toy")

    def write(self, source: Source, splits: Mapping[str, Writer]) -> None:
        for name, count in {"train": 5, "validation": 3, "test": 2}.items():
            for index in range(count):
                if index == self.fail_after:
                    raise OSError(errno.ENOSPC, "No space left on device")
                splits[name].add(index % 2, bytes([self.salt, index] * (index + 1)))


def test_a_data_set_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    data = cache.load("toy", Toy(salt=7), tmp_path)
    train = data.splits["train"]
    assert train.labels.tolist() == [0, 1, 0, 1, 0]
    assert train.lengths.tolist() == [2, 4, 6, 8, 10]
    assert train.tokens[train.offsets[1] : train.offsets[2]].tolist() == [7, 1, 7, 1]
    assert isinstance(train.tokens, np.memmap)


def test_the_same_options_are_built_once_and_different_ones_separately(tmp_path: Path) -> None:
    first = cache.load("toy", Toy(), tmp_path)
    stamp = (first.folder / "manifest.json").stat().st_mtime_ns
    assert (cache.load("toy", Toy(), tmp_path).folder / "manifest.json").stat().st_mtime_ns == stamp
    other = cache.load("toy", Toy(salt=1), tmp_path)
    assert other.folder != first.folder and other.fingerprint != first.fingerprint


def test_a_new_version_of_a_task_is_another_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Toy()
    before = cache.key(task, task.locate(None))
    monkeypatch.setattr(Toy, "version", Toy.version + 1)
    assert cache.key(task, task.locate(None)) != before


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((1, np.arange(3)), r"example 1: a sequence is int64 of shape \(3,\), must be bytes or"),
        ((1, np.zeros((2, 2), np.uint8)), r"uint8 of shape \(2, 2\), must be"),
        ((1, [1, 2]), "example 1: a sequence is list, must be bytes or uint8"),
        ((1, "ab"), "example 1: a sequence is str, must be"),
        ((0.9, b"ab"), "example 1: label 0.9, must be a whole number"),
        ((1,), "example 1: 0 sequences, must be 1 as in the first"),
        ((1, b"ab", b"c"), "example 1: 2 sequences, must be 1 as in the first"),
    ],
)
def test_an_example_that_is_not_what_it_should_be_is_named(
    tmp_path: Path, example: tuple[Any, ...], message: str
) -> None:
    with cache.SplitWriter(tmp_path, "train") as split:
        split.add(np.bool_(True), np.zeros(3, np.uint8))
        with pytest.raises(DataError, match=message):
            split.add(*example)


def test_the_fingerprint_depends_on_where_sequences_end(tmp_path: Path) -> None:
    split = cache.load("toy", Toy(), tmp_path).splits["test"]
    moved = type(split)(split.tokens, split.offsets + np.array([0, 1, 0]), split.labels)
    prints = [cache.fingerprint(dict.fromkeys(cache.SPLITS, each)) for each in (split, moved)]
    assert prints[0] != prints[1]


def array(values: object, kind: str = "<i8") -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values, kind))
    return file.getvalue()


def header(shape: str, kind: str = "<i8") -> bytes:
    """Return a NumPy file that declares any shape and type, and holds nothing."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def manifest(**values: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return damage


def without(key: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "manifest.json"
        content = json.loads(file.read_text())
        del content[key]
        file.write_text(json.dumps(content))

    return damage


def content(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def changed(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def folder_for_file(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def file_for_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


def empty_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def dangling_link(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


NAMES = [
    "manifest.json",
    *(f"train.{part}" for part in ("tokens.bin", "offsets.npy", "labels.npy")),
    "test.labels.npy",
]
DAMAGE: dict[str, Callable[[Path], None]] = {
    **{f"{name} is missing": lambda f, name=name: (f / name).unlink() for name in NAMES},
    **{f"{name} is empty": content(name, b"") for name in NAMES},
    **{f"{name} is a folder": folder_for_file(name) for name in NAMES},
    **{f"{name} is cut": changed(name, lambda data: data[: len(data) // 2]) for name in NAMES},
    **{f"{name} has one byte less": changed(name, lambda data: data[:-3]) for name in NAMES},
    **{f"{name} is noise": content(name, b"\xff\x00noise" * 9) for name in NAMES},
    **{
        f"{name} has a flipped bit": changed(name, lambda d: d[:-1] + bytes([d[-1] ^ 1]))
        for name in NAMES[1:]
    },
    **{
        f"{name} of type {kind}": content(name, array(values, kind))
        # The values are those of the data set: only the type is wrong.
        for name, values in (
            ("train.labels.npy", [0, 1, 0, 1, 0]),
            ("train.offsets.npy", [0, 2, 6, 12, 20, 30]),
        )
        for kind in ("<i4", "<u8", "<f8", ">i8", "?", "<U3", "<c16")
    },
    **{
        f"{name} {shape}": content(name, array(np.zeros(shape)))
        for name in ("train.labels.npy", "train.offsets.npy")
        for shape in ((), (0,), (1,), (4,), (6,), (5, 1), (1, 5), (10**3,))
    },
    **{
        f"{name} claims {shape}": content(name, header(shape))
        for name in ("train.labels.npy", "train.offsets.npy")
        for shape in ("(10**12,)", "(1000000000000,)", "(-1,)", "(5, 0)", "None", "(5,", "'5'")
    },
    "objects in labels": content("train.labels.npy", array([0, 1, 0, 1, 0], "O")),
    "objects claimed": content("train.labels.npy", header("(5,)", "|O")),
    "offsets fall": content("train.offsets.npy", array([0, 6, 2, 12, 20, 30])),
    "offsets start late": content("train.offsets.npy", array([1, 2, 6, 12, 20, 30])),
    "offsets end late": content("train.offsets.npy", array([0, 2, 6, 12, 20, 31])),
    "offsets below zero": content("train.offsets.npy", array([0, -2, 6, 12, 20, 30])),
    "more tokens": changed("train.tokens.bin", lambda data: data + b"x"),
    "swapped labels": content("train.labels.npy", array([1, 0, 0, 1, 0])),
    **{
        f"manifest holds {text!r}": content("manifest.json", text.encode())
        for text in ("[]", "{}", "null", "3", '"text"', "[[", "{'a': 1}", "NaN", "[" * 100_000)
    },
    **{f"manifest lacks {key}": without(key) for key in ("fingerprint", "seconds", "num_skipped")},
    **{f"fingerprint {v!r}": manifest(fingerprint=v) for v in (None, 3, [], "", "0" * 64)},
    **{f"seconds {v!r}": manifest(seconds=v) for v in (None, [], {}, "long")},
    **{
        f"num_skipped {v!r}": manifest(num_skipped=v)
        for v in (None, 3, [], {}, {"train": 0}, dict.fromkeys(cache.SPLITS, "none"))
    },
    "a file for the folder": file_for_folder,
    "a link to nowhere": dangling_link,
    "an empty folder": empty_folder,
}


def test_there_are_many_kinds_of_damage() -> None:
    assert len(DAMAGE) > 100


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_data_set_is_rebuilt_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    built = cache.load("toy", Toy(), tmp_path)
    labels = built.splits["train"].labels.tolist()
    del built
    [folder] = [path for path in tmp_path.iterdir() if path.is_dir()]
    DAMAGE[damage](folder)
    with caplog.at_level(logging.WARNING):
        again = cache.load("toy", Toy(), tmp_path)
    assert again.splits["train"].labels.tolist() == labels
    assert "is damaged" in caplog.text and "building it again" in caplog.text
    caplog.clear()
    assert cache.load("toy", Toy(), tmp_path).fingerprint == again.fingerprint
    assert not caplog.text
    assert {path.suffix for path in tmp_path.iterdir()} <= {"", ".lock"}
    assert cache.built("toy", Toy(), tmp_path, Source("generated", "toy")) is not None


def test_a_file_that_is_overwritten_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    data = cache.load("toy", Toy(), tmp_path)
    assert not cache.changed(data)
    file = data.folder / "train.tokens.bin"
    with open(file, "r+b") as stream:
        stream.write(b"\x07")
    assert cache.changed(data)
    file.unlink()
    assert cache.changed(data)


def test_a_run_whose_data_were_overwritten_has_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Run.fit

    def overwrite(run: Run) -> None:
        [file] = (tmp_path / "cache").glob("*/test.tokens.bin")
        with open(file, "r+b") as stream:
            stream.write(b"\x05")
        fit(run)

    monkeypatch.setattr(Run, "fit", overwrite)
    (tmp_path / "run").mkdir()
    with pytest.raises(CellFailedError, match="were overwritten while this run read them"):
        run_cell(configure(tmp_path, "attention=fourier"), tmp_path / "run")


def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cache_dir=.*the disk is full .* MiB free"):
        cache.load("toy", Toy(fail_after=2), tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


BUILD = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from test_cache import Toy
    from lra.tasks import cache

    write = Toy.write

    def slow(self, source, splits):
        write(self, source, splits)
        {action}

    Toy.write = slow
    print(cache.load("toy", Toy(), Path({folder!r})).fingerprint)
"""


def build_in_process(folder: Path, action: str) -> "subprocess.Popen[str]":
    code = BUILD.format(tests=str(Path(__file__).parent), folder=str(folder), action=action)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


def test_a_killed_build_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    process = build_in_process(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    process.communicate()
    assert process.returncode == -9
    assert any(path.name.endswith(".partial") for path in tmp_path.iterdir())
    data = cache.load("toy", Toy(), tmp_path)
    assert len(data.splits["train"]) == 5
    assert not any(path.name.endswith(".partial") for path in tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_that_build_the_same_data_end_up_with_one_good_copy(tmp_path: Path) -> None:
    wait = "__import__('time').sleep(0.5)"
    processes = [build_in_process(tmp_path, wait) for _ in range(2)]
    prints = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(prints) == 1
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(folders) == 1
    manifest = json.loads((folders[0] / "manifest.json").read_text())
    assert {manifest["fingerprint"] + "\n"} == prints


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    class Broken(Toy):
        def write(self, source: Source, splits: Mapping[str, Writer]) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with pytest.raises(PermissionError):
        cache.load("toy", Broken(), tmp_path)


@pytest.mark.slow
def test_a_waiting_process_names_the_one_it_waits_for_and_since_when(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "REMIND", 0.1)
    process = build_in_process(tmp_path, "__import__('time').sleep(1.5)")
    while not list(tmp_path.glob("*.holder")):
        time.sleep(0.01)
    with caplog.at_level(logging.WARNING):
        cache.load("toy", Toy(), tmp_path)
    process.communicate()
    waited = [line for line in caplog.messages if line.startswith("waiting for")]
    assert len(waited) > 1
    assert f"waiting for process {process.pid} on " in waited[0]
    assert "which builds toy-" in waited[0] and " since " in waited[0]
    assert not list(tmp_path.glob("*.holder"))


@pytest.mark.parametrize(
    ("holder", "words"),
    [
        ({"host": "elsewhere"}, "on elsewhere, which builds it .* no longer runs it, delete that"),
        ({"pid": 2**22 + 1}, "it is gone, so a process that it started holds the lock"),
        ({"since": "yesterday"}, "another process that holds"),
        ({"pid": None}, "another process that holds"),
    ],
)
def test_the_holder_of_a_lock_is_named_with_the_remedy(
    tmp_path: Path, holder: dict[str, object], words: str
) -> None:
    with lock.held(tmp_path / "x.lock", "builds it"):
        note = tmp_path / "x.lock.holder"
        note.write_text(json.dumps(json.loads(note.read_text()) | holder))
        assert re.search(words, lock.describe(tmp_path / "x.lock"))


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_serves_as_the_lock_if_the_file_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    # As left by a process that died.
    folder = cache.load("toy", Toy(), tmp_path).folder
    shutil.rmtree(folder)
    host = socket.gethostname()
    folder.with_name(f"{folder.name}.lock.soft").write_text(f"{2**22 + 1}\n{host}\n")
    assert len(cache.load("toy", Toy(), tmp_path).splits["train"]) == 5
    assert "has no locks" in caplog.text and not list(tmp_path.glob("*.soft"))


def test_a_build_without_progress_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "PATIENCE", 0.1)
    reported = threading.Event()

    class Stuck(Toy):
        def write(self, source: Source, splits: Mapping[str, Writer]) -> None:
            super().write(source, splits)
            for _ in range(100):
                if "no new example for" in caplog.text:
                    reported.set()
                    return
                time.sleep(0.05)

    with caplog.at_level(logging.WARNING):
        cache.load("toy", Stuck(), tmp_path)
    assert reported.is_set() and ", 10 so far; still building" in caplog.text


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EROFS, "cannot be written to"), (errno.EACCES, "cannot be written to")],
)
def test_a_cache_that_cannot_be_written_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(folder: Path, name: str) -> None:
        raise OSError(number, os.strerror(number), str(folder / name))

    monkeypatch.setattr(cache, "SplitWriter", refuse)
    with pytest.raises(DataError, match=f"cache_dir={tmp_path}: {words}.*another cache_dir"):
        cache.load("toy", Toy(), tmp_path)


def test_a_file_in_place_of_the_cache_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    for folder in (tmp_path / "cache", tmp_path / "cache" / "below"):
        with pytest.raises(DataError, match=r"cache_dir=.*cache is not a folder; move it away"):
            cache.load("toy", Toy(), folder)
    with pytest.raises(DataError, match=r"cache_dir=/proc/none: cannot be created or is gone"):
        cache.load("toy", Toy(), Path("/proc/none"))
    # A folder where the lock should be.
    name = cache.load("toy", Toy(), tmp_path / "good").folder.name
    (tmp_path / "bad" / f"{name}.lock").mkdir(parents=True)
    with pytest.raises(DataError, match=rf"{name}.lock is a folder, should be a file"):
        cache.load("toy", Toy(), tmp_path / "bad")


def test_a_complete_cache_is_read_even_if_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.load("toy", Toy(), tmp_path)

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(cache, "held", refuse)
    assert len(cache.load("toy", Toy(), tmp_path).splits["train"]) == 5
