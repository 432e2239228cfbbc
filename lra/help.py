"""The text of `lra train --help`: the groups a user chooses from, and every key.

The meanings are taken from the docstrings of the dataclasses, so that one text serves both. Hydra's
own help first reads every file of every group, which takes seconds.
"""

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib.util import find_spec
from typing import Any, get_type_hints

from omegaconf import OmegaConf

from lra.config import Config
from lra.paths import CONFIGS
from lra.words import Groups

GROUPS = ("task", "attention", "pretrain", "protocol", "scale", "hydra/launcher")
# Groups of which no option need be chosen.
OPTIONAL = {
    "experiment": "the grid of a table, for lra reproduce",
    "search": "over hyperparameters, with pip install -e '.[optuna]'",
    "debug": "some seconds of training, to see whether code runs",
}
# Launchers by the package that provides them.
LAUNCHERS = {
    "hydra_plugins.hydra_joblib_launcher": ("joblib",),
    "hydra_plugins.hydra_submitit_launcher": ("submitit_local", "submitit_slurm"),
}
USAGE = """\
Train one cell of the Long Range Arena suite, or a sweep of them.
Usage: lra train task=TASK attention=BACKEND [scale=mini] [key=value ...]
       lra train task=A,B attention=C,my_file:MyAttention seed=0,1,2"""


def text() -> str:
    """Return the whole help text."""
    return f"""{USAGE}

== Groups: choose one option of each with group=option ==
{groups()}

== Keys: change any with key=value; [default] holds unless a task or a protocol sets another ==
{keys()}

== To show every value of a cell and the file that it comes from ==
  lra show task=listops attention=mra scale=mini

Hydra's flags work too: --cfg job prints the configuration, --hydra-help lists all flags."""


def groups() -> str:
    """Return a line for each group, with its options."""
    root = OmegaConf.to_container(OmegaConf.load(CONFIGS / "train.yaml"))
    assert isinstance(root, dict)
    chosen: dict[str, str] = {"hydra/launcher": "basic"}
    for entry in root["defaults"]:
        chosen |= {} if isinstance(entry, str) else entry
    lines = []
    for group in GROUPS:
        options = Groups((CONFIGS,)).options(group)
        if group == "hydra/launcher":
            there = [names for package, names in LAUNCHERS.items() if _is_there(package)]
            options = sorted([*options, *(name for names in there for name in names)])
        others = [each for each in options if each != chosen[group]]
        lines.append(_entry(group, ", ".join([f"{chosen[group]} (default)", *others])))
    for group, about in OPTIONAL.items():
        names = ", ".join(Groups((CONFIGS,)).options(group))
        lines.append(_entry(group, f"{names}: {about}"))
    return "\n".join(lines)


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # not even the folder of plugins
        return False


def keys() -> str:
    """Return a line for each key of `Config`: its meaning, and its default if it has one."""
    return "\n".join(_entry(key, text) for key, text in _keys(Config, ""))


def meanings(kind: type) -> dict[str, str]:
    """Return what the docstring of a dataclass says about its fields, by name."""
    _, _, arguments = (inspect.getdoc(kind) or "").partition("\nArgs:\n")
    entries = re.split(r"^    (\w+): ", arguments.partition("\n\n")[0], flags=re.M)[1:]
    texts = (" ".join(text.split()) for text in entries[1::2])
    return dict(zip(entries[::2], texts, strict=True))


def _keys(kind: Any, prefix: str) -> Iterator[tuple[str, str]]:
    texts, types = meanings(kind), get_type_hints(kind)
    # Keys of the cell itself come before those of its parts.
    for field in sorted(fields(kind), key=lambda field: is_dataclass(types[field.name])):
        name, inside = f"{prefix}{field.name}", types[field.name]
        if is_dataclass(inside):
            yield from _keys(inside, f"{name}.")
        else:
            yield name, texts[field.name] + _default(field)


def _default(field: "Field[Any]") -> str:
    if field.default is MISSING or field.default is None:
        return ""
    text = str(field.default)
    return f" [{text.lower() if isinstance(field.default, bool) else text}]"


def _entry(name: str, text: str) -> str:
    first = f"  {name:<24}  "
    return textwrap.fill(text, 100, initial_indent=first, subsequent_indent=" " * len(first))
