"""The plan of a grid, from tiny cells that really ran and from made-up costs."""

import functools
import itertools
import json
import runpy
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import lra.config
from lra import provenance
from lra.checkpoint import CHECKPOINT
from lra.compose import place
from lra.config import ConfigError
from lra.loop import Run
from lra.plan import cost, page, sweep
from lra.plan.cells import Data, PlannedCell, assess
from lra.plan.cost import Cost
from lra.plan.sweep import Measurements
from lra.record import RECORD, Method
from lra.runner import CellFailedError, run_cell
from lra.signals import StoppedError
from lra.tasks import DataError
from lra.tasks.listops import ListOps
from lra.words import Groups, complete, expand

ROOT = Path(__file__).resolve().parents[1]
COST = Cost(
    update_seconds=0.5,
    example_seconds=0.25,
    step_bytes=7e6,
    model_bytes=400,
    parameter_bytes=360,
    num_tensors=5,
    repeats=3,
    rows=2,
    width=90,
    batch_size=4,
    batch_width=90,
)


def tiny(folder: Path, *overrides: str, attention: str = "fourier") -> list[str]:
    """Return the overrides of a tiny cell with its folders below `folder`."""
    sizes = [
        "num_train=32",
        "num_validation=8",
        "num_test=12",
        "min_length=9",
        "max_length=40",
        "max_depth=4",
    ]
    return [
        *("task=listops", f"attention={attention}", "seed=0", "scale=mini", "threads=1"),
        *("protocol=nystromformer", "device=cpu", "task.truncate=40", "model.max_length=40"),
        *(f"task.options.{size}" for size in sizes),
        *("train.steps=30", "train.batch_size=4", "train.warmup_steps=6", "variant=default"),
        *("train.validate_every=8", f"cache_dir={folder}/cache", f"runs_dir={folder}/runs"),
        *overrides,
    ]


