"""Show every value of a cell and where it comes from.

    lra show task=listops attention=mra scale=mini train.steps=100

The words are those of `lra.train`. A value comes from a file in `configs` or from the command line,
or it is the default of a dataclass or of a backend's `__init__`.
"""

import argparse
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from lra.build import build_attention, build_task, find_backend
from lra.compose import command, place
from lra.config import Config, ConfigError
from lra.paths import CONFIGS, PACKAGES
from lra.terminal import refused, run
from lra.variant import flat

COMMAND_LINE = "command line"
# Longer values are printed below their key.
_LONG = 24


@dataclass(frozen=True)
class Layer:
    """What one file, or the command line, sets.

    Args:
        name: The file, relative to the folder above `configs`, or `COMMAND_LINE`.
        keys: The keys that it sets, such as `train.steps`.
    """

    name: str
    keys: frozenset[str]


@dataclass(frozen=True)
class Value:
    """One value of a cell.

    Args:
        key: Its key, such as `train.steps`.
        value: What the cell has.
        origin: A layer's name, or whose default it is.
    """

    key: str
    value: Any
    origin: str


def layers(*words: str) -> list[Layer]:
    """Return the layers that set values of a cell, in order; later ones win.

    Raises:
        HydraException: A word names no group or option, or a file is missing.
    """
    ready = command(words)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        listed = loader.compute_defaults_list("train", ready, RunMode.RUN)
    found = []
    for default in listed.defaults:
        file = CONFIGS / f"{default.config_path}.yaml"
        # Schemas are not files, and Hydra's own files are not among ours.
        if file.exists() and (keys := _keys_of(file, default.package)):
            found.append(Layer(_from_root(file), keys))
    given: dict[str, Any] = {
        override.key_or_group: override.value()
        for override in listed.config_overrides
        if not override.is_delete() and not override.key_or_group.startswith("hydra.")
    }
    return [*found, Layer(COMMAND_LINE, frozenset(dict(flat(given))))] if given else found


def values(*words: str) -> list[Value]:
    """Return every value of a cell, including options that no file names.

    Raises:
        ConfigError: A word or an option is wrong.
    """
    config, _ = place(*words)
    complete, defaults = _with_defaults(config)
    origins = dict(defaults)
    for layer in layers(*words):
        origins |= dict.fromkeys(layer.keys, layer.name)
    return [Value(key, value, origins[key]) for key, value in flat(complete)]


def page(*words: str) -> str:
    """Return the layers and the values of a cell as a text for people.

    Raises:
        ConfigError: A word or an option is wrong.
    """
    config, folder = place(*words)
    shown = values(*words)
    lines = [f"{config.cell} of {config.protocol.name} at {config.scale}: {folder}", ""]
    lines += ["Layers (later ones win):", "  the defaults"]
    lines += [f"  {layer.name}" for layer in layers(*words)]
    left = max(len(value.key) for value in shown)
    middle = max(len(text) for value in shown if len(text := _text(value.value)) <= _LONG)
    part = None
    for value in shown:
        if part != (part := value.key.rpartition(".")[0].partition(".")[0]):
            lines.append("")
        text = _text(value.value)
        is_long = len(text) > _LONG
        lines.append(f"{value.key:<{left}}  {'' if is_long else text:<{middle}}  {value.origin}")
        if is_long:
            parts = value.value if isinstance(value.value, list) else [text]
            lines += [textwrap.indent(textwrap.fill(str(each), 92), " " * 6) for each in parts]
    return "\n".join(lines)


def main() -> None:
    """Print the page of the cell that the command line names."""
    parser = argparse.ArgumentParser(
        prog="lra show",
        description="Print every value of a cell and where it comes from.",
    )
    parser.add_argument("words", nargs="*", help="as for lra train: task=text attention=mra seed=1")
    with refused(ConfigError):
        print(page(*parser.parse_args().words))


def _keys_of(file: Path, package: str) -> frozenset[str]:
    """Return the keys that a file sets, under the package into which Hydra puts it."""
    node = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(node, dict)
    own = {str(key): value for key, value in node.items() if key not in ("defaults", "hydra")}
    return frozenset(dict(flat(own, f"{package}." if package else "")))


def _with_defaults(config: Config) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a cell's values with the options that are left to code, and whose defaults they are.

    Defaults are named for every key that has one, whether or not a file sets it.
    """
    complete = asdict(config)
    whose: dict[str, str] = dict(_fields_of(config, ""))
    task = build_task(config)
    assert is_dataclass(task)
    complete["task"]["options"] = {each.name: getattr(task, each.name) for each in fields(task)}
    whose |= dict(_fields_of(task, "task.options."))
    build_attention(config.attention)
    node, backend, where = complete["attention"], config.attention, "attention"
    while True:
        kind = find_backend(backend, where)
        parameters = inspect.signature(kind).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        defaults.pop("inner", None)
        node["options"] = defaults | node["options"]
        whose |= {f"{where}.options.{name}": _default_of(kind) for name in defaults}
        if backend.inner is None:
            return complete, whose
        node, backend, where = node["inner"], backend.inner, f"{where}.inner"


def _fields_of(instance: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for each in fields(instance):
        value, key = getattr(instance, each.name), f"{prefix}{each.name}"
        yield key, _default_of(type(instance))
        if is_dataclass(value):
            yield from _fields_of(value, f"{key}.")


def _default_of(kind: type) -> str:
    file = inspect.getsourcefile(kind)
    assert file is not None, kind
    return f"default of {kind.__name__}, {_from_root(Path(file).resolve())}"


def _from_root(file: Path) -> str:
    for root in (CONFIGS.parent, PACKAGES):
        if file.is_relative_to(root):
            return str(file.relative_to(root))
    return str(file)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    run(main)
