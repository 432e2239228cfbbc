"""The first updates of a record repeated: an honest one agrees, and tampering is reported."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_trajectory import stop_at
from tiny_cell import configure

import lra.verify
from lra.batches import Batches
from lra.config import ConfigError, config_hash
from lra.division import Division
from lra.loop import Run
from lra.predictions import PREDICTIONS
from lra.record import RECORD, read_record
from lra.runner import CellFailedError, run_cell
from lra.tasks import DataError
from lra.tasks.listops import ListOps
from lra.trajectory import TRAJECTORY, fingerprint, read_trajectory, write_trajectory
from lra.verify import Verdict, main, verify

# Micro-batches, and validations among the updates.
WORDS = ["train.micro_batch=3", "train.validate_every=25"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what a repository keeps of a run, and built data beside it."""
    top = tmp_path_factory.mktemp("verify")
    (top / "whole").mkdir()
    run_cell(configure(top, *WORDS), top / "whole")
    (top / "kept").mkdir()
    for name in (RECORD, TRAJECTORY, PREDICTIONS):
        shutil.copy(top / "whole" / name, top / "kept" / name)
    return top / "kept"


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may tamper with."""
    shutil.copytree(trained, tmp_path / "run")
    shutil.copytree(trained.parent / "cache", tmp_path / "cache")
    return tmp_path / "run"


def verified(folder: Path, updates: int = 200) -> Verdict:
    return verify(folder, updates, 0, None, str(folder.parent / "cache"))


def tamper(folder: Path, key: str, value: Any) -> None:
    """Change a value of the recorded configuration, along with its hash and any copy of it."""
    values = json.loads((folder / RECORD).read_text())
    *groups, last = key.split(".")
    place = values["config"]
    for group in groups:
        place = place[group]
    assert place[last] != value
    place[last] = value
    if key in values:
        values[key] = value
    values["config_hash"] = config_hash(values["config"])
    (folder / RECORD).write_text(json.dumps(values))


def rewrite(folder: Path, losses: NDArray[np.float32] | None = None, **values: Any) -> None:
    """Change losses, with their fingerprint, and keys of the record."""
    there = json.loads((folder / RECORD).read_text())
    if losses is not None:
        write_trajectory(folder, losses)
        values["loss_fingerprint"] = fingerprint(losses)
    assert values.keys() <= there.keys()
    (folder / RECORD).write_text(json.dumps(there | values))


def losses_of(folder: Path) -> NDArray[np.float32]:
    return read_trajectory(folder, 60, "").copy()


def test_an_honest_record_agrees_bit_for_bit_and_its_folder_is_not_touched(trained: Path) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in trained.iterdir()}
    verdict = verified(trained)
    assert verdict.agrees and verdict.to_the_bit and len(verdict.losses) == 60
    assert str(verdict) == (
        "listops/softmax seed0: the losses of the first 60 of 60 updates are bitwise equal"
    )
    assert before == {file.name: file.stat().st_mtime_ns for file in trained.iterdir()}


def test_a_few_updates_follow_the_schedule_of_the_whole_run(trained: Path) -> None:
    verdict = verified(trained, updates=7)
    assert verdict.to_the_bit and "first 7 of 60 updates" in str(verdict)


@pytest.mark.parametrize(
    ("key", "value", "latest"),
    [("train.learning_rate", 1.1, 3), ("seed", 1, 1), ("train.warmup_steps", 9, 3)],
)
def test_a_record_of_another_configuration_is_detected_even_if_rounding_differs(
    folder: Path, key: str, value: Any, latest: int
) -> None:
    if key == "train.learning_rate":
        value *= read_record(folder / RECORD).config["train"]["learning_rate"]
    tamper(folder, key, value)
    rewrite(folder, torch="1.0")
    verdict = verified(folder)
    assert not verdict.agrees and verdict.beyond is not None and verdict.beyond <= latest
    assert "DIFFERS at update" in str(verdict) and "torch 1.0 there" in str(verdict)


def test_another_order_of_the_data_is_detected(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Batches._permutation
    monkeypatch.setattr(Batches, "_permutation", lambda *given: drawn(*given)[::-1])
    assert verified(folder).beyond == 1


def test_a_careless_change_to_the_configuration_is_reported_before_any_training(
    folder: Path,
) -> None:
    values = json.loads((folder / RECORD).read_text())
    values["config"]["train"]["learning_rate"] *= 2
    (folder / RECORD).write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="its configuration was changed: it has the hash"):
        verified(folder)


def test_rounding_differences_agree_only_if_something_else_differs_too(folder: Path) -> None:
    losses = losses_of(folder)
    losses[40] = np.nextafter(losses[40], np.float32(9))
    rewrite(folder, losses)
    # A tree with local changes may be anything.
    rewrite(folder, dirty=False, commit="")
    import lra.verify

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lra.verify, "code_name", lambda: "unknown")
        verdict = verified(folder)
    assert not verdict.agrees and verdict.beyond is None and "NOT BITWISE EQUAL" in str(verdict)
    rewrite(folder, machine="abacus")
    verdict = verified(folder)
    assert verdict.agrees and not verdict.to_the_bit
    assert re.search(
        r"within rounding: at update 41, they are \d.*\n  not bitwise equal: .*abacus there",
        str(verdict),
    )
    losses[40] += 0.5
    rewrite(folder, losses)
    verdict = verified(folder)
    assert not verdict.agrees and verdict.beyond == 41


def test_rounding_may_grow_and_is_named_if_it_may_have_exploded() -> None:
    stored = np.full(200, 2.0, dtype=np.float32)
    few = ["torch 1.0 there, 2.0 here"]

    def verdict(update: int, distance: float, differences: list[str] = few) -> Verdict:
        losses = stored.copy()
        losses[update - 1] += distance
        values = {"cell": "a", "steps": 300, "dtype": "float32", "differences": differences}
        return Verdict(stored=stored, losses=losses, **values)

    assert verdict(3, 2e-6).agrees and not verdict(3, 1e-5).agrees
    assert verdict(100, 2e-3).agrees and not verdict(100, 5e-3).agrees
    assert not verdict(100, 2e-3, []).agrees and verdict(100, 0.0, []).agrees
    assert "rounding alone grew to that in 99 updates" in str(verdict(100, 0.5))
    assert "rounding alone" not in str(verdict(40, 0.5)) + str(verdict(100, 0.5, []))


def test_losses_that_an_earlier_version_did_not_keep_are_left_out(folder: Path) -> None:
    losses = losses_of(folder)
    losses[:20] = np.nan
    rewrite(folder, losses)
    verdict = verified(folder)
    assert verdict.to_the_bit and str(verdict).endswith(
        "of 60 updates, without 20 that an earlier version did not keep, are bitwise equal"
    )
    with pytest.raises(ConfigError, match="no loss of the first 20 updates is known"):
        verified(folder, updates=20)
    # Only at the beginning may they be missing.
    losses[30] = np.nan
    rewrite(folder, losses)
    assert verified(folder).beyond == 31


def test_a_run_that_failed_is_verified_up_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    config = configure(tmp_path, "train.learning_rate=1e30", "model.attention_dropout=0.0")
    with pytest.raises(CellFailedError):
        run_cell(config, tmp_path / "run")
    verdict = verified(tmp_path / "run")
    assert verdict.to_the_bit and not np.isfinite(verdict.losses).all()


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["lra verify", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_run_that_another_machine_began_is_compared_with_that_one(folder: Path) -> None:
    losses = losses_of(folder)
    losses[5] *= 1 + 1e-7
    rewrite(folder, losses, earlier_machines="abacus, torch 1.0; slide rule, torch 1.1")
    verdict = verified(folder)
    assert verdict.agrees and not verdict.to_the_bit
    assert "processor and torch abacus, torch 1.0 there" in str(verdict)


def test_exit_codes_distinguish_agreement_difference_and_what_cannot_be_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache-dir", folder.parent / "cache", "--updates", "5"]
    assert run_main(monkeypatch, folder / RECORD, *cache) == 0
    assert "bitwise equal" in capsys.readouterr().out
    losses = losses_of(folder)
    losses[3] += 0.5
    rewrite(folder, losses)
    assert run_main(monkeypatch, folder, *cache) == 1
    assert "DIFFERS at update 4 of 5" in capsys.readouterr().out
    assert run_main(monkeypatch, folder.parent / "nothing=here", *cache) == 2
    assert run_main(monkeypatch, folder, "--updates", "0") == 2
    assert "--updates 0: must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"data_fingerprint": "ab" * 32},
            "/run: the data differ from those of the run: .* abababab",
        ),
        ({"schema": 2}, "schema 2, should be 1"),
        ({"loss_fingerprint": "ab" * 32}, "not the losses that the run had"),
        ({"processes": 2}, "2 processes trained this cell, each with dropout of its own"),
        ({"attention_source": "mine.py"}, "softmax has changed since this run"),
        # A copy under another name, and a wider tolerance than that of the run's precision.
        ({"seed": 1}, "seed=1 contradicts its configuration, which has 0"),
        (
            {"attention": "mra"},
            "attention='mra' contradicts its configuration, which has 'softmax'",
        ),
        (
            {"dtype": "bfloat16"},
            "dtype='bfloat16' contradicts its configuration, which has 'float32'",
        ),
        ({"selected_on": "test"}, "selected_on='test' contradicts its configuration"),
        ({"threads": 7}, "threads=7 contradicts its configuration"),
        ({"device": "cuda"}, "device='cuda' contradicts its configuration"),
        ({"compiled": True}, "compiled=True contradicts its configuration"),
        ({"steps": 59}, "steps=59 contradicts its configuration, which has train.steps=60"),
        (
            {"status": "failed", "reason": "out of memory", "steps": 0, "best_step": None},
            r"/run: this run failed before its first update \(out of memory\)",
        ),
    ],
)
def test_a_run_that_cannot_be_compared_is_reported_and_the_next_one_is_verified(
    folder: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    values: dict[str, Any],
    message: str,
) -> None:
    (folder / RECORD).write_text(json.dumps(json.loads((folder / RECORD).read_text()) | values))
    code = run_main(monkeypatch, folder, trained, "--cache-dir", folder.parent / "cache")
    printed = capsys.readouterr()
    assert code == 2 and re.search(message, printed.err) and "bitwise equal" in printed.out


def test_a_missing_trajectory_and_missing_data_are_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: object) -> None:
        raise DataError("no data: get them")

    monkeypatch.setattr(ListOps, "locate", missing)
    assert run_main(monkeypatch, folder, "--cache-dir", folder.parent / "elsewhere") == 2
    assert "no data: get them" in capsys.readouterr().err
    assert run_main(monkeypatch, folder.parent) == 2
    assert "there is no result.json; only a run that has ended has one" in capsys.readouterr().err
    (folder / TRAJECTORY).unlink()
    assert run_main(monkeypatch, folder) == 2
    assert f"{TRAJECTORY}: no such file" in capsys.readouterr().err


def test_a_configuration_of_another_version_is_reported(folder: Path) -> None:
    values = read_record(folder / RECORD).config
    values["train"]["momentum"] = 0.9
    rewrite(folder, config=values, config_hash=config_hash(values))
    with pytest.raises(ConfigError, match="from another version of the suite: Key 'momentum'"):
        verified(folder)


def test_a_record_from_a_gpu_is_not_compared_without_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper(folder, "device", "cuda:99")
    assert run_main(monkeypatch, folder, "--cache-dir", folder.parent / "cache") == 2
    assert re.search(r"/run: device=cuda:99: torch sees \d GPUs", capsys.readouterr().err)


def test_a_run_with_dropout_is_not_compared_with_another_gpu_that_drops_otherwise(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper(folder, "device", "cuda")
    rewrite(folder, device="cuda", machine="NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(lra.verify, "machine", lambda device: "NVIDIA H100")
    assert run_main(monkeypatch, folder, "--cache-dir", folder.parent / "cache") == 2
    message = "what a GPU drops depends on its model; the run was made on NVIDIA A100, and this is"
    assert f"{message} NVIDIA H100" in capsys.readouterr().err


def test_a_run_that_does_not_fit_into_memory_here_is_not_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_losses(run: Run, updates: int) -> NDArray[np.float32]:
        run._divide(Division(examples=1))
        return np.zeros(updates, np.float32)

    monkeypatch.setattr(Run, "first_losses", first_losses)
    with pytest.raises(ConfigError, match="at once, which does not fit into memory here"):
        verified(folder)
    for key in ("dropout", "attention_dropout"):
        tamper(folder, f"model.{key}", 0.0)
    # Without dropout, smaller parts differ by rounding only.
    assert not verified(folder).agrees


def test_a_run_whose_division_changed_is_compared_up_to_the_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropout = "model.dropout=0.3"
    stop_at(33, monkeypatch, tmp_path, *WORDS, dropout)
    run_cell(configure(tmp_path, *WORDS, dropout, "train.micro_batch=0"), tmp_path / "run")
    record = read_record(tmp_path / "run" / RECORD)
    assert (record.micro_batch, record.first_micro_batch) == ("whole", "at most 3 examples")
    assert record.first_micro_batch_updates == 33
    verdict = verified(tmp_path / "run")
    assert verdict.to_the_bit and len(verdict.stored) == 33
    # The losses after it would not agree: dropout is drawn for each micro-batch.
    rewrite(tmp_path / "run", first_micro_batch="", first_micro_batch_updates=0)
    assert not verified(tmp_path / "run").agrees