def run(words: list[str]) -> Path:
    """Train a cell where a sweep would; return its folder."""
    config, folder = place(*words)
    folder.mkdir(parents=True, exist_ok=True)
    run_cell(config, folder)
    return folder


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the next run stop once it has made this many updates."""
    updates = Run._updates

    def stopped(self: Run, until: int, *rest: object) -> float:
        if self.progress.step >= step:
            self._save()
            raise StoppedError("enough")
        return updates(self, min(until, step), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Run, "_updates", stopped)


@functools.cache
def composed(task: str) -> tuple[lra.config.Config, Path]:
    return place("scale=mini", f"task={task}", "device=cpu")


def made_up(
    task: str = "listops", attention: str = "softmax", seed: int = 0, hours: float = 1.0
) -> PlannedCell:
    """Return a cell that is still to be trained and takes this many hours."""
    config, folder = composed(task)
    cost = replace(COST, update_seconds=hours * 3600 / config.train.steps, example_seconds=0.0)
    sizes = {"train": 10, "validation": 3, "test": 4}
    data = Data(folder=Path(task), built=None, missing=False, sizes=sizes, bytes=10**6)
    cell = PlannedCell(
        task=task,
        method=Method(attention),
        seed=seed,
        config=config,
        folder=folder,
        data=data,
        cost=cost,
    )
    words = (f"task={task}", f"attention={attention}", f"seed={seed}")
    return replace(cell, values={"threads": 1}, words=words)


def test_slurm_is_not_asked_for_memory_that_updates_take_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = made_up()
    large = replace(cell, cost=replace(COST, step_bytes=32e9, model_bytes=10**9))
    large = replace(large, words=(*cell.words, "hydra/launcher=slurm"))
    for device, gigabytes in (("cpu", 46), ("cuda", 6)):
        monkeypatch.setattr(page, "resolve_device", lambda _, name=device: torch.device(name))
        [line, *_] = page.slurm_lines([large], 10**9)
        assert f"hydra.launcher.mem_gb={gigabytes} " in line


def test_a_sweep_is_expanded_as_hydra_expands_it() -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = ["task=listops,text", "attention=mra", "seed=range(0,3)", "+a.b='x, y'", "~c"]
    words += ["model.classifier_dims=[1,2],[3]", "attention@attention.inner=softmax"]
    parsed = OverridesParser.create().parse_overrides(words)
    theirs = BasicSweeper.split_arguments(parsed, None)[0]
    assert list(expand(words, Groups(()))) == [list(each) for each in theirs] and len(theirs) == 12


@pytest.mark.parametrize("word", ["task=glob(*)", "model.layers=interval(1,2)", "softmax"])
def test_a_word_that_is_not_a_list_of_choices_is_refused_by_name(word: str) -> None:
    with pytest.raises(ConfigError, match=word.split("=")[0].replace(".", r"\.")):
        list(expand(complete([word], Groups(())), Groups(())))


@pytest.mark.slow
def test_the_folder_of_a_cell_is_the_one_that_a_sweep_creates(tmp_path: Path) -> None:
    words = tiny(tmp_path, "train.steps=4", "train.warmup_steps=2", "variant='l${model.layers}'")
    command = [sys.executable, "-m", "lra.train", "-m", *words]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    cell = assess(words)
    assert (cell.folder / RECORD).exists() and cell.folder.parts[-2] == "l2"
    assert cell.state == "done" and cell.method == ("fourier", "l2")


def test_the_folder_of_a_cell_follows_from_its_configuration(tmp_path: Path) -> None:
    cell = assess(tiny(tmp_path, "variant='l${model.layers}'"))
    expected = tmp_path / "runs" / "mini" / "nystromformer" / "listops" / "fourier" / "l2" / "seed0"
    assert cell.folder == expected and cell.method == ("fourier", "l2")


def test_the_state_of_a_cell_is_read_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tiny(tmp_path)
    cell = assess(words)
    assert (cell.state, cell.updates, cell.validations) == ("to do", 30, 4)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_at(17, patch)
        run(words)
    cell = assess(words)
    assert (cell.state, cell.step, cell.updates, cell.validations) == ("continues", 17, 13, 2)
    assert cell.data is not None and cell.data.built is not None
    run(words)
    cell = assess(words)
    assert (cell.state, cell.updates, cell.validations, cell.seconds) == ("done", 0, 0, 0.0)
    assert assess([*words, "force=true"]).state == "to do"
    other = assess([*words, "train.steps=31"])
    assert other.state == "conflict" and "train.steps: 30 there, 31 here" in other.detail
    (cell.folder / RECORD).unlink()
    assert assess(words).step == 30 and assess(words).updates == 0
    assert "another configuration" in assess([*words, "train.steps=31"]).detail
    (cell.folder / CHECKPOINT).write_bytes(b"half")
    assert "not a readable checkpoint" in assess(words).detail


def test_a_cell_that_stopped_in_its_pretraining_counts_what_is_left_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("steps=20", "warmup_steps=2", "validate_every=10", "batch_size=2")
    words = tiny(tmp_path, "pretrain=spt", "variant=spt", *(f"pretrain.{each}" for each in small))
    cell = assess(words)
    assert (cell.state, cell.pretraining_updates, cell.updates) == ("to do", 20 * 2 / 4, 30)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_at(14, patch)
        run(words)
    cell = assess(words)
    assert (cell.state, cell.step, cell.pretraining_step) == ("continues", 0, 14)
    assert (cell.pretraining_updates, cell.updates) == (6 * 2 / 4, 30)
    run(words)
    assert assess(words).state == "done"


@pytest.mark.parametrize(
    ("words", "each"),
    [
        (["task=listops"], 2_000),
        (["task=image"], 1_024),
        (["task=text"], 1_310),
        (["task=text", "task.truncate=500"], 1_310),
        (["task=retrieval"], 2 * 4_000),
        (["task=retrieval", "task.truncate=500"], 2 * 4_000),
    ],
)
def test_data_count_by_what_is_stored_not_by_what_is_read(
    tmp_path: Path, words: list[str], each: int
) -> None:
    data = assess([*words, "attention=fourier", f"cache_dir={tmp_path}"]).data
    assert data is not None and data.bytes == sum(data.sizes.values()) * (each + 16)


def test_a_failed_cell_is_planned_again_with_the_reason_it_failed(tmp_path: Path) -> None:
    words = tiny(tmp_path, "train.learning_rate=1e30")
    with pytest.raises(CellFailedError):
        run(words)
    cell = assess(words)
    assert cell.state == "failed before" and cell.detail.startswith("loss ") and cell.updates == 30


def test_a_cell_whose_data_are_lost_counts_by_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locate(task: ListOps, data_dir: Path | None) -> None:
        raise DataError("gone")

    words = tiny(tmp_path)
    run(words)
    monkeypatch.setattr(ListOps, "locate", locate)
    assert assess(words).state == "done"
    cell = assess([*words, "variant=other"])
    assert cell.state == "to do" and cell.data is not None and cell.data.missing


def test_an_impossible_cell_is_marked_and_named() -> None:
    words = ["task=pathx", "attention=softmax", "seed=3", "protocol=wavspa"]
    cell = assess(words)
    assert (cell.state, cell.seed) == ("refused", 3)
    assert cell.detail.startswith("protocol=wavspa has no recipe for task=pathx, only for image")
    assert assess(["task=listops", "attention=mra", "seed=0", "train.nothing=1"]).state == "refused"
    wrong = assess(["task=listops", "attention=mra", "seed=0", "task.options.nothing=1"])
    assert wrong.state == "no model" and "task.options.nothing" in wrong.detail


@pytest.mark.parametrize("every", [1, 7, 10, 29, 30, 31, 100])
def test_the_remaining_validations_are_those_that_the_loop_would_run(every: int) -> None:
    cell = made_up()
    assert cell.config is not None
    for step, steps in itertools.product(range(31), (29, 30)):
        train = replace(cell.config.train, steps=steps, validate_every=every, warmup_steps=2)
        here = replace(cell, config=replace(cell.config, train=train), step=min(step, steps))
        made = [n for n in range(here.step + 1, steps + 1) if n % every == 0 or n == steps]
        assert here.validations == len(made)


def test_hours_cover_updates_validations_and_the_test() -> None:
    cell = replace(made_up(), cost=COST, step=250)
    # 1,000 updates, a validation of 3 examples every 100, a test of 4.
    assert cell.seconds == 750 * 0.5 + 8 * 3 * 0.25 + 4 * 0.25
    assert cell.config is not None
    on_test = replace(cell, config=replace(cell.config, validation="test"))
    assert on_test.seconds == 750 * 0.5 + 8 * 4 * 0.25 + 4 * 0.25
    assert replace(cell, cost=None).seconds == 0
    assert cell.memory(1_000) == 1_000 + 2 * 400 + 2 * 360 + 7e6


def test_planned_disk_space_is_close_to_what_a_run_uses(tmp_path: Path) -> None:
    words = tiny(tmp_path, "train.steps=200", "train.validate_every=20")
    cell = sweep.measured(assess(words), Measurements(tmp_path / "x"), budget=0.2)
    promised = cell.data
    folder = run(words)
    files = [f for f in folder.iterdir() if f.name != RECORD]
    assert cell.disk == pytest.approx(sum(f.stat().st_size for f in files), rel=0.1)
    built = assess(words).data
    assert built is not None and built.built is not None and promised is not None
    written = sum(f.stat().st_size for f in built.folder.iterdir())
    assert 0.5 * promised.bytes < written < promised.bytes + 4_096
    assert built.bytes == 0 and built.folder == promised.folder


def test_equal_cells_are_measured_once_and_done_ones_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(config: lra.config.Config, *rest: object) -> Cost:
        measured.append((config.attention.name, config.seed, config.model.layers))
        return COST

    monkeypatch.setattr("lra.plan.cost.measure", measure)
    monkeypatch.setattr(sweep, "code_version", lambda: ("c0ffee", False))
    words = tiny(tmp_path)
    run(words)
    words[1:3] = ["attention=fourier,linear", "seed=0,1"]
    cells = sweep.plan([*words, "model.layers=2"])
    assert [cell.state for cell in cells] == ["done", *["to do"] * 3]
    assert measured == [("fourier", 1, 2), ("linear", 0, 2)]
    assert all(cell.cost == COST for cell in cells[1:])
    # The next plan reads the measurements of this one; a changed model is measured again.
    sweep.plan(words)
    assert len(measured) == 2
    sweep.plan([*words, "model.layers=1", "variant=small"])
    assert measured[2:] == [("fourier", 0, 1), ("linear", 0, 1)]
    # Micro-batches change time and memory, though not the cell.
    sweep.plan([*words, "model.layers=1", "train.micro_batch=3"])
    assert len(measured) == 6
    # Changed code may take a different time.
    monkeypatch.setattr(sweep, "code_version", lambda: ("c0ffee", True))
    sweep.plan(words)
    assert len(measured) == 8
    (tmp_path / "runs" / sweep.NAME).write_text("[]")
    monkeypatch.setattr(sweep, "code_version", lambda: ("c0ffee", False))
    sweep.plan(words)
    assert len(measured) == 10


def test_cells_that_share_a_folder_conflict_unless_a_variant_distinguishes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lra.plan.cost.measure", lambda *rest: COST)
    words = [*tiny(tmp_path), "model.layers=1,2"]
    first, second = sweep.plan(words)
    assert (first.state, second.state) == ("to do", "conflict")
    assert "variant=layers${model.layers}" in second.detail
    apart = sweep.plan([*words, "variant='layers${model.layers}'"])
    assert [(cell.state, cell.method.variant) for cell in apart] == [
        ("to do", "layers1"),
        ("to do", "layers2"),
    ]
    text = page.page(apart, 0)
    assert "fourier (layers1)" in text and "fourier (layers2)" in text


def test_a_backend_that_refuses_its_options_does_not_stop_the_other_cells(tmp_path: Path) -> None:
    words = tiny(tmp_path, "attention.options.block_size=8", attention="fourier,mra")
    fourier, mra = sweep.plan(words, budget=0.1)
    assert fourier.state == "no model" and "attention.options.block_size" in fourier.detail
    assert mra.state == "to do" and mra.cost is not None
    assert "fourier seed 0 no model: attention.options.block_size" in page.page([fourier, mra], 0)


OWN = """
import time
from torch import nn
class Own(nn.Module):
    pad_invariant = True
    def __init__(self, shape):
        super().__init__()
    def forward(self, x, mask=None):
        {body}
        return x
