"""A user's own code: its files are recorded, and it cannot spoil other cells."""

import errno
import gc
import json
import logging
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_cell import TINY, configure

from lra import provenance
from lra.config import ConfigError
from lra.isolation import settings_restored
from lra.lock import DEAD_AFTER, Note, held, read_note
from lra.record import NOTE, RECORD, read_record
from lra.runner import CellFailedError, run_cell
from lra.signals import StoppedError

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["train.steps=6", "train.warmup_steps=2", "train.validate_every=3"]
SPOILERS = """
import threading
import time

import torch
from torch import nn


class Plain(nn.Module):
    pad_invariant = True

    def __init__(self, shape):
        super().__init__()
        self.project = nn.Linear(shape.dim, shape.dim)

    def forward(self, x, mask=None):
        self.spoil()
        return self.project(x)

    def spoil(self):
        pass


class Exits(Plain):
    def spoil(self):
        raise SystemExit(0)


class Raises(Plain):
    def spoil(self):
        raise KeyError("mine | broken")


class ExitsAtOnce(Plain):
    def __init__(self, shape):
        raise SystemExit(0)


class Sets(Plain):
    def spoil(self):
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(1)


class Lingers(Plain):
    def spoil(self):
        threading.Thread(target=time.sleep, args=(600,)).start()
"""


