"""What `python -m lra.train --help` says: the groups a person chooses from, and every key.

The meanings are those of the dataclasses' docstrings, so that there is one text for both.
"""

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints

from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from lra.config import Config
from lra.paths import CONFIGS

GROUPS = ("task", "attention", "protocol", "scale", "hydra/launcher")


def register() -> None:
    """Make both lists known to `configs/train.yaml`, as `${help_groups:}` and `${help_keys:}`."""
    OmegaConf.register_new_resolver("help_groups", groups, replace=True)
    OmegaConf.register_new_resolver("help_keys", keys, replace=True)


def groups() -> str:
    """Return a line for each group, with its options; needs an initialised Hydra."""
    loader = GlobalHydra.instance().config_loader()
    root = OmegaConf.to_container(OmegaConf.load(CONFIGS / "train.yaml"))
    assert isinstance(root, dict)
    chosen: dict[str, str] = {"hydra/launcher": "basic"}
    for entry in root["defaults"]:
        chosen |= {} if isinstance(entry, str) else entry
    lines = []
    for group in GROUPS:
        others = [each for each in loader.get_group_options(group) if each != chosen[group]]
        lines.append(_entry(group, ", ".join([f"{chosen[group]} (default)", *others])))
    return "\n".join(lines)


def keys() -> str:
    """Return a line for each key of `Config`: its meaning, and its default where it has one."""
    return "\n".join(_entry(key, text) for key, text in _keys(Config, ""))


def meanings(kind: type) -> dict[str, str]:
    """Return what the docstring of a dataclass says of its fields, by name."""
    _, _, arguments = (inspect.getdoc(kind) or "").partition("\nArgs:\n")
    entries = re.split(r"^    (\w+): ", arguments.partition("\n\n")[0], flags=re.M)[1:]
    texts = (" ".join(text.split()) for text in entries[1::2])
    return dict(zip(entries[::2], texts, strict=True))


def _keys(kind: Any, prefix: str) -> Iterator[tuple[str, str]]:
    texts, types = meanings(kind), get_type_hints(kind)
    # Keys of the cell itself before those of its parts.
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
    # Hydra substitutes what follows a dollar.
    text = text.replace("$", "$$")
    return textwrap.fill(text, 100, initial_indent=first, subsequent_indent=" " * len(first))
