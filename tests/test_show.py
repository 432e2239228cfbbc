"""What `python -m lra.show` and `python -m lra.train --help` say, against the files themselves."""

import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from lra import help, show
from lra.compose import load
from lra.config import (
    AttentionConfig,
    Config,
    PretrainConfig,
    ProtocolConfig,
    TaskConfig,
    TrainConfig,
)
from lra.paths import CONFIGS, ROOT
from models.sizes import ModelConfig

CELLS = [
    "",
    "task=text scale=mini",
    "protocol=lra task=image attention=bigbird",
    "task=retrieval attention=mra_sparse train.steps=9000 seed=3",
    "protocol=wavspa task=text attention=wavspa scale=mini",
    "task=pathx attention=fourier_space attention@attention.inner=mra_sparse scale=mini",
    "protocol=s4 task=image attention=s4d pretrain=spt",
]


def shown(words: str) -> dict[str, show.Value]:
    return {value.key: value for value in show.values(*words.split())}


def at(node: Any, key: str) -> Any:
    for part in key.split("."):
        node = node[part]
    return node


@pytest.mark.parametrize("words", CELLS)
def test_every_value_of_a_cell_is_shown_as_it_is_composed(words: str) -> None:
    found = shown(words)
    config = asdict(load(*words.split()))
    for part in ("task", "attention", "protocol", "model", "train", "pretrain"):
        for key, value in config[part].items():
            if not isinstance(value, dict):
                assert found[f"{part}.{key}"].value == value
        for key, value in config[part].get("options", {}).items():
            assert found[f"{part}.options.{key}"].value == value
    for key, value in config.items():
        if not isinstance(value, dict):
            assert found[key].value == value


@pytest.mark.parametrize("words", CELLS)
def test_a_value_is_in_the_file_that_it_is_said_to_come_from(words: str) -> None:
    files = {value.origin for value in shown(words).values() if value.origin.endswith(".yaml")}
    assert len(files) >= 4
    for key, value in shown(words).items():
        # The variant follows from the other values.
        if value.origin in files and key != "variant":
            node = OmegaConf.load(ROOT / value.origin)
            # A group's own file says `name` where the cell has `task.name`.
            packages = ("", "task.", "attention.", "attention.inner.", "pretrain.")
            inside = [OmegaConf.select(node, key.removeprefix(package)) for package in packages]
            assert value.value in inside, key


@pytest.mark.parametrize(
    ("words", "key", "origin", "other"),
    [
        ("task=text", "train.steps", "protocol/task/nystromformer/text", 9000),
        ("task=text scale=mini", "train.steps", "scale/task/mini/text", 777),
        ("task=text scale=mini", "train.batch_size", "scale/every_task/mini", 3),
        ("task=text scale=mini", "task.options.num_test", "scale/stand_in/mini", 77),
        ("task=listops scale=mini attention=mra", "attention.options.block_size",
         "scale/attention/mini/mra", 8),
        ("protocol=lra task=image", "model.layers", "protocol/task/lra/image", 7),
        ("protocol=lra task=image", "train.beta2", "protocol/lra", 0.5),
        ("protocol=lra task=image attention=longformer", "model.layers",
         "protocol/task_attention/lra/image_longformer", 7),
        ("protocol=lra task=image attention=longformer", "attention.options.window",
         "protocol/attention/lra/longformer", 64),
        ("task=text attention=mra_sparse", "attention.options.diagonal_blocks",
         "protocol/task_attention/nystromformer/text_mra", 2),
    ],
)  # fmt: skip
def test_changing_a_value_in_the_named_file_changes_the_cell(
    copied_configs: Path, words: str, key: str, origin: str, other: float
) -> None:
    assert shown(words)[key].origin == f"configs/{origin}.yaml"
    assert shown(words)[key].value != other
    file = copied_configs / f"{origin}.yaml"
    header = file.read_text().splitlines()[0]
    values = yaml.safe_load(file.read_text())
    *parents, last = key.split(".")
    at(values, ".".join(parents))[last] = other
    file.write_text(f"{header}\n{yaml.safe_dump(values, sort_keys=False)}")
    assert shown(words)[key].value == other
    assert at(asdict(load(*words.split())), key) == other


def test_the_command_line_comes_last() -> None:
    words = ["scale=mini", "train.steps=900", "hydra.verbose=false"]
    found = {each.key: each for each in show.values(*words, "attention.options={fused: false}")}
    assert (found["train.steps"].value, found["attention.options.fused"].value) == (900, False)
    given = [key for key, each in found.items() if each.origin == show.COMMAND_LINE]
    assert given == ["attention.options.fused", "train.steps"]


