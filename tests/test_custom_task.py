"""A user's own task, given by path: what is refused and why, and every command that takes it."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lra.check
from lra import custom
from lra.build import build_model, build_task, num_parameters
from lra.cell import resolved_values
from lra.compose import load
from lra.config import ConfigError, comparable
from lra.contract import sentence
from lra.plan.cells import assess
from lra.preflight import find_data
from lra.record import read_records
from lra.report.pages import write_report
from lra.runner import run_cell
from lra.task_contract import TASK_CHECKS
from lra.tasks import DataError, cache
from models import ATTENTION

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["scale=mini", "threads=1", "device=cpu", "train.steps=8", "train.warmup_steps=2"]
CPU = torch.device("cpu")
OWN = ["task=custom", "task.path=same_ends:SameEnds"]


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the example in CONTRIBUTING into a user's folder, and return the file."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    [code] = [c for c in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "SameEnds" in c]
    file = tmp_path / "same_ends.py"
    file.write_text(code)
    forget()
    # If it finds bytecode, Python overlooks an edit within the same second that keeps the size.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    return file


def forget() -> None:
    for name in ("same_ends", "same_ends_drawing", "broken_task"):
        sys.modules.pop(name, None)


def check(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    with pytest.raises(SystemExit) as stopped:
        lra.check.main(list(words))
    return int(stopped.value.code or 0), capsys.readouterr().out.splitlines()


def test_the_example_in_contributing_passes_every_check(
    guide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = check(capsys, "same_ends:SameEnds", "num_train=100")
    assert status == 0, lines
    assert lines[:-1] == [f"pass  {sentence(each)}" for each in TASK_CHECKS]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def sizes(self)", "def sizes(self, more)", "same_ends:SameEnds: TypeError: "),
        ("num_train: int", "num_train: Number", "options: the types of its names cannot be read"),
    ],
)
def test_what_a_task_raises_while_it_is_made_is_reported_in_one_line(
    guide: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    text = guide.read_text()
    assert text.count(old) == 1
    guide.write_text("from __future__ import annotations\n" + text.replace(old, new))
    with pytest.raises(SystemExit) as stopped:
        lra.check.main(["same_ends:SameEnds"])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "task", [["task=same_ends:SameEnds"], pytest.param(OWN, marks=pytest.mark.slow)]
)
def test_the_status_command_reports_the_state_of_its_cell(guide: Path, task: list[str]) -> None:
    words = ["status", "scale=mini", *task, "attention=softmax", "seed=0"]
    done = subprocess.run(
        [sys.executable, "-m", "lra", *words, f"runs_dir={guide.parent / 'runs'}"],
        cwd=guide.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "to do" in done.stdout and "same_ends.SameEnds" in done.stdout


def test_a_protocol_without_a_recipe_for_it_names_those_with_one() -> None:
    with pytest.raises(ConfigError, match="no recipe for task=same_ends:SameEnds") as refused:
        load("task=same_ends:SameEnds", "protocol=s4", "scale=mini")
    assert "use protocol=nystromformer" in str(refused.value)


def test_it_trains_at_the_mini_scale_and_appears_in_the_report(guide: Path, tmp_path: Path) -> None:
    words = [*QUICK, *OWN, "task.options.num_train=99", f"cache_dir={tmp_path / 'cache'}"]
    words += ["train.validate_every=4", f"runs_dir={tmp_path / 'runs'}"]
    config = load(*words)
    folder = config.folder
    assert folder.parts[-4:-2] == ("same_ends.SameEnds", "softmax")
    folder.mkdir(parents=True)
    assert assess([*words, "attention=softmax", "seed=0"]).state == "to do"
    record = run_cell(config, folder)
    assert find_data(config, None).state == "in the cache"
    assert record is not None and record.status == "ok" and record.test_total == 200
    assert record.data_source == "generated"
    assert run_cell(config, folder) is None
    # An edited file is another task, though its name and options are unchanged.
    guide.write_text(guide.read_text().replace("Random(0)", "Random(1)"))
    forget()
    with pytest.raises(ConfigError, match=r"another configuration:\n  data\.code: "):
        run_cell(config, folder)
    page = write_report(tmp_path / "runs", tmp_path, "mini", "nystromformer", ["custom"])
    assert "| same_ends.SameEnds |" in page and "| custom" not in page
    assert len(list(read_records(tmp_path / "runs"))) == 1


def test_data_that_no_model_could_read_are_reported_before_training(
    guide: Path, tmp_path: Path
) -> None:
    text = guide.read_text()
    for old, new, message in (
        ("int(symbols[0] ==", "2 * int(symbols[0] ==", "label 2 in train, must be 0 to"),
        ("draw() * 4", "draw() * 9", "in train, must be 0 to num_symbols - 1 ="),
    ):
        assert old in text
        guide.write_text(text.replace(old, new))
        forget()
        config = load(*QUICK, *OWN, "task.options.num_train=99", f"cache_dir={tmp_path / 'cache'}")
        with pytest.raises(DataError, match=f"SameEnds: .*{message}"):
            run_cell(config, tmp_path)


GROUPS = """
    group: ClassVar[str] = "{name}"

    def groups(self, split):
        return {value}
