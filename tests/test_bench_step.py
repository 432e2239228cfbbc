"""The bench of steps: parts add up, the floor counts what it claims, the old form is as before."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_cell import TINY

import lra.compose
from lra.bench import step
from lra.bench.floor import Products, large_products
from lra.bench.old import whole_batch, without_kernels
from lra.bench.step import PARTS, Stopwatch, Updates, share_row, shares, training_split
from lra.build import build_model
from lra.events import Events
from lra.flops import counter
from models.dropout import Dropout
from models.softmax import Softmax

CPU = torch.device("cpu")


def updates_of(folder: Path, *overrides: str) -> Updates:
    config = lra.compose.load(*TINY, *overrides)
    return Updates(config, training_split(config)[0], CPU, Events(folder, 1))


def test_the_parts_of_an_update_add_up_to_the_whole(tmp_path: Path) -> None:
    updates = updates_of(tmp_path)
    watch = Stopwatch(CPU)
    updates.timed(watch)
    assert set(watch.seconds) == set(PARTS) and min(watch.seconds.values()) > 0
    seconds, floor = shares(updates, 2)
    whole = sum(seconds.values())
    assert 0 < floor < whole
    row = share_row(seconds, floor)
    assert sum(float(text.rstrip("%")) for text in row[1:6]) == pytest.approx(100, abs=0.5)
    assert float(row[-1]) == pytest.approx(whole / floor, abs=0.01)


def test_time_outside_the_work_is_marked_from_three_percent_on() -> None:
    seconds = dict(zip(PARTS, (0.02, 0.5, 0.4, 0.06, 0.02), strict=True))
    assert share_row(seconds, 0.5)[-2:] == ["4.00% (!)", "2.00"]
    seconds["forward"] = 5.0
    assert share_row(seconds, 0.0)[-2:] == ["0.73%", "-"]


def test_the_bench_makes_the_updates_of_training(tmp_path: Path) -> None:
    updates = updates_of(tmp_path, "train.micro_batch=2")
    assert [len(part.labels) for part in updates.parts()] == [2, 2]
    before = [p.clone() for p in updates.model.parameters()]
    updates()
    after = list(updates.model.parameters())
    assert updates.step == 1 and not any(map(torch.equal, before, after))


def test_a_floor_counts_products_and_nothing_else() -> None:
    a = torch.randn(8, 8, requires_grad=True)
    with Products() as products:
        ((a @ a).relu() @ a).exp().sum().backward()
        torch.fft.rfft(a.detach())
    # Two products forward, two for each of them backward.
    assert sum(products.calls.values()) == 7
    with Products() as again:
        products.again()()
    assert again.calls == products.calls


def test_a_floor_recreates_tensors_whose_elements_share_memory() -> None:
    with Products() as products:
        torch.bmm(torch.randn(1, 4, 5).expand(3, 4, 5), torch.randn(3, 5, 2))
    with Products() as again:
        products.again()()
    assert sum(products.calls.values()) == 1 and again.calls == products.calls


@pytest.mark.parametrize("flops", [0, 10**6, 3 * 10**8])
def test_large_products_perform_as_many_operations_as_requested(flops: int) -> None:
    with counter() as counted:
        large_products(flops, CPU)()
    assert counted.get_total_flops() == pytest.approx(flops, abs=512**2)


def test_products_within_a_kernel_count_in_the_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = []

    def noted(flops: int, device: torch.device) -> Callable[[], None]:
        requested.append(flops)
        return large_products(flops, device)

    monkeypatch.setattr(step, "large_products", noted)
    words = ("model.max_length=96", "task.truncate=96", "train.micro_batch=0")
    _, floor = shares(updates_of(tmp_path / "mra", "attention=mra", *words), 1)
    assert floor > 0
    # All of its products are torch's.
    shares(updates_of(tmp_path / "linear", "attention=linear", *words), 1)
    kernels, none = requested
    assert kernels > 1e4 and none == 0


def test_the_old_form_is_the_whole_batch_without_kernels() -> None:
    config = whole_batch(lra.compose.load(*TINY, "model.attention_dropout=0.1"))
    assert config.train.micro_batch == 0
    model = without_kernels(build_model(config))
    dropouts = [m for m in model.modules() if isinstance(m, Dropout)]
    softmax = [m for m in model.modules() if isinstance(m, Softmax)]
    assert dropouts and not any(m.compiled for m in dropouts)
    assert softmax and not any(m.fused for m in softmax)
    still = build_model(lra.compose.load(*TINY, "model.attention_dropout=0.0"))
    assert all(m.fused for m in without_kernels(still).modules() if isinstance(m, Softmax))


def test_two_forms_are_compared_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "interleaved", lambda steps, *rest: {"new": 0.5, "old": 2.0})
    updates = updates_of(tmp_path)
    assert step.ratio_row(updates, updates, 1) == ["2", "0.5", "4.00"]


def test_every_cell_is_compared_on_the_requested_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads: list[list[int]] = []

    def ratio_row(new: Callable[[], None], old: Callable[[], None], repeats: int) -> list[str]:
        seen = []
        for form in (new, old):
            form()
            seen.append(torch.get_num_threads())
        threads.append(seen)
        return ["1", "1", "1"]

    monkeypatch.setattr(step, "ratio_row", ratio_row)
    words = ["task=listops", "attention=softmax,linear", "scale=mini", "train.batch_size=2"]
    before = torch.get_num_threads()
    try:
        step.main([*words, "threads=2", "device=cpu", "--against", "one-thread", *TINY[3:]])
    finally:
        torch.set_num_threads(before)
    assert threads == [[2, 1], [2, 1]] and "2 threads" in capsys.readouterr().out


def test_one_thread_is_compared_with_more() -> None:
    threads = []
    number = torch.get_num_threads()
    try:
        for each in (2, 1):
            step.with_threads(lambda: threads.append(torch.get_num_threads()), each)()
    finally:
        torch.set_num_threads(number)
    assert threads == [2, 1]


def test_the_command_prints_a_row_per_cell(tmp_path: Path) -> None:
    words = ["task=listops", "attention=softmax,linear", "--repeats", "1", "scale=mini"]
    words += ["train.batch_size=2", "device=cpu", *TINY[3:]]
    ran = subprocess.run(
        [sys.executable, "-m", "lra.bench", "step", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    header, _, softmax, linear, note = ran.stdout.strip().splitlines()
    assert [cell.strip() for cell in header.split("|")][5:12] == ["s/update", *PARTS, "outside"]
    assert softmax.startswith("| listops | softmax ") and linear.startswith("| listops | linear ")
    assert "mini scale, median of 1 updates" in note


def test_every_task_is_measured_with_every_attention_on_one_thread_by_default() -> None:
    words = ["task=listops,text", "attention=glob(lin*)", "train.batch_size=3", "scale=mini"]
    found = step.cells(words)
    names = [(each.task.name, each.attention.name) for each in found]
    assert names == [(t, a) for t in ("listops", "text") for a in ("linear", "linformer")]
    assert {(each.threads, each.train.batch_size, each.scale) for each in found} == {(1, 3, "mini")}
    assert step.cells([])[-1].attention.name == "mra" and step.cells(["threads=2"])[0].threads == 2


def test_shares_are_measured_only_on_one_thread(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        step.main(["threads=2"])
    assert "threads=2: shares are measured on one thread" in capsys.readouterr().err


def test_a_wrong_name_ends_the_command_with_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lra.bench", "step", "attention=softmx"]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 2 and "softmx" in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_waiting_threads_soon_sleep_unless_the_environment_says_otherwise(
    before: dict[str, str], after: str
) -> None:
    variables = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {k: v for k, v in os.environ.items() if k not in variables} | before
    code = "import sys, lra, os; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    words = [sys.executable, "-c", code]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert ran.stdout.split() == [after, "False"]
