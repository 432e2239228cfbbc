import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_cell import TINY, configure
from torch.utils.data import DataLoader

import lra
import lra.compose
import lra.config
from lra.bar import progress_bar
from lra.build import batches_for, build_task
from lra.record import RECORD, read_record
from lra.tasks import cache

ROOT = Path(__file__).resolve().parents[1]
PAIRS = [
    *("task=retrieval", "scale=mini", "task.options.num_train=12", "task.options.num_test=6"),
    *("task.options.num_validation=6", "device=cpu"),
]


def pairs(folder: Path) -> lra.config.Config:
    return lra.load(*PAIRS, f"cache_dir={folder / 'cache'}")


def test_a_split_has_a_length_and_can_be_indexed_and_iterated(tmp_path: Path) -> None:
    config = configure(tmp_path)
    task = build_task(config)
    data = cache.load("listops", task, Path(config.cache_dir)).splits["train"]
    examples = lra.dataset(config)["train"]
    assert len(examples) == len(data) == 64
    for index, example in enumerate(examples):
        start, stop = data.offsets[index : index + 2]
        expected = data.tokens[start:stop][: config.task.truncate].astype(np.int64) + task.id_shift
        np.testing.assert_array_equal(example.tokens, expected)
        assert example.label == data.labels[index]
    assert index == 63
    np.testing.assert_array_equal(examples[-1].tokens, example.tokens)
    for outside in (64, -65):
        with pytest.raises(IndexError, match=f"example {outside}: out of range, there are 64"):
            examples[outside]
        with pytest.raises(IndexError):
            examples.to_torch()[outside]


@pytest.mark.parametrize("make", [configure, pairs])
def test_a_loader_yields_the_batches_that_training_reads(tmp_path: Path, make) -> None:
    config = make(tmp_path)
    model = lra.model(config).eval()
    tokens, mask, labels = next(iter(DataLoader(lra.dataset(config)["test"].to_torch(), 6)))
    task = build_task(config)
    data = cache.load(config.task.name, task, Path(config.cache_dir))
    batch = batches_for(config, task, model, data.splits["test"]).gather(np.arange(6))
    assert tokens.shape[-1] == config.model.max_length
    width = batch.tokens.shape[-1]
    assert torch.equal(tokens[..., :width], batch.tokens) and not tokens[..., width:].any()
    assert torch.equal(mask, tokens != 0)
    assert torch.equal(labels, batch.labels)
    with torch.inference_mode():
        expected = model(batch.tokens, batch.mask)
        torch.testing.assert_close(model(tokens, mask), expected, atol=1e-5, rtol=1e-4)
    assert expected.shape == (6, config.task.num_classes)


@pytest.mark.parametrize("make", [configure, pairs])
def test_a_hugging_face_data_set_holds_the_same_examples(tmp_path: Path, make) -> None:
    examples = lra.dataset(make(tmp_path))["validation"]
    converted = examples.to_hf()
    assert converted.column_names == ["tokens", "label"] and len(converted) == len(examples)
    for row, example in zip(converted, examples, strict=True):
        both = isinstance(example.tokens, tuple)
        lists = [t.tolist() for t in example.tokens] if both else example.tokens.tolist()
        assert (row["tokens"], row["label"]) == (lists, example.label)


def test_training_in_a_thread_writes_the_record_where_the_command_line_does(tmp_path: Path) -> None:
    words = [*TINY, f"cache_dir={tmp_path / 'cache'}", f"runs_dir={tmp_path / 'runs'}"]
    config, folder = lra.compose.place(*words)
    assert config.folder == folder
    records = []
    thread = threading.Thread(target=lambda: records.append(lra.train(config)))
    thread.start()
    thread.join()
    (record,) = records
    assert read_record(folder / RECORD) == record and record.steps == 60
    # A finished cell is not trained again.
    assert lra.train(config) == record
    table = lra.records(tmp_path / "runs")
    assert table["test_accuracy"].tolist() == [record.test_accuracy]
    assert table["config.train.steps"].tolist() == [60]


@pytest.mark.parametrize(
    "imports",
    [
        pytest.param("import lra", marks=pytest.mark.slow),
        pytest.param("import lra.train", marks=pytest.mark.slow),
        "import lra, lra.train",
    ],
)
def test_train_is_a_module_and_a_function_in_any_import_order(tmp_path: Path, imports: str) -> None:
    words = [*TINY, "train.steps=3", "train.warmup_steps=2"]
    words += [f"cache_dir={tmp_path}/cache", f"runs_dir={tmp_path}/runs"]
    code = f"{imports}\nconfig = lra.load(*{words})"
    code += "\nprint(lra.train(config).steps)\nimport lra.train\nprint(lra.train(config).steps)"
    code += "\nprint(callable(lra.train.main), dir(lra).count('records'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["3", "3", "True", "1"], done.stderr


def test_records_are_read_without_torch(tmp_path: Path) -> None:
    code = "import lra, sys; print(len(lra.records(sys.argv[1])), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "False"], done.stderr


def test_the_curves_named_in_the_guide_are_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configure(tmp_path, f"runs_dir={tmp_path / 'runs'}")
    lra.train(config)
    events = EventAccumulator(str(config.folder))
    events.Reload()
    named = set(re.findall(r"`((?:train|validation)/\w+)`", (ROOT / "docs/loggers.md").read_text()))
    of_float16 = {"train/loss_scale", "train/skipped_updates"}
    written = set(events.Tags()["scalars"])
    assert {name for name in written if not name.startswith("weights/")} == named - of_float16
    for name in ("validation/accuracy", "validation/loss"):
        assert [event.step for event in events.Scalars(name)] == [25, 50, 60]
    # TensorBoard expands the first two groups.
    assert sorted({name.split("/")[0] for name in written}) == ["train", "validation", "weights"]


def test_an_unknown_attribute_is_reported_with_the_available_ones() -> None:
    with pytest.raises(AttributeError, match="offers dataset, load, model, records, train"):
        lra.datasets  # noqa: B018  # the access is under test


def test_the_code_of_the_notebook_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    monkeypatch.setenv("LRA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("LRA_RUNS_DIR", str(tmp_path / "runs"))
    values: dict[str, object] = {}
    exec(code, values)
    cell = ["task=listops", "attention=fourier", "scale=mini", "variant=notebook"]
    record = read_record(lra.load(*cell).folder / RECORD)
    assert values["record"] == record
    printed = capsys.readouterr().out
    assert str(record.test_accuracy) in printed and "torch.Size([8, 10])" in printed


def test_a_bar_is_drawn_in_a_notebook_kernel_but_not_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(progress_bar(range(3), "quiet")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert list(progress_bar(range(3), "drawn")) == [0, 1, 2]
    assert "drawn: 100%" in capsys.readouterr().err