"""


def own_backend(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> str:
    (folder / f"{name}.py").write_text(OWN.format(body=body))
    monkeypatch.syspath_prepend(folder)
    # As a new process would find it: this one keeps the file that it has loaded.
    provenance._of_module.cache_clear()
    return f"attention.path={name}:Own"


@pytest.mark.parametrize(
    ("name", "error", "detail"),
    [
        ("crashes", "RuntimeError('no such kernel')", "no such kernel"),
        ("lacks", "KeyError('window')", "KeyError: 'window'"),
    ],
)
def test_a_backend_that_crashes_is_reported_and_does_not_stop_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: str, detail: str
) -> None:
    path = own_backend(tmp_path, monkeypatch, name, f"raise {error}")
    (cell,) = sweep.plan(tiny(tmp_path, path, attention="custom"), budget=0.1)
    assert cell.state == "cannot run" and cell.detail == detail
    assert f"{name}.Own seed 0 cannot run: {detail}" in page.page([cell], 0)


def test_a_file_that_cannot_be_imported_does_not_stop_the_other_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "absent.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    wrong, fourier = sweep.plan(tiny(tmp_path, attention="absent:Own,fourier"), budget=0.1)
    assert wrong.state == "no model" and "no_such_library' (absent.py:1)" in wrong.detail
    assert fourier.cost is not None


def test_measurements_of_a_users_file_are_discarded_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "code_version", lambda: ("abc", False))
    path = own_backend(tmp_path, monkeypatch, "changes", "pass")
    words = tiny(tmp_path, path, attention="custom")
    sweep.plan(words, budget=0.1)
    monkeypatch.setattr(cost, "measure", lambda *args: pytest.fail("measured again"))
    sweep.plan(words, budget=0.1)
    own_backend(tmp_path, monkeypatch, "changes", "time.sleep(0)")
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        sweep.plan(words, budget=0.1)


def test_a_seed_that_is_not_a_number_is_named(tmp_path: Path) -> None:
    words = [w if not w.startswith("seed=") else "seed=a" for w in tiny(tmp_path)]
    with pytest.raises(ConfigError, match="seed=a: must be a whole number"):
        sweep.plan(words)


def test_measuring_leaves_no_run_and_no_data_behind(tmp_path: Path) -> None:
    (cell,) = sweep.plan(tiny(tmp_path), budget=0.1)
    assert cell.cost is not None
    left = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert left <= {sweep.NAME}


def test_each_saving_leaves_out_exactly_the_cells_that_it_names() -> None:
    tasks, attentions, seeds = ("listops", "text", "image"), ("softmax", "mra", "linear"), (0, 1)
    cells = [
        made_up(t, a, s, hours=9.0 if (t, a) in {("text", "softmax"), ("image", "mra")} else 1.0)
        for t, a, s in itertools.product(tasks, attentions, seeds)
    ]
    grid = {"task": tasks, "attention": attentions, "seed": tuple(map(str, seeds))}
    found = page.savings(cells)
    for _, rest in found:
        trained = []
        for line in page.commands(rest, cells):
            chosen = grid | {
                k: tuple(v.split(",")) for k, v in (w.split("=") for w in line.split())
            }
            trained += list(itertools.product(*chosen.values()))
        assert sorted(trained) == sorted((c.task, c.method.attention, str(c.seed)) for c in rest)
    hours = {words: sum(cell.seconds for cell in rest) / 3600 for words, rest in found}
    assert hours == pytest.approx(
        {
            "text/softmax, image/mra": 14.0,
            "text and image": 6.0,
            "all seeds but 0": 25.0,
            "text": 28.0,
            "image": 28.0,
            "softmax": 28.0,
            "mra": 28.0,
            "listops": 44.0,
            "linear": 44.0,
        }
    )
    assert list(hours.values()) == sorted(hours.values())
    assert page.savings([]) == [] and page.savings(cells[:1]) == []
    # Equal savings are listed once, under the shorter name.
    pair = page.savings([made_up(attention="mra", hours=9), made_up(hours=1)])
    assert [words for words, _ in pair] == ["mra", "softmax"]


def test_the_plan_lists_hours_states_disk_space_and_what_to_leave_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lra.memory.total", lambda device: 5 * 10**6)
    big = made_up("text", hours=30)
    light = replace(COST, step_bytes=1e6, update_seconds=3.6, example_seconds=0.0)
    done = replace(made_up("image"), cost=None, state="done")
    stops = replace(made_up("image", "mra"), cost=None, state="conflict", detail="other")
    cells = [big, replace(made_up("listops"), cost=light), done, stops, made_up("text", "mra")]
    text = page.page(cells, base=10**6)
    table = [" ".join(line.split()) for line in text.splitlines()]
    assert "| attention | text | listops | image | total |" in table
    assert "| softmax | 30.0 h | 60 min | done | 31.0 h |" in table
    assert "| mra | 60 min | - | conflict | 60 min |" in table
    assert "| total | 31.0 h | 60 min | done, conflict | 32.0 h |" in table
    assert "Cells: 3 to do, 1 done, 1 conflict." in text
    assert "Time: 32.0 h, one cell after the other" in text
    assert "at most 2.0 MB for data" in text
    assert "image/mra seed 0 conflict: other" in text
    assert "* text/softmax: 8.0 MB of 5.0 MB" in text and "listops/softmax: " not in text
    assert "* without softmax: 60 min instead of 32.0 h, with task=text,image attention=mra" in text
    assert "timed" in text and "3 x 2/4" in text
    assert "assumed to have the full length" in text and "Sequence lengths come" not in text
    assert "Nothing is left to train." in page.page([done], 0)


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    """Return the exit status, stdout and stderr of the command."""
    monkeypatch.setattr(sys, "argv", ["plan", *words])
    try:
        runpy.run_module("lra.plan", run_name="__main__")
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    return status, *capsys.readouterr()


def test_the_command_prints_a_plan_or_the_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lra.plan.cost.measure", lambda *rest: COST)
    rest = [f"runs_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache", "train.steps=777"]
    grid = ["task=listops,image", "attention=mra", "scale=mini"]
    status, out, err = command(monkeypatch, capsys, *grid, *rest, "hydra/launcher=basic")
    assert (
        status == 0 and out.count("| mra (steps=777) | 0    | to do | 777     |") == 2 and not err
    )
    status, out, err = command(monkeypatch, capsys, "task=lists", "attention=mra")
    assert status == 2 and err.startswith("task=lists: did you mean listops? choose from image, ")
    words = ["task=image,pathx", "attention=mra", "protocol=wavspa", *rest]
    status, out, err = command(monkeypatch, capsys, *words)
    assert status == 1 and "refuses to start" in err
    assert "protocol=wavspa has no recipe for task=pathx, only for image, listops" in out
    assert "| image | mra " in out
    status, _, err = command(monkeypatch, capsys, *grid, "seed=glob(*)")
    assert status == 2 and "glob" in err


def test_a_launcher_that_is_not_installed_is_reported_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny(tmp_path), "hydra/launcher=submitit_nowhere"]
    status, out, _ = command(monkeypatch, capsys, *words)
    message = "hydra/launcher=submitit_nowhere is not installed; run pip install -e '.[slurm]'"
    assert status == 1 and message in out


def test_measurements_outlive_the_plan_and_damaged_ones_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "runs" / sweep.NAME
    Measurements(file).put("a", COST)
    assert Measurements(file).get("a") == COST and Measurements(file).get("b") is None
    assert Measurements(file, kept=False).get("a") is None
    wrong = json.dumps({"a": asdict(COST) | {"update_seconds": "fast"}})
    for text in ("{", "[]", "[" * 100_000, json.dumps({"a": {"rows": 3}}), wrong):
        file.write_text(text)
        assert Measurements(file).get("a") is None
    file.unlink()
    file.mkdir()
    assert Measurements(file).get("a") is None


def test_parallel_cells_take_as_long_as_the_busiest_job() -> None:
    # The first job takes 5; the other 3, then 1, then 4.
    assert page.makespan([5.0, 3.0, 1.0, 4.0], 2) == 8.0
    assert page.makespan([5.0, 3.0, 1.0, 4.0], 1) == 13.0
    assert page.makespan([2.0], 3) == 2.0


def test_a_plan_shows_the_time_with_one_cell_per_core() -> None:
    cells = [made_up(hours=5.0), made_up("text", hours=3.0), made_up("image", hours=4.0)]
    [line] = page.at_once_lines(cells, "cpu", 2)
    assert line.startswith("With 2 cells at a time (hydra/launcher=joblib hydra.launcher.n_jobs=2")
    assert "threads=1'): 7.0 h at best" in line
    assert page.at_once_lines(cells, "cpu", 1) == page.at_once_lines(cells, "cuda", 8) == []
    assert page.at_once_lines(cells[:1], "cpu", 8) == []
    # With two threads each, four cores have room for two.
    wide = [replace(cell, values={"threads": 2}) for cell in cells]
    assert "With 2 cells" in page.at_once_lines(wide, "cpu", 4)[0]


def test_measurements_are_usable_even_if_they_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    known = Measurements(tmp_path / "file" / "plan.json")
    measured = cost.Cost(**dict.fromkeys(cost.Cost.__annotations__, 1))
    known.put("a", measured)
    assert known.get("a") == measured and "cannot be written" in caplog.text
