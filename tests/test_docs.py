"""README and docs: links lead somewhere, commands and code run, names are all there."""

import ast
import json
import re
import shlex
import statistics
from pathlib import Path
from typing import Any

import pytest

import lra.check
from lra.__main__ import COMMANDS
from lra.compose import load
from lra.paths import CONFIGS
from lra.tasks.registry import TASKS
from lra.words import Groups, complete, expand
from models import ATTENTION

ROOT = Path(__file__).resolve().parents[1]
README, GUIDE = ROOT / "README.md", ROOT / "docs" / "attention.md"
FINDINGS = ROOT / "results" / "FINDINGS.md"
RUNS = ROOT / "results" / "runs" / "small" / "nystromformer"
PAGES = [README, ROOT / "CONTRIBUTING.md", FINDINGS, *sorted((ROOT / "docs").glob("*.md"))]
# The commands whose words describe cells.
OF_CELLS = ("train", "plan", "report", "show", "data", "preflight", "reproduce")
PLACES = "lra|models|configs|scripts|results|tests|docs"

page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def python_of(file: Path) -> str:
    [code] = re.findall(r"```python\n(.*?)```", file.read_text(), re.DOTALL)
    return code


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the examples of the guides where they can be imported."""
    (tmp_path / "my_attention.py").write_text(python_of(GUIDE))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    for name, code in zip(("nearby", "same_ends"), blocks, strict=True):
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def commands(file: Path) -> list[str]:
    """Return the lines of a page's indented blocks that call `lra`."""
    text = re.sub(r" *\\\n *", " ", file.read_text())
    return re.findall(r"^    (lra [^\n]+)", text, re.MULTILINE)


def test_readme_is_at_most_150_lines() -> None:
    assert len(README.read_text().splitlines()) <= 150


def tables(page: Path) -> list[list[list[str]]]:
    """Return the tables of a page as rows of cells, the header first, without the line below it."""
    found = re.findall(r"(?:^ *\|.*\n)+", page.read_text(), re.MULTILINE)
    rows = [[line.strip().strip("|").split("|") for line in each.splitlines()] for each in found]
    return [[[cell.strip() for cell in row] for row in [each[0], *each[2:]]] for each in rows]


def result(task: str, method: str) -> dict[str, Any] | None:
    """Return the committed record of a cell at the small scale, or None if there is none."""
    name, _, variant = method.partition(" ")
    folder = RUNS / task / name / (variant.strip("()") or "default") / "seed0"
    file = folder / "result.json"
    return json.loads(file.read_text()) if file.exists() else None


@pytest.mark.parametrize("page", [README, FINDINGS], ids=lambda page: page.stem)
def test_the_table_of_the_small_scale_matches_the_records(page: Path) -> None:
    every = [[cell.removesuffix(" (other)") for cell in table[0]] for table in tables(page)]
    header = ["attention", "listops", "text", "retrieval", "image", "pathfinder"]
    table = tables(page)[every.index(header)]
    methods = {row[0]: row[1:] for row in table if row[0] in ATTENTION}
    assert {"softmax", "fourier", "mra", "wavspa"} <= methods.keys()
    trained = {folder.parts[-2] for task in header[1:] for folder in RUNS.glob(f"{task}/*/default")}
    assert trained <= methods.keys()
    for method, shown in methods.items():
        assert shown == [over_seeds(task, method) for task in header[1:]], method


def over_seeds(task: str, method: str) -> str:
    """Return the accuracy of a cell in percent, with the deviation over its seeds if it has any."""
    files = (RUNS / task / method / "default").glob("seed*/result.json")
    found = [100 * json.loads(file.read_text())["test_accuracy"] for file in files]
    if len(found) < 2:
        return f"{found[0]:.1f}" if found else "-"
    return f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f}"


def test_the_minutes_of_the_small_scale_match_the_records() -> None:
    [table] = [table for table in tables(ROOT / "docs/small.md") if table[0][0] == "attention"]
    total = 0.0
    for method, *shown in table[1:]:
        for task, minutes in zip(table[0][1:], shown, strict=True):
            record = result(task, method)
            if record is None:
                assert minutes == "-", (task, method)
                continue
            updates = record["steps"] / record["steps_per_second"]
            total += updates
            assert minutes == f"{record['seconds'] / 60:.0f} ({updates / 60:.0f})", (task, method)
    assert f"{total / 3600:.1f} hours of one thread" in (ROOT / "docs/small.md").read_text()


