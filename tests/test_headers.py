"""Every protocol, recipe and pairing says where it comes from and what to expect of it."""

import csv
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lra.config import CONFIGS, load

ROOT = CONFIGS.parent
FILES = sorted(
    str(file.relative_to(CONFIGS))
    for group in ("protocol", "recipe", "pairing")
    for file in (CONFIGS / group).rglob("*.yaml")
)
# A word at the start of a comment, and all up to the next one.
PART = re.compile(
    r"^# (Source|Deviations|Aims at|Parameters|Run): (.*?)(?=^# \w[\w ]*: |\Z)", re.M | re.S
)
# Tasks with their figures, and whose they are: the family and the method of published.csv.
AIM = re.compile(r"((?:\w+ [\d.]+ %,? ?)+)\(((?:[^()]|\([^()]*\))+?), ((?:[^(),]|\([^()]*\))+)\)")


def parts(name: str) -> list[tuple[str, str]]:
    lines = (CONFIGS / name).read_text().splitlines()
    header = []
    for line in lines:
        if not line.startswith("#"):
            break
        header.append(line)
    found = PART.findall("\n".join(header) + "\n")
    return [(word, re.sub(r"\s*\n#\s*", " ", text.strip())) for word, text in found]


def published() -> dict[tuple[str, str, str], float]:
    with open(ROOT / "results" / "published.csv", newline="") as file:
        return {
            (row["family"], row["method"], row["task"]): float(row["value"])
            for row in csv.DictReader(file)
            if row["metric"] == "accuracy_pct" and re.fullmatch(r"[\d.]+", row["value"])
        }


@pytest.mark.parametrize("name", FILES)
def test_a_header_has_source_deviations_aim_and_command(name: str) -> None:
    words = [word for word, text in parts(name) if len(text) > 3]
    # A protocol's source and deviations are values, since the tables print them.
    expected = (
        {"Aims at", "Run"}
        if name.startswith("protocol")
        else {
            "Source",
            "Deviations",
            "Aims at",
            "Run",
        }
    )
    assert set(words) - {"Parameters"} == expected


@pytest.mark.parametrize("name", FILES)
def test_the_accuracy_aimed_at_is_a_row_of_the_published_figures(name: str) -> None:
    rows = published()
    [aim] = [text for word, text in parts(name) if word == "Aims at"]
    groups = AIM.findall(aim)
    assert groups or "nothing" in aim or "chance" in aim
    for figures, family, method in groups:
        for task, value in re.findall(r"(\w+) ([\d.]+) %", figures):
            assert rows[family, method, task] == float(value), f"{task} of {family}, {method}"
    numbers = re.findall(r"[\d.]+ %", aim)
    assert len(numbers) == sum(len(re.findall("%", figures)) for figures, _, _ in groups) or (
        "chance" in aim
    )


@pytest.mark.parametrize("name", FILES)
def test_the_commands_of_a_header_compose_to_what_the_file_is_about(name: str) -> None:
    group, protocol, *rest = Path(name).with_suffix("").parts
    for word, text in parts(name):
        if word != "Run":
            continue
        program, overrides = text.replace("\\ ", "").split("lra.train ", 1)
        assert program == "python -m "
        words = [each for each in shlex.split(overrides) if each != "-m"]
        choices = [
            [f"{each.key_or_group}={value}" for value in each.sweep_string_iterator()]
            if each.is_sweep_override()
            else [each.input_line]
            for each in OverridesParser.create().parse_overrides(words)
        ]
        # The first of each sweep, then each further choice once.
        first = [choice[0] for choice in choices]
        for place, choice in enumerate(choices):
            for value in choice[place > 0 :]:
                config = load(*first[:place], value, *first[place + 1 :])
                assert config.protocol.name == protocol
                if group == "recipe":
                    assert config.task.name == rest[0]
                if group == "pairing":
                    cell = f"{config.task.name}_{config.attention.name}"
                    assert rest[0] in (cell, config.attention.name)