def test_a_value_that_no_file_sets_is_marked_as_a_default_of_its_class() -> None:
    found = shown("task=pathfinder")
    assert found["train.clip_norm"].origin == "default of TrainConfig, lra/config.py"
    assert found["model.gelu"].origin == "default of ModelConfig, models/sizes.py"
    contour = found["task.options.contour_length"]
    assert contour.value == 14 and contour.origin.startswith("default of Pathfinder, lra/tasks/")


def test_a_custom_attention_shows_its_options_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        from torch import nn
        class Mine(nn.Module):
            pad_invariant = True
            def __init__(self, shape, *, window: int = 5, rate: float = 0.5):
                super().__init__()
    """
    (tmp_path / "shown_backend.py").write_text("\n".join(line[8:] for line in code.splitlines()))
    monkeypatch.syspath_prepend(tmp_path)
    words = "attention=custom attention.path=shown_backend:Mine +attention.options.window=7"
    found = shown(words)
    window, rate = (found[f"attention.options.{name}"] for name in ("window", "rate"))
    assert (window.value, window.origin) == (7, show.COMMAND_LINE)
    assert rate.value == 0.5
    assert rate.origin == f"default of Mine, {tmp_path / 'shown_backend.py'}"


def test_layers_are_listed_in_order_of_precedence() -> None:
    names = [layer.name for layer in show.layers(
        "protocol=lra", "task=image", "attention=bigbird", "scale=mini", "seed=2"
    )]  # fmt: skip
    assert names == [
        *(f"configs/{name}.yaml" for name in (
            "task/image", "attention/bigbird", "pretrain/none", "protocol/lra",
            "protocol/task/lra/image",
            "protocol/attention/lra/bigbird", "protocol/task_attention/lra/image_bigbird",
            "scale/every_task/mini", "scale/stand_in/mini", "scale/task/mini/image", "scale/mini",
                "train",
        )),
        show.COMMAND_LINE,
    ]  # fmt: skip


def run(module: str, *words: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_the_page_has_a_line_for_each_value_and_fits_a_terminal() -> None:
    code, page, _ = run("lra.show", "task=text", "attention=mra", "scale=mini")
    assert code == 0
    lines = page.splitlines()
    for value in shown("task=text attention=mra scale=mini").values():
        [line] = [line for line in lines if line.startswith(f"{value.key} ")]
        assert line.endswith(f"  {value.origin}")
    assert max(len(line) for line in lines) <= 120
    assert "results/runs/mini/nystromformer/text/mra/default/seed0" in lines[0]


def test_a_wrong_word_is_reported_without_a_traceback() -> None:
    code, page, error = run("lra.show", "task=lisstops")
    assert (code, page) == (2, "") and "Traceback" not in error
    assert "task=lisstops: did you mean listops?" in error


CLASSES = [Config, TaskConfig, AttentionConfig, ProtocolConfig, ModelConfig]
CLASSES += [TrainConfig, PretrainConfig]


@pytest.mark.parametrize("kind", CLASSES)
def test_a_docstring_explains_every_key_and_nothing_else(kind: type) -> None:
    texts = help.meanings(kind)
    assert list(texts) == [field.name for field in fields(kind)]
    assert all(len(text) > 3 and text[-1] == "." for text in texts.values())


def test_help_lists_all_choices_and_every_key_with_its_meaning() -> None:
    code, text, _ = run("lra.train", "--help")
    assert code == 0
    flat = " ".join(text.split())
    groups, keys = text.split("== Keys")
    lines = groups.split("== Groups")[1].splitlines()[1:]
    # Continuation lines of a group are indented further.
    listed = [line.split()[0] for line in lines if line[:3].strip()]
    assert listed == [*help.GROUPS, *help.OPTIONAL]
    assert "nystromformer (default), lra, lru, mega, s4" in flat and "protocol/task" not in groups
    for file in [*CONFIGS.glob("task/*.yaml"), *CONFIGS.glob("attention/*.yaml")]:
        assert file.stem in groups
    for value in shown("attention=wavspa").values():
        if ".options." not in value.key and ".inner." not in value.key:
            assert f"\n  {value.key} " in keys
    for kind in CLASSES:
        for name, meaning in help.meanings(kind).items():
            if name not in ("task", "protocol", "model", "train", "attention", "pretrain"):
                assert meaning in flat, name
    assert "lra show" in text and "$" not in text
