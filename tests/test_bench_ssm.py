"""The timings of state-space layers: what is kept of a run, and the powers of N that are stated."""

import importlib.util
import json
import sys
from datetime import datetime
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lra.machine import code_version
from lra.paths import ROOT


@pytest.fixture
def bench() -> ModuleType:
    file = ROOT / "scripts" / "bench_ssm.py"
    spec = importlib.util.spec_from_file_location("bench_ssm", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_keeps_its_commit_and_date_beside_its_numbers(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "LENGTH", 32)
    monkeypatch.setattr(bench, "LENGTHS", (8, 16, 32, 64))
    monkeypatch.setattr(bench, "PATHX_LENGTH", 32)
    out = tmp_path / "deep" / "ssm.json"
    words = ["bench_ssm", "--out", str(out), "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--threads", str(torch.get_num_threads())])
    bench.main()
    found = json.loads(out.read_text())
    assert (found["commit"], found["dirty"]) == code_version()
    datetime.strptime(found["when"], "%Y-%m-%d %H:%M")
    assert set(found["shares"]) == set(bench.LAYERS)
    assert [*found["lengths"]["s4d"]] == ["8", "16", "32", "64"]


def test_powers_of_the_last_doublings_are_printed_beside_those_of_all_lengths(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Linear at first, then quadratic.
    seconds = {"1024": 1.0, "2048": 2.0, "4096": 4.0, "8192": 16.0, "16384": 64.0}
    monkeypatch.setattr(bench, "interleaved", lambda *_: seconds)
    monkeypatch.setattr(bench, "step", lambda *_: None)
    bench.exponents(1)
    # By hand: least squares through 0, 1, 2, 4, 6 at -2 to 2 doublings.
    assert "exponent 1.50, 2.00 from 4,096 on" in capsys.readouterr().out


def test_the_document_states_the_powers_of_its_run(bench: ModuleType) -> None:
    text = (ROOT / "docs" / "speed.md").read_text().replace("\n", " ")
    run = json.loads((ROOT / "results" / "bench" / "ssm_cpu.json").read_text())["lengths"]
    runs = [{int(n): taken for n, taken in each.items()} for each in run.values()]
    whole = [f"{bench.slope(each):.2f}".lstrip("0") for each in runs]
    last = [f"{bench.slope(dict([*each.items()][-bench.LAST :])):.2f}" for each in runs]
    for first, second, third in (whole, last):
        assert f"to the {first}, {second} and {third} from" in text
