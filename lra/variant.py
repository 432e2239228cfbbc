"""What departs from a recipe, and the name that a folder gets from it."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

DEFAULT = "default"
# What may come before training, and the name of nothing.
PRETRAININGS, NO_PRETRAINING = ("spt",), "none"
# Of a record that is older than what tells it.
UNKNOWN = "unknown"
LONGEST = 72
# What names a cell or says where and how it is run; a recipe says nothing of it.
_APART = re.compile(
    r"variant|seed|scale|device|threads|data_dir|cache_dir|runs_dir|force|data(\..*)?|keep"
    r"|task\.(name|path)|pretrain\.name|attention(\.inner)*\.path|attention\.name|protocol\..*"
    r"|train\.(checkpoint_seconds|micro_batch)"
)
_UNSAFE = re.compile(r"[^\w.,=+-]")
ABSENT = "its default"


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings by dotted key; an empty mapping has none."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def departures(here: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what departs from a recipe: values by key, here and in the recipe.

    Args:
        here: Values of a cell, nested. A key that it lacks departs from nothing: a record may be
            older than it.
        recipe: Those of its recipe.
    """
    theirs = dict(flat(recipe))
    return {
        key: (value, theirs.get(key, ABSENT))
        for key, value in sorted(flat(here))
        if not _APART.fullmatch(key) and _plain(value) != _plain(theirs.get(key, ABSENT))
    }


def told(departing: Mapping[str, tuple[Any, Any]]) -> str:
    """Return departures in words, such as `train.steps=3 instead of 5000`; empty for none."""
    return ", ".join(
        f"{key}={_text(here)} instead of {_text(recipe)}"
        for key, (here, recipe) in departing.items()
    )


def name(departing: Mapping[str, tuple[Any, Any]]) -> str:
    """Return the variant's name, such as `learning_rate=0.001,steps=3`; `default` for none.

    It can be a folder's name on every system, and two that differ have two names.
    """
    short = dict(zip(departing, _shortened(departing), strict=True))
    whole = ",".join(f"{short[key]}={_text(here)}" for key, (here, _) in departing.items())
    safe = _UNSAFE.sub("_", whole)
    if safe == whole and len(safe) <= LONGEST:
        return safe or DEFAULT
    return f"{safe[:LONGEST]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def with_pretraining(own: str, pretrain: str) -> str:
    """Return a variant's name, after that of the pretraining where there is some.

    Args:
        own: The name without it.
        pretrain: Such as `spt`, or `none`.
    """
    if pretrain == NO_PRETRAINING:
        return own
    return pretrain if own == DEFAULT else f"{pretrain},{own}"


def problem_with_pretraining(own: str, pretrain: str) -> str:
    """Return why a variant's name hides whether there was pretraining; nothing where it tells.

    Runs with and without it would share their folder and their row of a table.
    """
    tells = re.match(rf"({'|'.join(PRETRAININGS)})(?![^,_-])", own)
    told = tells[1] if tells else NO_PRETRAINING
    if told == pretrain:
        return ""
    if tells:
        return f"says that there was pretraining; it needs pretrain={told}, or another name"
    return f"with pretrain={pretrain} it must begin with {pretrain}, such as {pretrain}-{own}"


def _shortened(keys: Iterable[str]) -> Iterator[str]:
    """Yield the last parts of keys, as many as tell them apart."""
    all_parts = [key.split(".") for key in keys]
    for parts in all_parts:
        # Its keys are those of training once more.
        least = 2 if parts[0] == "pretrain" else 1
        for count in range(least, len(parts) + 1):
            alike = [other for other in all_parts if other[-count:] == parts[-count:]]
            if len(alike) == 1 or count == len(parts):
                # `attention.inner.name` is the backend inside.
                text = ".".join(parts[-count:])
                yield "inner" if parts[-2:] == ["inner", "name"] and count == 1 else text
                break


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "-".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value)
