"""TensorBoard: what is written about a cell for comparison, and the names of runs there."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tiny_cell import configure

from lra import board
from lra.batches import Batches
from lra.evaluation import predict
from lra.predictions import Predictions
from lra.record import read_record
from lra.report.selection import Selection
from lra.runner import run_cell
from lra.tasks import Split

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a trained cell."""
    folder = tmp_path_factory.mktemp("board")
    config = configure(folder, f"runs_dir={folder / 'runs'}", "train.steps=20", "seed=3")
    config.folder.mkdir(parents=True)
    run_cell(config, config.folder)
    return config.folder


def test_a_cell_ends_by_writing_its_accuracies_and_what_it_is(cell: Path) -> None:
    record = read_record(cell / "result.json")
    events = EventAccumulator(str(cell))
    events.Reload()
    for tag, value in (
        ("validation/test_accuracy", record.test_accuracy),
        ("validation/best_accuracy", record.best_accuracy),
    ):
        [point] = events.Scalars(tag)
        assert point.step == record.steps and point.value == pytest.approx(value)
    content = events.PluginTagToContent("hparams")
    begun = metadata.parse_session_start_info_plugin_data(content["_hparams_/session_start_info"])
    values = {name: value.string_value for name, value in begun.hparams.items()}
    assert values == {
        "task": "listops",
        "attention": "softmax",
        "variant": "default",
        "protocol": "mini nystromformer",
        "seed": "3",
    }
    compared = metadata.parse_experiment_plugin_data(content["_hparams_/experiment"])
    assert {each.name.tag: each.display_name for each in compared.metric_infos} == {
        "validation/test_accuracy": "test accuracy",
        "validation/best_accuracy": "validation accuracy",
    }


def test_evaluation_returns_the_mean_loss_over_the_whole_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, 23)
    split = Split(
        tokens=rng.integers(0, 7, lengths.sum()).astype(np.uint8),
        offsets=np.concatenate([[0], lengths.cumsum()]),
        labels=rng.integers(0, 4, 23),
    )
    batches = Batches(
        split, padded_length=9, truncate=9, id_shift=1, trim=True, device=torch.device("cpu")
    )

    class Sums(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, generator=torch.manual_seed(0)))

        def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            return tokens.sum(-1, keepdim=True).float() * self.weight / 10

    train = replace(configure(tmp_path).train, eval_batch_size=5)
    model = Sums()
    found = predict(model, batches, train)
    sums = [split.tokens[a:b].astype(int).sum() + b - a
            for a, b in zip(split.offsets, split.offsets[1:], strict=False)]  # fmt: skip
    logits = torch.tensor(sums)[:, None] * model.weight / 10
    expected = F.cross_entropy(logits.detach(), torch.from_numpy(split.labels))
    assert found.loss == pytest.approx(float(expected), rel=1e-5)
    assert math.isnan(Predictions(found.predicted, found.labels).loss)


PARTS = ("mini", "nystromformer")


def test_names_identify_every_cell_within_thirty_characters() -> None:
    root = Path("/runs")
    folders = [
        root.joinpath(scale, protocol, task, attention, variant, f"seed{seed}")
        for scale, protocol in (PARTS, ("paper", "lra"))
        for task in ("listops", "pathfinder")
        for attention in ("mra", "nystromformer", "my_package.my_file.MyOwnAttention")
        for variant in ("default", "learning_rate=0.001,steps=3", "learning_rate=0.002,steps=3")
        for seed in (0, 10)
    ]
    named = board.names(folders)
    assert sorted(named.values()) == sorted(folders)
    assert max(map(len, named)) <= 30
    few = [folder for folder in folders if folder.parts[-6:-4] == PARTS]
    short = {folder: name for name, folder in board.names(few).items()}
    assert short[root.joinpath(*PARTS, "listops", "mra", "default", "seed0")] == "listops mra s0"
    place = root.joinpath(*PARTS, "pathfinder", "nystromformer", "default", "seed10")
    assert short[place] == "pathfinder nystromformer s10"


def test_cells_with_curves_are_selected_by_words(cell: Path) -> None:
    runs = cell.parents[5]

    def found(**changes: object) -> list[Path]:
        words = {"runs_dir": runs, "scale": "mini"} | changes
        return list(board.cells(Selection(**words)))  # type: ignore[arg-type]  # by the names above

    assert found() == found(tasks=["listops"], seeds=[3]) == [cell]
    assert found(values={"train.steps": [20], "variant": ["default"]}) == [cell]
    for none in (
        {"tasks": ["text"]},
        {"seeds": [0]},
        {"attentions": ["mra"]},
        {"scale": "paper"},
        {"values": {"variant": ["x"]}},
        {"values": {"train.steps": [21]}},
    ):
        assert found(**none) == []


def test_tensorboard_lists_runs_by_name_and_new_ones_are_added(cell: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    board.link(tmp_path, board.names([cell]))
    runs = EventMultiplexer()
    runs.AddRunsFromDirectory(str(tmp_path))
    assert list(runs.Runs()) == ["listops softmax s3"]
    (tmp_path / "other").mkdir()
    board.link(tmp_path, {**board.names([cell]), "another": cell})
    assert {each.name for each in tmp_path.iterdir()} == {"listops softmax s3", "another", "other"}


def test_the_command_serves_the_linked_runs_and_exits_with_the_servers_status(
    cell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A stand-in for TensorBoard that prints what is in the folder it is given.
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").touch()
    (tmp_path / "tensorboard" / "main.py").write_text(
        "import os, sys; print(os.listdir(sys.argv[2]), sys.argv[3:], flush=True); sys.exit(3)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out.txt"
    popen = board.subprocess.Popen
    with open(out, "w") as written:
        monkeypatch.setattr(board.subprocess, "Popen", lambda words: popen(words, stdout=written))
        runs = cell.parents[5]
        monkeypatch.setattr(
            sys, "argv", ["lra board", f"runs_dir={runs}", "scale=mini", "--port", "6009"]
        )
        with pytest.raises(SystemExit) as ended:
            board.main()
    assert ended.value.code == 3
    expected = "['listops softmax s3'] ['--port', '6009', '--host', 'localhost']"
    assert out.read_text().strip() == expected
    assert "1 cell has curves" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_no_server_behind(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").touch()
    (tmp_path / "tensorboard" / "main.py").write_text(
        "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "lra.board", f"runs_dir={tmp_path}", "scale=mini"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        text=True,
        # A shell makes what it starts in the background ignore SIGINT, even these tests.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("0 cells have curves")
            server = int(process.stdout.readline())
            process.send_signal(number)
            assert process.wait(60) == code
        finally:
            process.kill()
    assert not psutil.pid_exists(server)
