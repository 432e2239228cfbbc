"""Every protocol, and every file of its settings for a task or a backend, states source and aim."""

import csv
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lra.compose import load
from lra.paths import CONFIGS

ROOT = CONFIGS.parent
FILES = sorted(str(file.relative_to(CONFIGS)) for file in (CONFIGS / "protocol").rglob("*.yaml"))
# A keyword at the start of a comment, and the text up to the next one.
PART = re.compile(
    r"^# (Source|Deviations|Aims at|Parameters|Run): (.*?)(?=^# \w[\w ]*: |\Z)", re.M | re.S
)
# Tasks with their figures, and the family and method that published.csv lists them under.
AIM = re.compile(r"((?:\w+ [\d.]+ %,? ?)+)\(((?:[^()]|\([^()]*\))+?), ((?:[^(),]|\([^()]*\))+)\)")
# The text between two such groups, and after the last one.
BETWEEN = re.compile(r", |; with [\d,]+ steps ")
AFTER = re.compile(r"\.?|\. [^%]+")


def parts(name: str) -> list[tuple[str, str]]:
    lines = (CONFIGS / name).read_text().splitlines()
    header = []
    for line in lines:
        if not line.startswith("#"):
            break
        header.append(line)
    found = PART.findall("\n".join(header) + "\n")
    return [(word, re.sub(r"\s*\n#\s*", " ", text.strip())) for word, text in found]


def about(name: str) -> tuple[str, str, str]:
    """Return the protocol, task and backend of a file; an empty string stands for all of them."""
    path = Path(name).with_suffix("")
    if len(path.parts) == 2:
        return path.name, "", ""
    _, kind, protocol, choice = path.parts
    task, _, attention = choice.partition("_") if kind != "attention" else ("", "", choice)
    assert kind == "_".join(["task"] * bool(task) + ["attention"] * bool(attention))
    return protocol, task, attention


def published() -> list[dict[str, str]]:
    with open(ROOT / "results" / "published.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["metric"] == "accuracy_pct"]


def is_figure(value: str) -> bool:
    return re.fullmatch(r"[\d.]+", value) is not None


def check_aim(name: str, aim: str) -> None:
    """Check an aim against `results/published.csv`, including a claim that nothing is published."""
    protocol, task, attention = about(name)
    rows = published()
    ours = [row for row in rows if row["protocol"] == protocol and row["task"] == task]
    if aim.startswith("nothing"):
        # MRA-2 and MRA-2-s are `mra` and `mra_sparse`.
        family = attention.split("_")[0]
        there = [row for row in ours if family in row["method"].lower() and is_figure(row["value"])]
        # A protocol without any figures has none for a task either.
        assert (task or not [row for row in rows if row["protocol"] == protocol]) and not there
    elif "chance" in aim:
        classes = load(f"task={task}").task.num_classes
        assert aim.startswith(f"{100 // classes} %, chance")
        assert ours and not [row for row in ours if is_figure(row["value"])]
    else:
        groups = list(AIM.finditer(aim))
        assert groups and groups[0].start() == 0, f"no figure, nor 'nothing': {aim}"
        for one, two in zip(groups, groups[1:], strict=False):
            assert BETWEEN.fullmatch(aim, one.end(), two.start()), aim[one.end() : two.start()]
        assert AFTER.fullmatch(aim, groups[-1].end()), aim[groups[-1].end() :]
        values = {(row["family"], row["method"], row["task"]): row["value"] for row in rows}
        for figures, whose, method in (group.groups() for group in groups):
            for each, value in re.findall(r"(\w+) ([\d.]+) %", figures):
                assert task in ("", each)
                assert float(values[whose, method, each]) == float(value), f"{each} of {method}"


@pytest.mark.parametrize("name", FILES)
def test_a_header_states_source_deviations_aim_and_command(name: str) -> None:
    words = {word for word, text in parts(name) if len(text) > 3}
    # A protocol's source and deviations are values, since the tables print them.
    values = set() if any(about(name)[1:]) else {"Source", "Deviations"}
    assert words - {"Parameters"} == {"Source", "Deviations", "Aims at", "Run"} - values


@pytest.mark.parametrize("name", FILES)
def test_the_target_accuracy_is_a_row_of_the_published_figures(name: str) -> None:
    [aim] = [text for word, text in parts(name) if word == "Aims at"]
    check_aim(name, aim)


@pytest.mark.parametrize(
    ("name", "aim"),
    [
        # Figures were published for these.
        ("protocol/task/nystromformer/text.yaml", "nothing published; chance"),
        ("protocol/task_attention/lra/image_bigbird.yaml", "nothing that could be checked"),
        ("protocol/task/lra/image.yaml", "10 %, chance"),
        # Wrong chance level for a task with two classes.
        ("protocol/task/lra/pathx.yaml", "10 %, chance"),
        ("protocol/task/nystromformer/text.yaml", "as much as can be, nothing less"),
        # A wrong figure, one of another task, of an unknown method or without a source, and an
        # extra one beside a correct one.
        ("protocol/task/nystromformer/text.yaml", "text 65.03 % (mlpen, Transformer)"),
        ("protocol/task/nystromformer/text.yaml", "listops 37.10 % (mlpen, Transformer)"),
        ("protocol/task/nystromformer/text.yaml", "text 65.02 % (mlpen, Transformers)"),
        ("protocol/task/nystromformer/text.yaml", "text 65.02 %"),
        ("protocol/task/nystromformer/text.yaml", "text 65.02 % (mlpen, Transformer), or 70 %"),
        ("protocol/lra.yaml", "nothing"),
    ],
)
def test_an_aim_not_borne_out_by_published_figures_is_refused(name: str, aim: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        check_aim(name, aim)


# A user's own task lives elsewhere; tests/test_custom_task.py has one.
@pytest.mark.parametrize("name", [name for name in FILES if about(name)[1] != "custom"])
def test_the_commands_in_a_header_compose_to_cells_that_the_file_covers(name: str) -> None:
    protocol, task, attention = about(name)
    for word, text in parts(name):
        if word != "Run":
            continue
        program, overrides = text.replace("\\ ", "").split("lra train ", 1)
        assert not program
        words = shlex.split(overrides)
        choices = [
            [f"{each.key_or_group}={value}" for value in each.sweep_string_iterator()]
            if each.is_sweep_override()
            else [each.input_line]
            for each in OverridesParser.create().parse_overrides(words)
        ]
        # The first choice of each sweep, then each further choice once.
        first = [choice[0] for choice in choices]
        for place, choice in enumerate(choices):
            for value in choice[place > 0 :]:
                config = load(*first[:place], value, *first[place + 1 :])
                assert config.protocol.name == protocol
                assert task in ("", config.task.name)
                assert attention in ("", config.attention.name)


def test_figures_for_other_data_or_models_are_not_listed_under_our_tasks_and_methods() -> None:
    with open(ROOT / "results" / "published.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    images = {r["task"] for r in rows if "LRU" in r["family"] or r["method"] == "LRU"}
    # The LRU paper trains on coloured CIFAR.
    assert "image_colour" in images and "image" not in images
    # Its causal SPT has no rotary positions.
    assert not any("causal, rotary" in r["method"] for r in rows)
    keys = [(r["family"], r["method"], r["task"], r["metric"], r["source"]) for r in rows]
    assert len(set(keys)) == len(keys)
    assert {r["protocol"] for r in rows} >= {"s4", "s5", "mega", "lru"}
