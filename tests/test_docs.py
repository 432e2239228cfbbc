"""README and docs: links lead somewhere, commands and code run, names are all there."""

import re
import shlex
from pathlib import Path

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
PAGES = [README, ROOT / "CONTRIBUTING.md", FINDINGS, *sorted((ROOT / "docs").glob("*.md"))]
# Those whose words describe cells.
OF_CELLS = ("train", "plan", "report", "show", "data", "preflight", "reproduce")
PLACES = "lra|models|configs|scripts|results|tests|docs"

page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def python_of(file: Path) -> str:
    [code] = re.findall(r"```python\n(.*?)```", file.read_text(), re.DOTALL)
    return code


@pytest.fixture
def my_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the example of the guide where it is imported from."""
    (tmp_path / "my_attention.py").write_text(python_of(GUIDE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def commands(file: Path) -> list[str]:
    """Return the lines of a page's indented blocks that call `lra`."""
    text = re.sub(r" *\\\n *", " ", file.read_text())
    return re.findall(r"^    (lra [^\n]+)", text, re.MULTILINE)


def test_readme_is_at_most_150_lines() -> None:
    assert len(README.read_text().splitlines()) <= 150


@page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\[[^]`]+\]\(([^)#\s]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@page
def test_every_file_that_is_named_exists(page: Path) -> None:
    for name in re.findall(rf"`((?:{PLACES})/[\w./-]+)`", page.read_text()):
        # What a run makes is not there yet, nor is what a reader adds.
        if not name.startswith("results/") or name.endswith((".csv", ".md")):
            assert (ROOT / name).exists(), name


@page
def test_every_command_exists_and_its_words_mean_something(page: Path, my_attention: None) -> None:
    groups = Groups((CONFIGS,))
    for line in commands(page):
        name, *words = shlex.split(line.partition("  #")[0])[1:]
        assert name in COMMANDS, line
        if name in OF_CELLS and not any(word.isupper() for word in words):
            for cell in expand(complete(words, groups), groups):
                load(*cell)


def test_readme_names_every_backend_task_and_protocol() -> None:
    text = README.read_text()
    protocols = [file.stem for file in (CONFIGS / "protocol").glob("*.yaml")]
    for name in [*ATTENTION, *TASKS, *protocols]:
        assert f"`{name}`" in text, name


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