@pytest.fixture
def spoilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "lra_test_spoilers.py"
    file.write_text(SPOILERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return file


def run(folder: Path, name: str) -> None:
    (folder / name).mkdir(exist_ok=True)
    path = f"attention.path=lra_test_spoilers:{name}"
    run_cell(configure(folder, "attention=custom", path, *QUICK), folder / name)


@pytest.mark.parametrize(
    ("name", "reason"), [("Exits", "SystemExit: 0"), ("Raises", "KeyError: 'mine | broken'")]
)
def test_a_backend_that_raises_or_exits_fails_only_its_own_cell(
    spoilers: Path, tmp_path: Path, name: str, reason: str
) -> None:
    with pytest.raises(CellFailedError, match=f"failed: {reason[:10]}"):
        run(tmp_path, name)
    record = read_record(tmp_path / name / RECORD)
    assert (record.status, record.reason, record.test_accuracy) == ("failed", reason, None)
    note = read_note(tmp_path / name / NOTE)
    assert note is not None and note.ended == f"failed: {reason}" and not note.is_active


def test_a_backend_that_exits_when_it_is_built_is_named(spoilers: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ExitsAtOnce: its __init__ calls exit"):
        run(tmp_path, "ExitsAtOnce")


def test_settings_changed_by_one_cell_do_not_reach_the_next(spoilers: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    run(tmp_path, "Sets")
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_every_setting_is_restored(tmp_path: Path) -> None:
    def settings() -> list[object]:
        numpy = np.random.get_state()
        return [
            *(torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()),
            *(torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
            *(torch.is_grad_enabled(), torch.is_anomaly_enabled(), os.getcwd(), list(sys.path)),
            *(random.getstate(), numpy[1].tolist(), torch.get_rng_state().tolist()),
            *(float(np.float32(1e-39) * np.float32(2)), np.geterr(), dict(os.environ)),
            gc.isenabled(),
            *(sys.getrecursionlimit(), logging.root.manager.disable),
        ]

    before = settings()
    with settings_restored():
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("medium")
        torch.set_grad_enabled(False)
        torch.autograd.set_detect_anomaly(True)
        os.chdir(tmp_path)
        sys.path.append("x")
        torch.set_flush_denormal(True)
        np.seterr(all="raise")
        os.environ.pop("PATH")
        os.environ["LRA_TEST_LEFT"] = "x"
        gc.disable()
        sys.setrecursionlimit(5000)
        logging.disable(logging.ERROR)
        random.random(), np.random.rand(), torch.manual_seed(5)
        assert all(now != then for now, then in zip(settings(), before, strict=True))
    assert settings() == before


def test_a_signal_is_not_hidden_by_settings_that_need_no_restoring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise AttributeError("module 'sympy' has no attribute 'core'")

    # What happens after an interrupted import of torch's compiler.
    monkeypatch.setattr(torch, "use_deterministic_algorithms", interrupted)
    with pytest.raises(StoppedError), settings_restored():
        raise StoppedError("stopped")


@pytest.mark.slow
def test_a_thread_that_never_ends_does_not_keep_the_process_alive(
    spoilers: Path, tmp_path: Path
) -> None:
    folders = [f"cache_dir={tmp_path / 'cache'}", f"runs_dir={tmp_path / 'runs'}"]
    words = ["attention=custom", "attention.path=lra_test_spoilers:Lingers", *QUICK]
    done = subprocess.run(
        [sys.executable, "-m", "lra.train", *TINY, *words, *folders],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "is still running; ended without it" in done.stdout


def test_the_modules_that_a_backend_imports_are_hashed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lra_test_pkg"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "main.py").write_text(
        "import json\nfrom models.softmax import Softmax\nfrom . import near\n"
        "def late():\n    from lra_test_pkg.deep import far\n"
    )
    (package / "near.py").write_text("import lra_test_pkg.main\n")
    (package / "deep" / "__init__.py").write_text("X = 1\n")
    (package / "deep" / "far.py").write_text("")
    (package / "deep" / "other.py").write_text("unused = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    named = provenance.hashes("lra_test_pkg.main")
    files = [word for word in named.split() if word.endswith(".py")]
    assert files == ["lra_test_pkg/deep/__init__.py", "lra_test_pkg/near.py"]
    # The hash is of the code as loaded: a later edit does not affect what runs.
    (package / "near.py").write_text("edited = 1\n")
    assert provenance.hashes("lra_test_pkg.main") == named
    provenance._of_module.cache_clear()
    assert provenance.hashes("lra_test_pkg.main") != named


def test_the_holder_of_a_lock_is_reported(tmp_path: Path) -> None:
    lock, note = tmp_path / ".lock", tmp_path / NOTE
    with held(lock, note, "runs_dir", "trains this cell") as holder:
        holder.progress = lambda: (3, 60)
        holder._write()
        message = rf"another process trains this cell: process {os.getpid()} on .*at step 3 of 60"
        with pytest.raises(ConfigError, match=message), held(lock, note, "k", "trains this cell"):
            pass
    found = read_note(note)
    assert found is not None and not found.ended
    with pytest.raises(KeyError), held(lock, note, "runs_dir", "trains this cell"):
        raise KeyError("x")
    found = read_note(note)
    assert found is not None and found.ended == "KeyError: 'x'" and not found.is_active


def test_a_dead_process_is_not_active(tmp_path: Path) -> None:
    now, host = time.time(), socket.gethostname()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    mine = Note(host=host, pid=os.getpid(), since=now, updated=now)
    assert mine.is_active
    assert not Note(host=host, pid=child.pid, since=now, updated=now).is_active
    assert Note(host="another", pid=child.pid, since=now, updated=now).is_active
    assert not Note(host="another", pid=1, since=now, updated=now - DEAD_AFTER - 1).is_active


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "[" * 100_000, '{"host": 1}', '{"pid": "x", "host": "y"}', "\x00"),
        # No clock shows these times.
        '{"host": "h", "pid": 1, "since": 1e300, "updated": 1}',
        '{"host": "h", "pid": 1, "since": 1, "updated": NaN}',
        '{"host": "h", "pid": 1, "since": -1e300, "updated": 1}',
    ],
)
def test_a_damaged_note_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / NOTE).write_text(content)
    assert read_note(tmp_path / NOTE) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOLCK, "No locks available"),
        OSError(errno.ENOSYS, "Function not implemented"),
        NotImplementedError("no locks"),
    ],
)
# Containers on different machines often give the same number to their processes.
@pytest.mark.parametrize("number", ["another", "own"])
def test_the_note_serves_as_a_lock_if_the_file_system_has_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    number: str,
) -> None:
    pid = {"another": 1, "own": os.getpid()}[number]

    def no_locks(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("fcntl.flock", no_locks)
    lock, note = tmp_path / ".lock", tmp_path / NOTE
    with held(lock, note, "runs_dir", "trains this cell"):
        pass
    assert "no locks on this file system" in caplog.text
    now = time.time()
    other = {"host": "another", "pid": pid, "since": now, "updated": now}
    note.write_text(json.dumps(other))
    message = f"another process trains this cell: process {pid} on another"
    with (
        pytest.raises(ConfigError, match=message),
        held(lock, note, "runs_dir", "trains this cell"),
    ):
        pass
