"""The bench as a command: what it prints and writes, and how it reports a mistake."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lra.bench import again, against, lengths, page, request
from lra.bench.measured import MODES, Cell, Machine, read
from lra.bench.measurement import Measurement
from lra.bench.page import ratio
from lra.config import ConfigError
from lra.words import value_of

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["lengths=[32,64]", "batch_size=1", "repeats=2", "device=cpu", "threads=1"]


def bench(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lra.bench", *SMALL, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def rows_of(printed: str, title: str) -> dict[str, list[str]]:
    """Return the rows below each line that starts with a title, by mode and first cell."""
    found: dict[str, list[str]] = {}
    mode = ""
    lines = printed.splitlines()
    for index, line in enumerate(lines):
        if line.startswith("## "):
            mode = line.removeprefix("## ").lower()
        if line.startswith(title):
            for row in lines[index + 2 :]:
                if not row.startswith("|"):
                    break
                cells = [cell.strip() for cell in row.strip("|").split("|")]
                found[f"{mode} {cells[0]}"] = cells[1:]
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return what a bench of two backends printed, and the file that it wrote."""
    folder = tmp_path_factory.mktemp("bench")
    done = bench(folder, "attentions=[softmax,'linformer rank=2']", "out=deep/down/here.json")
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "deep" / "down" / "here.json"


def test_the_bench_writes_every_timing_of_both_modes(ran: tuple[str, Path]) -> None:
    document = read(ran[1])
    [run] = document.runs
    assert document.machine.name and document.machine.processors >= 1
    assert (run.device, run.threads, run.dtype, run.batch_size) == ("cpu", 1, "float32", 1)
    assert run.torch == torch.__version__ and run.total_seconds > 0
    assert run.attentions == ["softmax", "linformer rank=2"] and run.lengths == [32, 64]
    assert len(run.cells) == 8 and all(len(cell.seconds) == 2 for cell in run.cells)
    for mode in MODES:
        for length in run.lengths:
            base, other = (run.cell(name, length, mode) for name in run.attentions)
            assert base is not None and other is not None
            assert ratio(run, base) == 1
            assert ratio(run, other) == pytest.approx(base.median / other.median)
            assert other.parameters > base.parameters
            assert min(base.peak_memory_bytes, other.peak_memory_bytes) > 0
    for cell in run.cells:
        # At least the products of an MLP.
        passes = 6 if cell.mode == "training" else 2
        assert cell.flops > passes * cell.length * 2 * 64 * 128


def test_the_bench_prints_tables_of_what_it_wrote(ran: tuple[str, Path]) -> None:
    printed, file = ran
    [run] = read(file).runs
    speeds = rows_of(printed, "Updates per second") | rows_of(printed, "Batches per second")
    tokens, memory = rows_of(printed, "Tokens per second"), rows_of(printed, "Peak memory, MiB")
    operations = rows_of(printed, "Operations, GFLOP")
    for mode in MODES:
        for name in run.attentions:
            key = f"{mode} {name}"
            for place, length in enumerate(run.lengths):
                cell = run.cell(name, length, mode)
                assert cell is not None
                faster = ratio(run, cell)
                assert speeds[key][place].startswith(f"{1 / cell.median:.3g} ({faster:.2f})")
                assert tokens[key][place].startswith(f"{length / cell.median:,.0f}")
                assert memory[key][place] == f"{cell.peak_memory_bytes / 2**20:,.1f}"
                assert float(operations[key][place]) == pytest.approx(cell.flops / 1e9, rel=0.01)
            for rows, quantity in (
                (speeds, "seconds"), (memory, "peak_memory_bytes"), (operations, "flops")
            ):  # fmt: skip
                assert rows[key][-1] == str(run.growth(name, mode, quantity))
    assert "threads: 1, float32" in printed and "{" not in printed
    assert file.with_suffix(".md").read_text().strip() in printed
    for suffix in (".svg", ".png"):
        assert file.with_suffix(suffix).stat().st_size > 1000