"""


def test_its_groups_appear_in_record_and_report_with_a_backend_of_its_own(
    guide: Path, tmp_path: Path
) -> None:
    with guide.open("a") as file:
        file.write(GROUPS.format(name="length, in symbols", value="split.lengths // 10"))
        file.write("\n\nfrom models.softmax import Softmax\n\n\nclass Mine(Softmax):\n    pass\n")
    words = [*QUICK, *OWN, "attention=same_ends:Mine", "train.validate_every=4"]
    words += ["task.options.num_train=99", f"cache_dir={tmp_path / 'cache'}"]
    config = load(*words, f"runs_dir={tmp_path / 'runs'}")
    config.folder.mkdir(parents=True)
    record = run_cell(config, config.folder)
    assert record is not None and record.group == "length, in symbols"
    assert [each["least"] for each in record.test_by_group] == [0, 1, 2, 3, 4]
    page = write_report(tmp_path / "runs", tmp_path, "mini", "nystromformer", ["custom"])
    assert "## same_ends.SameEnds: accuracy by length, in symbols, in percent" in page
    assert (
        "| same_ends.Mine " in page
        and (tmp_path / "mini/nystromformer/accuracy_by_group.svg").exists()
    )


@pytest.mark.parametrize(
    "value",
    [
        "split.labels - 1",
        pytest.param("split.lengths[1:]", marks=pytest.mark.slow),
        pytest.param("split.labels / 2", marks=pytest.mark.slow),
    ],
)
def test_impossible_groups_break_the_contract(
    guide: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    with guide.open("a") as file:
        file.write(GROUPS.format(name="what", value=value))
    status, lines = check(capsys, "same_ends:SameEnds", "num_train=100")
    [line] = [line for line in lines if "Groups, if a task has them" in line]
    assert status == 1 and line.startswith("FAIL")


@pytest.mark.parametrize(
    ("attention", "scale"),
    # At the paper scale, `make test` runs one without settings of its own, and one with some.
    [
        pytest.param(
            *(name, scale),
            marks=[pytest.mark.slow] * (scale == "paper" and name not in ("softmax", "mra")),
        )
        for name in ATTENTION
        for scale in ("mini", "paper")
    ],
)
def test_the_recipe_follows_from_what_the_task_declares(
    guide: Path, attention: str, scale: str
) -> None:
    config = load(*OWN, f"attention={attention}", f"scale={scale}", "task.options.length=57")
    assert (config.task.num_classes, config.task.num_symbols, config.task.sequences) == (2, 5, 1)
    assert config.task.truncate == config.model.max_length == 57
    assert config.model.vocab_size == 5 and config.task.options == {"length": 57}
    assert num_parameters(build_model(config)) > 0


def test_pairs_of_sequences_get_the_model_for_pairs(guide: Path) -> None:
    text = guide.read_text().replace(
        "    num_classes:", "    sequences: ClassVar[int] = 2\n\n    num_classes:"
    )
    guide.write_text(text.replace("symbols)\n", "symbols, symbols)\n"))
    config = load(*OWN, "scale=mini")
    assert config.task.sequences == 2 and type(build_model(config)).__name__ == "PairClassifier"


def test_editing_the_file_rebuilds_its_data(guide: Path, tmp_path: Path) -> None:
    words = [*OWN, "scale=mini", "task.options.num_train=9"]
    before = cache.load("own", build_task(load(*words)), tmp_path)
    guide.write_text(guide.read_text().replace("draw() * 4", "draw() * 3"))
    forget()
    after = cache.load("own", build_task(load(*words)), tmp_path)
    assert before.folder != after.folder and before.fingerprint != after.fingerprint


def test_editing_a_module_that_it_imports_rebuilds_its_data(guide: Path, tmp_path: Path) -> None:
    words = [*OWN, "scale=mini", "task.options.num_train=9"]
    # A file that imports none is identified by its own hash, as before its modules counted.
    alone = cache.code_of(build_task(load(*words)))
    assert alone == hashlib.sha256(guide.read_bytes()).hexdigest()
    drawing = guide.with_name("same_ends_drawing.py")
    drawing.write_text("LETTERS = 4\n")
    text = guide.read_text().replace("draw() * 4", "draw() * LETTERS")
    guide.write_text(f"from same_ends_drawing import LETTERS\n{text}")
    forget()
    before = cache.load("own", build_task(load(*words)), tmp_path)
    decided_before = resolved_values(load(*words), build_task(load(*words)), CPU, tmp_path)
    drawing.write_text("LETTERS = 3\n")
    forget()
    after = cache.load("own", build_task(load(*words)), tmp_path)
    assert before.folder != after.folder and before.fingerprint != after.fingerprint
    decided_after = resolved_values(load(*words), build_task(load(*words)), CPU, tmp_path)
    # A finished cell on the old data does not count as one on the new.
    assert decided_before["data"] != decided_after["data"]


def test_the_hash_of_a_built_in_task_covers_no_path() -> None:
    assert "path" not in comparable(load("task=listops"))["task"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=custom"], r"task\.path: needs a value, module:Class, such as my_file:MyTask"),
        (["task=custom", "task.path=same_ends"], r"task\.path=same_ends: must be module:Class"),
        (
            ["task=custom", "task.path=no_file:X"],
            r"task\.path=no_file:X: there is no module no_file",
        ),
        (["task=custom", "task.path=same_ends:No"], r"has no class No; its dataclasses.*SameEnds"),
        (["task=custom", "task.path=same_ends:Random"], r"under @dataclass\(frozen=True, kw_only"),
        (["task=custom", "task.path=lra.record:Method"], r"under @dataclass\(frozen=True, kw_only"),
        (
            ["task=custom", "task.path=lra.tasks.text:Text"],
            r"Text lacks num_classes, num_symbols, ",
        ),
        ([*OWN, "task.options.size=3"], r"task\.options\.size: no such option.*length \(int\)"),
        ([*OWN, "task.options.length=x"], r"task\.options\.length='x': must be int"),
        (["task=listops", "task.path=same_ends:SameEnds"], "listops is built in and has no path"),
        (
            [*OWN, "task.name=mine"],
            r"task\.name=mine: for task\.path=.* it must be same_ends\.SameEnds",
        ),
    ],
)
def test_an_invalid_task_is_refused_by_key_and_value(
    guide: Path, words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_task(load("scale=mini", *words))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_classes: ClassVar[int] = 2", "num_classes: ClassVar[int] = 1", "at least 2"),
        ('{"train": self.num_train, ', "{", "must be a dict of train, validation, test"),
        ("length: int = 40", "length: int = 0", "SameEnds.length is 0, must be a whole number"),
    ],
)
def test_impossible_facts_are_refused(guide: Path, old: str, new: str, message: str) -> None:
    guide.write_text(guide.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=message):
        custom.task_fact("length", "same_ends:SameEnds", {})


@pytest.mark.parametrize(
    ("old", "new", "failing"),
    [
        ("range(count)", "range(count - 1)", "Every split has as many examples as"),
        ("self.length - 1)", "self.length + 9)", "A sequence has at least one symbol and at most"),
        ("int(symbols[0] ==", "2 * int(symbols[0] ==", "Labels are 0 to `num_classes` - 1"),
        ("draw() * 4", "draw() * 5", "A symbol plus `id_shift` is less than `num_symbols`"),
        (", symbols)\n", ", symbols, symbols)\n", "Every example has as many sequences"),
        (
            "draw = Random(0).random",
            "draw = Random(hash('same ends')).random",
            "The same options give the same bytes, even in another process",
        ),
        (
            "draw = Random(0).random",
            "import secrets; draw = lambda: secrets.randbelow(1000) / 1000",
            "The same options give the same bytes, even in another process",
        ),
        ("draw = Random(0).random", "draw = Random(0).no_such", "Its data are built: Attribute"),
    ],
)
def test_a_task_broken_in_one_way_fails_the_check_for_it(
    guide: Path, old: str, new: str, failing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = guide.read_text()
    assert old in text
    guide.write_text(text.replace(old, new))
    status, lines = check(capsys, "same_ends:SameEnds", "num_train=100")
    assert status == 1
    assert any(line.startswith(f"FAIL  {failing}") for line in lines), lines


def test_ids_that_collide_with_padding_are_reported(
    guide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guide.write_text(
        guide.read_text().replace("id_shift: ClassVar[int] = 1", "id_shift: ClassVar[int] = 0")
    )
    status, lines = check(capsys, "same_ends:SameEnds", "num_train=100")
    assert status == 0 and any(line.startswith("skip  No symbol gets id 0") for line in lines)