def test_the_table_of_recall_matches_the_records() -> None:
    [table] = [table for table in tables(ROOT / "docs/range.md") if "498–1023" in table[0]]
    for method, *shown in table[1:-1]:
        record = result("recall", method)
        assert record is not None, method
        shares = [100 * each["correct"] / each["total"] for each in record["test_by_group"]]
        assert shown[: len(shares)] == [f"{share:.1f}" for share in shares], method
    trained = {f"{run.parts[-2]} ({run.name})" for run in RUNS.glob("recall/*/*")}
    assert trained <= {f"{row[0]} (default)" for row in table} | {row[0] for row in table}


@page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\[[^]`]+\]\(([^)#\s]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@page
def test_every_file_that_is_named_exists(page: Path) -> None:
    for name in re.findall(rf"`((?:{PLACES})/[\w./-]+)`", page.read_text()):
        # Files that a run makes are not there yet, nor are those that a reader adds.
        if not name.startswith("results/") or name.endswith((".csv", ".md")):
            assert (ROOT / name).exists(), name


@page
def test_every_command_exists_and_its_words_are_valid(page: Path, examples: None) -> None:
    groups = Groups((CONFIGS,))
    for line in commands(page):
        name, *words = shlex.split(line.partition("  #")[0])[1:]
        assert name in COMMANDS, line
        if "--out-dir" in words:
            del words[(place := words.index("--out-dir")) : place + 2]
        if name in OF_CELLS and not any(word.isupper() for word in words):
            for cell in expand(complete(words, groups), groups):
                load(*cell)


def test_readme_names_every_backend_task_and_protocol() -> None:
    text = README.read_text()
    protocols = [file.stem for file in (CONFIGS / "protocol").glob("*.yaml")]
    for name in [*ATTENTION, *TASKS, *protocols]:
        assert f"`{name}`" in text, name


def source_of(file: str, name: str) -> str:
    """Return a test with functions of its file that it calls; if it runs the contract, that too."""
    text = (ROOT / "tests" / file).read_text()
    functions = {
        node.name: ast.get_source_segment(text, node) or ""
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }
    own = functions[name]
    called = [source for other, source in functions.items() if f"{other}(" in own]
    contract = (ROOT / "lra" / "contract.py").read_text() if "CHECKS" in text else ""
    return "\n".join([own, *called, contract])


def test_every_property_of_a_layer_names_its_test_and_the_tolerance_of_that() -> None:
    section = (ROOT / "docs" / "protocols.md").read_text().partition("## Properties of the layers")
    rows = re.findall(r"^\| (P\d+ )?\| (.*)\| (`.*`) \| (.+) \| `(.+)` \|$", section[2], re.M)
    assert [number.strip() for number, *_ in rows if number] == [f"P{n}" for n in range(1, 13)]
    assert len(rows) == section[2].count("\n| ") - 1
    backends: set[str] = set()
    for number, words, of, at_most, test in rows:
        # A cell left empty is as in the row above.
        assert words.strip() or not number
        backends |= set(re.findall(r"`(\w+)`", of))
        text = source_of(*test.split("::"))
        for small in re.findall(r"\d+e-\d+", f"{words} {at_most}"):
            # The tolerance of torch if none is given.
            default = small == "1e-7" and re.search(r"assert_close\((?!.*atol)", text)
            assert default or small in text, f"{small} of {test}"
        for percent in re.findall(r"(\d+) %", at_most):
            assert f"{int(percent) / 100:g}" in text, f"{percent} % of {test}"
    assert backends == {"s4d", "s5", "lru", "ema", "mega", "ssd", "gated_delta"} <= set(ATTENTION)


@pytest.mark.parametrize("file", [README, GUIDE], ids=lambda file: file.stem)
def test_the_attention_of_a_page_keeps_the_contract(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / f"from_{file.stem.lower()}.py").write_text(python_of(file))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        lra.check.main([f"from_{file.stem.lower()}:Mean", "--fast"])
    printed = capsys.readouterr().out.splitlines()
    assert stopped.value.code == 0, printed
    shown = re.findall(r"^    ((?:pass|skip|FAIL)  .*)", file.read_text(), re.MULTILINE)
    if not shown:  # only the guide shows what is printed
        assert file == README
        return
    assert len(shown) == len(printed) - 1
    for here, there in zip(printed, shown, strict=False):
        # The first takes long and is left out here; the second may find a GPU.
        if "torch.compile" not in here and "A GPU" not in here:
            assert here == there