def test_tables_and_picture_are_recreated_without_measuring_or_torch(
    ran: tuple[str, Path],
) -> None:
    file = ran[1]
    made = {each: file.with_suffix(each).read_bytes() for each in (".md", ".svg", ".png")}
    for suffix in made:
        file.with_suffix(suffix).unlink()
    # A module that is None in there cannot be imported.
    code = "import sys; sys.modules['torch'] = None; import lra.bench.__main__ as m;"
    code += f"sys.argv = ['lra bench', '--report', {str(file)!r}]; m.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == made[".md"].decode().strip()
    assert {each: file.with_suffix(each).read_bytes() for each in made} == made


def test_a_report_without_bench_records_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text('{"rows": []}')
    with pytest.raises(SystemExit) as ended:
        again.main(["other.json", "none.json"])
    assert ended.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "other.json: not the records of a bench of schema 1"
    assert second.startswith("none.json: not readable as JSON")
    monkeypatch.setattr(again, "results_dir", lambda: tmp_path)
    with pytest.raises(ConfigError, match="no records of a bench; `lra bench` writes them"):
        again.main([])


@pytest.mark.slow
def test_a_mistake_ends_the_bench_with_one_line_and_writes_nothing(tmp_path: Path) -> None:
    ran = bench(tmp_path, "attentions=[softmax,'linformer width=2']", "out=bench.json")
    assert ran.returncode == 2 and "attention.options.width: no such option" in ran.stderr
    assert "Traceback" not in ran.stderr and not (tmp_path / "bench.json").exists()
    for word, message in (
        ("lengths=[x]", "lengths=[x]: must be a whole number"),
        ("precision=half", "train.precision=half: must be one of"),
        ("lengths=[1000000000000]", "out of memory: "),
    ):
        ran = bench(tmp_path, "attentions=[softmax]", word, "out=bench.json")
        assert ran.returncode == 2 and ran.stderr.splitlines()[-1].startswith(message), ran.stderr
    # This is noticed before anything is measured, which takes minutes.
    ran = bench(tmp_path, "attentions=[softmax]", "out=/dev/null/bench.json")
    assert ran.returncode == 2 and "out=/dev/null: cannot be written to" in ran.stderr


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("repeats", 0, "repeats=0: must be at least 1"),
        ("batch_size", -1, "batch_size=-1: must be at least 1"),
        ("threads", -1, "threads=-1: must be at least 0"),
        (
            "lengths",
            [64, 64],
            "lengths=[64, 64]: must be at least one, each at least 1, without repeats",
        ),
        ("lengths", [0], "lengths=[0]: must be"),
        ("lengths", [], "lengths=[]: must be"),
    ],
)
def test_a_number_out_of_range_is_reported_with_its_key(key: str, value: Any, message: str) -> None:
    config = replace(lengths.BenchConfig(["softmax"], [32]), **{key: value})
    with pytest.raises(ConfigError) as refused:
        config.check()
    assert str(refused.value).startswith(message)


def test_a_cell_that_exceeds_the_memory_fails_alone_and_never_becomes_a_number() -> None:
    steps = iter(range(100))

    def step() -> None:
        if next(steps) == 4:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory: 16 GiB")

    each = Measurement("softmax", 65536, "training", step, flops=1, parameters=1)
    each.calls = 2
    device = torch.device("cpu")
    for _ in range(4):
        each.time(device)
    assert len(each.seconds) == 2
    cell = each.cell
    assert cell.failed == "out of memory" and not cell.seconds

    def wrong() -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        Measurement("mine", 32, "inference", wrong, flops=1, parameters=1).time(device)


def test_short_steps_are_timed_several_at_a_time() -> None:
    calls = []
    each = Measurement("mine", 32, "inference", lambda: calls.append(1), 1, 1)
    each.calls = 7
    each.time(torch.device("cpu"))
    assert len(calls) == 7 and len(each.seconds) == 1
    each.step = lambda: torch.ones(1 << 20)
    each.prepare(torch.device("cpu"))
    assert each.calls > 1 and each.peak >= 4 << 20


