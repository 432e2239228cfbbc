"""`lra reproduce` with parts that only record their words, and what make passes to it."""

import subprocess
import sys
from pathlib import Path

import pytest

from lra import reproduce
from lra.plan import sweep

ROOT = Path(__file__).resolve().parents[1]
Calls = list[tuple[str, ...]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Record the words of every part; all succeed, and preflight finds only the data of text."""
    noted: Calls = []

    def part(name: str, *words: str, quiet: bool = False) -> tuple[int, str]:
        noted.append((name, *words))
        return 0, "text\n" if name == "preflight" else ""

    monkeypatch.setattr(reproduce, "part", part)
    return noted


def exit_status(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["reproduce", *words])
    with pytest.raises(SystemExit) as stopped:
        reproduce.main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("scale", ["paper", "small", "mini"])
def test_it_plans_before_it_trains_and_reports_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, calls: Calls, scale: str
) -> None:
    assert (
        exit_status(monkeypatch, f"scale={scale}", "task=text,image", "seed=0, 1", "threads=1") == 0
    )
    parts = ["plan", "train", "report"]
    assert [call[0] for call in calls] == ["preflight"] * (scale != "mini") + parts
    for call in calls[-3:]:
        assert "threads=1" in call and "seed=0, 1" in call
    trained = "task=text" if scale != "mini" else "task=text,image"
    assert trained in calls[-3] and trained in calls[-2] and "--multirun" in calls[-2]
    # What was left out is shown as missing.
    assert "task=text,image" in calls[-1]


def test_the_plan_alone_trains_nothing(monkeypatch: pytest.MonkeyPatch, calls: Calls) -> None:
    assert exit_status(monkeypatch, "scale=mini", "--plan") == 0
    assert [call[0] for call in calls] == ["plan"]
    assert set(reproduce.DEFAULTS) - {"scale=paper"} < set(calls[0])


@pytest.mark.parametrize(
    ("failing", "ran"),
    [
        ("preflight", ["preflight"]),
        ("plan", ["preflight", "plan"]),
        ("train", ["preflight", "plan", "train", "report"]),
        ("report", ["preflight", "plan", "train", "report"]),
    ],
)
def test_the_exit_status_is_that_of_the_part_that_failed(
    monkeypatch: pytest.MonkeyPatch, failing: str, ran: list[str]
) -> None:
    noted = []

    def part(name: str, *words: str, quiet: bool = False) -> tuple[int, str]:
        noted.append(name)
        return (3 if name == failing else 0), "text"

    monkeypatch.setattr(reproduce, "part", part)
    assert exit_status(monkeypatch) == 3 and noted == ran


def test_missing_data_do_not_prevent_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = []

    def part(name: str, *words: str, quiet: bool = False) -> tuple[int, str]:
        noted.append((name, *words))
        return int(name == "preflight"), ""

    monkeypatch.setattr(reproduce, "part", part)
    assert exit_status(monkeypatch, "task=text,image", "--plan", "--missing", "skip") == 0
    assert noted[0][-2:] == ("--missing", "skip")
    assert noted[1][0] == "plan" and "task=text,image" in noted[1]


def test_recall_is_a_sixth_task_if_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: Calls
) -> None:
    tasks = ["listops", "text", "retrieval", "image", "pathfinder", "recall"]
    words = [f"TASKS={','.join(tasks)}", "ATTENTIONS=softmax", "SCALE=mini"]
    words.append(f"ARGS=runs_dir={tmp_path}/runs cache_dir={tmp_path}/cache threads=1 device=cpu")
    _, call, _ = make(tmp_path, "reproduce-lra", *words)
    assert exit_status(monkeypatch, *call[3:]) == 0
    assert [name for name, *_ in calls] == ["plan", "train", "report"]
    assert all(f"task={','.join(tasks)}" in words for words in calls)
    # Nothing is measured, and nothing built.
    monkeypatch.setattr(sweep, "measured", lambda cell, known, budget: cell)
    cells = sweep.plan(calls[0][1:])
    assert [(cell.task, cell.state) for cell in cells] == [(task, "to do") for task in tasks]
    recall = cells[-1]
    assert recall.config is not None and recall.data is not None
    assert recall.folder == tmp_path / "runs/mini/nystromformer/recall/softmax/default/seed0"
    assert recall.config.task.truncate == recall.config.model.max_length == 256
    assert recall.config.model.pooling == "last" and recall.updates == 400
    assert recall.data.sizes == {"train": 20_000, "validation": 500, "test": 2_000}
    # Not by default.
    calls.clear()
    assert exit_status(monkeypatch, "scale=mini") == 0
    assert not any("recall" in word for call in calls for word in call)


def test_a_wrong_word_is_reported_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(monkeypatch, "lr=3") == 2 and not calls
    assert "use train.learning_rate" in capsys.readouterr().err


def make(folder: Path, *words: str) -> tuple[int, list[str], str]:
    """Return the status, the arguments that make passes to Python, and stderr."""
    (folder / "bin").mkdir(exist_ok=True)
    python = folder / "bin" / "python"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$(dirname "$0")/../calls"\nexit 3\n')
    python.chmod(0o755)
    (folder / ".installed").touch()
    (folder / "calls").unlink(missing_ok=True)
    command = ["make", *words, f"VENV={folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    there = (folder / "calls").exists()
    return (
        done.returncode,
        (folder / "calls").read_text().splitlines() if there else [],
        done.stderr,
    )


def test_make_passes_on_its_variables_whatever_characters_they_contain(tmp_path: Path) -> None:
    data_dir = "/raw data/it's (one), two=$three;`x`\"ü"
    words = [f"DATA_DIR={data_dir}", "SEEDS=0, 1", "TASKS=text", "PLAN=1", "MISSING=skip"]
    status, call, _ = make(tmp_path, "reproduce-lra", *words, "ARGS=model.layers=1 threads=1")
    assert status != 0  # that of the command
    assert call[:3] == ["-m", "lra", "reproduce"]
    assert {f"data_dir={data_dir}", "seed=0, 1", "task=text", "model.layers=1", "threads=1"} < {
        *call
    }
    assert "--plan" in call and call[call.index("--missing") + 1] == "skip"


@pytest.mark.parametrize("target", ["data", "preflight", "report", "bench"])
def test_every_target_of_make_is_a_command(tmp_path: Path, target: str) -> None:
    _, call, _ = make(tmp_path, target, "ARGS=threads=1")
    assert call[:3] == ["-m", "lra", target] and "threads=1" in call


def test_make_passes_a_commit_to_the_bench(tmp_path: Path) -> None:
    _, call, _ = make(tmp_path, "bench-check", "BASE=v1 x", "ARGS=length=1024 --rounds 3")
    assert call == ["-m", "lra", "bench", "against", "v1 x", "length=1024", "--rounds", "3"]


def test_an_unknown_make_variable_is_reported(tmp_path: Path) -> None:
    status, call, err = make(tmp_path, "reproduce-lra", "TASK=text")
    assert status != 0 and not call
    assert "TASK: no such variable; the variables are" in err and "TASKS" in err
