import errno
import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from lra.tasks import DataError, Source, Writer, cache


@dataclass(frozen=True)
class Toy:
    """Three splits of tiny sequences; `fail_after` examples of train an error comes."""

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


def test_the_same_options_are_built_once_and_others_apart(tmp_path: Path) -> None:
    first = cache.load("toy", Toy(), tmp_path)
    stamp = (first.folder / "manifest.json").stat().st_mtime_ns
    assert (cache.load("toy", Toy(), tmp_path).folder / "manifest.json").stat().st_mtime_ns == stamp
    other = cache.load("toy", Toy(salt=1), tmp_path)
    assert other.folder != first.folder and other.fingerprint != first.fingerprint


def test_the_fingerprint_tells_where_one_sequence_ends(tmp_path: Path) -> None:
    split = cache.load("toy", Toy(), tmp_path).splits["test"]
    moved = type(split)(split.tokens, split.offsets + np.array([0, 1, 0]), split.labels)
    prints = [cache.fingerprint(dict.fromkeys(cache.SPLITS, each)) for each in (split, moved)]
    assert prints[0] != prints[1]


@pytest.mark.parametrize("damage", ["flip", "truncate", "no manifest"])
def test_a_damaged_data_set_is_built_again_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    built = cache.load("toy", Toy(), tmp_path)
    file = built.folder / ("manifest.json" if damage == "no manifest" else "train.tokens.bin")
    content = file.read_bytes()
    if damage == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncate":
        file.write_bytes(content[:-3])
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING):
        again = cache.load("toy", Toy(), tmp_path)
    assert again.fingerprint == built.fingerprint
    assert "is damaged" in caplog.text and "building it again" in caplog.text


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


def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    process = build_in_process(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    process.communicate()
    assert process.returncode == -9
    assert any(path.name.endswith(".partial") for path in tmp_path.iterdir())
    data = cache.load("toy", Toy(), tmp_path)
    assert len(data.splits["train"]) == 5
    assert not any(path.name.endswith(".partial") for path in tmp_path.iterdir())


def test_two_processes_that_build_the_same_end_with_one_good_copy(tmp_path: Path) -> None:
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