def test_the_bench_accepts_the_same_words_as_other_commands() -> None:
    words = ["attention=linformer,my_file:Mine", "attention.options.rank=2,4", "length=32, 64"]
    words += ["model.layers=1", "seed=0,1", "device=cpu", "attention@attention.inner=linear"]
    translated = request.of_lengths(words)
    assert translated[:2] == ["lengths=[32, 64]", "device=cpu"]
    texts = value_of(translated[2].removeprefix("attentions="))
    more = "+model.layers=1 +attention@attention.inner=linear"
    names = ("linformer", "my_file:Mine")
    assert texts == [f"{name} rank={rank} {more}" for name in names for rank in (2, 4)]
    assert request.of_lengths(["lengths=[32]"]) == ["lengths=[32]"]
    with pytest.raises(ConfigError, match="task=text,image: a bench uses the model of one task"):
        request.of_lengths(["task=text,image"])


def test_rows_of_a_backend_are_distinguished_by_no_more_words_than_needed() -> None:
    assert lengths.row_names(["softmax"], ["softmax +model.layers=1"]) == ["softmax"]
    texts = ["linformer rank=2 +model.layers=1", "linformer rank=4 +model.layers=1"]
    assert lengths.row_names(["linformer"] * 2, texts) == ["linformer rank=2", "linformer rank=4"]
    texts = ["softmax +model.layers=1", "softmax +model.layers=2"]
    assert lengths.row_names(["softmax"] * 2, texts) == [
        "softmax model.layers=1",
        "softmax model.layers=2",
    ]
    with pytest.raises(ConfigError, match="attentions: mra is given twice"):
        lengths.row_names(["softmax", "mra", "mra"], ["softmax", "mra", "mra"])


def test_pairs_count_as_two_sequences() -> None:
    bench = lengths.BenchConfig(["softmax"], [32], task="retrieval", batch_size=2)
    cell = Cell(attention="softmax", length=32, mode="training", seconds=[0.5])
    run = lengths.benched(bench, [cell], 1.0)
    assert run.sequences == 2
    here = Machine(name="x | y", processors=1, id="0")
    printed = page.page(here, run)
    assert rows_of(printed, "Tokens per second")["training softmax"] == ["256"]
    assert r"x \| y, 1 processors" in printed


def rounds(*times: tuple[float, float]) -> list[tuple[against.Seconds, against.Seconds]]:
    """Return rounds in which one cell took these seconds in both versions, and another the same."""
    mra, softmax = ("mra", 1024, "training"), ("softmax", 1024, "training")
    found: list[tuple[against.Seconds, against.Seconds]] = []
    for here, there in times:
        found.append(({mra: here, softmax: 1 + here % 0.1}, {mra: there, softmax: 1.03}))
    return found


def test_a_change_beyond_noise_is_named_and_noise_is_not() -> None:
    slower, steady = against.changes(rounds((1.31, 1.0), (2.58, 2.0), (1.30, 1.0), (1.29, 1.0)))
    assert slower.key[0] == "mra" and slower.words == "slower"
    assert slower.ratio == pytest.approx(1.295, abs=0.006)
    assert steady.words == "within noise"
    faster, _ = against.changes(rounds((1.0, 1.31), (2.0, 2.58), (1.0, 1.30), (1.0, 1.29)))
    assert faster.words == "faster"
    noise, _ = against.changes(rounds((1.3, 1.0), (0.9, 1.0), (1.1, 1.2), (1.5, 1.1)))
    assert noise.words == "within noise"
    # A cell that only one version has is compared with nothing, and named if it is the other.
    first, second = rounds((1.0, 1.0), (1.0, 1.0))
    assert len(against.changes([first, (second[0], {})])) == 0
    assert against.only_there([first, (second[0], {})]) == []
    assert [key[0] for key in against.only_there([first, ({}, second[1])])] == list(
        dict.fromkeys(key[0] for key in first[1])
    )


