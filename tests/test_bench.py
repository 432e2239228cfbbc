"""The bench as a command: what it prints, what it writes, and how it is told of a mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lra.bench import lengths, request
from lra.config import ConfigError
from lra.words import value_of

SMALL = ["lengths=[32,64]", "batch_size=1", "repeats=1", "device=cpu", "threads=1"]


def bench(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lra.bench", *SMALL, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_bench_writes_what_it_measured_and_prints_a_table_of_it(tmp_path: Path) -> None:
    ran = bench(tmp_path, "attentions=[softmax,'linformer rank=2']", "out=deep/down/bench.json")
    assert ran.returncode == 0, ran.stderr
    written = json.loads((tmp_path / "deep/down/bench.json").read_text())
    assert written["device"] == "cpu" and written["threads"] == 1
    assert written["torch"] == torch.__version__ and written["machine"]
    assert written["config"]["lengths"] == [32, 64] and written["config"]["batch_size"] == 1
    names = ["softmax", "linformer rank=2"]
    keys = [(row["attention"], row["length"]) for row in written["rows"]]
    assert keys == [(name, length) for length in (32, 64) for name in names]
    for baseline, other in zip(written["rows"][::2], written["rows"][1::2], strict=True):
        ratio = baseline["seconds_per_step"] / other["seconds_per_step"]
        assert baseline["speed_ratio_to_softmax"] == 1
        assert other["speed_ratio_to_softmax"] == pytest.approx(ratio)
        assert other["parameters"] > baseline["parameters"]
        assert min(baseline["peak_memory_bytes"], other["peak_memory_bytes"]) > 0
    for row in written["rows"]:
        # An MLP's products, at the least.
        assert row["flops_per_step"] > 6 * row["length"] * 2 * 64 * 128
    *_, header, _, first, second, last = ran.stdout.strip().splitlines()
    for length in (32, 64):
        assert f"{length}: steps/s (x softmax), MiB" in header
    for line, name in zip((first, second), names, strict=True):
        assert line.startswith(f"| {name} ")
    for row in written["rows"]:
        line = first if row["attention"] == "softmax" else second
        speed, ratio = 1 / row["seconds_per_step"], row["speed_ratio_to_softmax"]
        assert f"{speed:.2f} ({ratio:.2f}), {row['peak_memory_bytes'] / 2**20:,.0f}" in line
    assert last == f"Batch 1, {written['machine']}, 1 threads; deep/down/bench.json"


def test_the_bench_ends_with_the_mistake_in_a_line_and_writes_nothing(tmp_path: Path) -> None:
    ran = bench(tmp_path, "attentions=[softmax,'linformer width=2']", "out=bench.json")
    assert ran.returncode == 1
    assert "attention.options.width: no such option" in ran.stderr
    assert "Traceback" not in ran.stderr and not (tmp_path / "bench.json").exists()


def test_the_bench_takes_the_words_of_every_command() -> None:
    words = ["attention=linformer,my_file:Mine", "attention.options.rank=2,4", "length=32, 64"]
    words += ["model.layers=1", "seed=0,1", "device=cpu", "attention@attention.inner=linear"]
    told = request.of_lengths(words)
    assert told[:2] == ["lengths=[32, 64]", "device=cpu"]
    texts = value_of(told[2].removeprefix("attentions="))
    more = "+model.layers=1 +attention@attention.inner=linear"
    names = ("linformer", "my_file:Mine")
    assert texts == [f"{name} rank={rank} {more}" for name in names for rank in (2, 4)]
    assert request.of_lengths(["lengths=[32]"]) == ["lengths=[32]"]
    with pytest.raises(ConfigError, match="task=text,image: a bench has the model of one task"):
        request.of_lengths(["task=text,image"])
    step = request.of_step(
        ["task=text,image", "attention=glob(lin*)", "train.steps=3", "--repeats"]
    )
    assert step[:4] == ["--tasks", "text,image", "--attentions", "linear,linformer"]
    assert step[4:] == ["--repeats", "--", "train.steps=3"]


def test_results_that_are_there_are_never_overwritten_unless_named(tmp_path: Path) -> None:
    assert lengths.unused(tmp_path / "cpu") == tmp_path / "cpu.json"
    (tmp_path / "cpu.json").touch()
    (tmp_path / "cpu-2.json").touch()
    assert lengths.unused(tmp_path / "cpu") == tmp_path / "cpu-3.json"
