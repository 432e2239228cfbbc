"""Departures from a recipe, and the folder name that follows from them."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

DEFAULT = "default"
# Kinds of pretraining, and the name for none.
PRETRAININGS, NO_PRETRAINING = ("spt",), "none"
# Value for records that are too old to say.
UNKNOWN = "unknown"
MAX_LENGTH = 72
# Keys that name a cell or say where and how it is run; a recipe does not cover them.
_NOT_IN_RECIPE = re.compile(
    r"variant|seed|scale|device|threads|data_dir|cache_dir|runs_dir|force|data(\..*)?|keep"
    r"|task\.(name|path)|pretrain\.name|attention(\.inner)*\.path|attention\.name|protocol\..*"
    r"|train\.(checkpoint_seconds|micro_batch)"
)
_UNSAFE = re.compile(r"[^\w.,=+-]")
ABSENT = "its default"


def flat(
    values: Mapping[str, Any], prefix: str = "", keep_empty: bool = False
) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings by dotted key.

    Args:
        values: The outermost mapping.
        prefix: What precedes its keys.
        keep_empty: Whether an empty mapping is a leaf; otherwise it has none.
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and (value or not keep_empty):
            yield from flat(value, f"{prefix}{key}.", keep_empty)
        else:
            yield f"{prefix}{key}", value


def departures(here: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the departures from a recipe: by key, the value here and the value in the recipe.

    Args:
        here: Values of a cell, nested. A missing key is no departure: a record may be older than
            the key.
        recipe: Values of its recipe, nested.
    """
    theirs = dict(flat(recipe))
    return {
        key: (value, theirs.get(key, ABSENT))
        for key, value in sorted(flat(here))
        if not _NOT_IN_RECIPE.fullmatch(key) and _plain(value) != _plain(theirs.get(key, ABSENT))
    }


def describe(departing: Mapping[str, tuple[Any, Any]]) -> str:
    """Return departures in words, such as `train.steps=3 instead of 5000`; empty for none."""
    return ", ".join(
        f"{key}={_text(here)} instead of {_text(recipe)}"
        for key, (here, recipe) in departing.items()
    )


def name(departing: Mapping[str, tuple[Any, Any]]) -> str:
    """Return the variant's name, such as `learning_rate=0.001,steps=3`; `default` for none.

    It can be a folder's name on every system, and departures that differ have different names.
    """
    short = dict(zip(departing, _shortened(departing), strict=True))
    whole = ",".join(f"{short[key]}={_text(here)}" for key, (here, _) in departing.items())
    safe = _UNSAFE.sub("_", whole)
    if safe == whole and len(safe) <= MAX_LENGTH:
        return safe or DEFAULT
    return f"{safe[:MAX_LENGTH]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def with_pretraining(own: str, pretrain: str) -> str:
    """Return a variant's name, preceded by that of the pretraining if there is any.

    Args:
        own: The name without the pretraining.
        pretrain: Such as `spt`, or `none`.
    """
    if pretrain == NO_PRETRAINING:
        return own
    return pretrain if own == DEFAULT else f"{pretrain},{own}"


def problem_with_pretraining(own: str, pretrain: str) -> str:
    """Return why a variant's name hides whether there was pretraining; empty if it does not.

    Runs with and without pretraining would share a folder and a row of a table.
    """
    match = re.match(rf"({'|'.join(PRETRAININGS)})(?![^,_-])", own)
    named = match[1] if match else NO_PRETRAINING
    if named == pretrain:
        return ""
    if match:
        return f"names pretraining; set pretrain={named} or choose another name"
    return f"with pretrain={pretrain} it must begin with {pretrain}, such as {pretrain}-{own}"


def _shortened(keys: Iterable[str]) -> Iterator[str]:
    """Yield the last parts of keys, as many as distinguish them."""
    all_parts = [key.split(".") for key in keys]
    for parts in all_parts:
        # The keys of pretraining are also those of training.
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