def test_chance_alone_names_none_of_many_cells() -> None:
    # Student's test names it when it is alone, but not among a hundred.
    times = [(1.02, 1.0), (1.06, 1.0), (1.03, 1.0), (1.05, 1.0)]
    [alone] = [each for each in against.changes(rounds(*times)) if each.key[0] == "mra"]
    assert alone.words == "slower"
    many = [
        ({("a", n, "training"): here * (1 + 0.3 * (n and (-1) ** (n + k))) for n in range(100)},
         {("a", n, "training"): there for n in range(100)})
        for k, (here, there) in enumerate(times)
    ]  # fmt: skip
    assert {each.words for each in against.changes(many)} == {"within noise"}


def test_records_of_older_code_are_compared_too(ran: tuple[str, Path], tmp_path: Path) -> None:
    row = {"attention": "mra", "length": 64, "seconds_per_step": 0.5}
    (tmp_path / "old.json").write_text(json.dumps({"rows": [row]}))
    assert against.seconds_in(tmp_path / "old.json") == {("mra", 64, "training"): 0.5}
    [run] = read(ran[1]).runs
    found = against.seconds_in(ran[1])
    assert found == {(c.attention, c.length, c.mode): c.median for c in run.cells}


def test_versions_are_measured_in_turn_with_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, tuple[str, ...]]] = []

    def run_bench(code: Path, words: list[str], out: Path) -> dict[against.Key, float]:
        called.append((code.name, tuple(words)))
        # No two measured ratios are equal.
        return {("mra", 64, "training"): 2.0 + len(called) / 1e3 if code.name == "here" else 1.0}

    monkeypatch.setattr(against, "run_bench", run_bench)
    measured = against.in_turn(Path("here"), Path("there"), ["lengths=[64]"], 3)
    [change] = against.changes(measured)
    assert [name for name, _ in called] == ["here", "there", "there", "here", "here", "there"]
    assert {words for _, words in called} == {("lengths=[64]",)}
    assert change.ratios == pytest.approx((2.0, 2.0, 2.0), rel=1e-2)
    assert change.words == "slower"
    assert "| mra " in against.table([change]) and "slower" in against.table([change])


@pytest.mark.slow
def test_a_commit_is_checked_out_while_it_is_measured_and_removed_afterwards(
    tmp_path: Path,
) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
                       cwd=tmp_path, check=True, capture_output=True)  # fmt: skip

    git("init")
    (tmp_path / "code.py").write_text("one")
    git("add", ".")
    git("commit", "-m", "one")
    (tmp_path / "code.py").write_text("two")
    with against.checked_out("HEAD", tmp_path) as folder:
        assert (folder / "code.py").read_text() == "one"
    assert not folder.exists() and not list((tmp_path / ".git" / "worktrees").glob("*"))
    with (
        pytest.raises(ConfigError, match="nothing_such"),
        against.checked_out("nothing_such", tmp_path),
    ):
        pass
    with pytest.raises(ConfigError, match="`lra bench` ended with 2"):
        against.run_bench(ROOT, ["attentions"], tmp_path / "x.json")


@pytest.mark.slow
def test_code_that_was_slowed_down_is_named(tmp_path: Path) -> None:
    for name in ("lra", "models", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "lra").unlink()
    subprocess.run(["cp", "-r", str(ROOT / "lra"), str(tmp_path / "lra")], check=True)
    update = tmp_path / "lra" / "update.py"
    text = update.read_text()
    slowed = text.replace("    optimiser.zero_grad()\n", "    import time; time.sleep(1)\n")
    assert slowed != text
    update.write_text(slowed)
    words = ["attentions=[softmax]", "lengths=[32]", *SMALL[1:2], "repeats=1", *SMALL[3:]]
    # Some twenty times slower, which no other process does to all rounds alike.
    found = against.changes(against.in_turn(tmp_path, ROOT, words, 4))
    [training] = [each for each in found if each.key[2] == "training"]
    assert training.words == "slower" and training.ratio > 3
