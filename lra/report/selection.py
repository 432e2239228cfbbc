"""Select the records that a report shows, by the words of its command."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lra.compose import departures
from lra.config import ConfigError, value_at
from lra.paths import runs_dir
from lra.record import Record
from lra.variant import UNKNOWN, describe
from lra.words import Groups, choices, seed_of, value_of

# Keys that a record lacks, and values that say nothing about a record.
_OF_NO_RECORD = {"data_dir", "cache_dir", "runs_dir", "force"}
_OF_NO_RECORD |= {"train.checkpoint_seconds", "train.micro_batch"}
_UNDECIDED = {"device": "auto", "threads": 0, "train.precision": "float16_on_gpu"}
_OF_THE_RECORD = ("task", "attention", "seed", "variant", "device", "scale", "protocol", "pretrain")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Records of one scale and protocol.

    Args:
        runs_dir: Folder of run folders.
        scale: Scale.
        protocol: Protocol.
        tasks: Tasks asked for, which get a column whether trained or not; empty selects all.
        attentions: Backends asked for, which get a row.
        seeds: Seeds asked for, which every cell should have.
        values: Values of other keys; a record must have one of them for each key.
    """

    runs_dir: Path
    scale: str = "paper"
    protocol: str = "nystromformer"
    tasks: Sequence[str] = ()
    attentions: Sequence[str] = ()
    seeds: Sequence[int] = ()
    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def has(self, record: Record) -> bool:
        """Return whether a record is selected."""
        asked = {"task": self.tasks, "attention": self.attentions, "seed": self.seeds}
        return all(
            not values or getattr(record, key) in values for key, values in asked.items()
        ) and all(_value(record, key) in values for key, values in self.values.items())


def with_departures(record: Record) -> Record:
    """Return a record with its departures from its recipe, even if it predates that field."""
    if record.departures != UNKNOWN:
        return record
    try:
        return replace(record, departures=describe(departures(record.config)))
    except (ConfigError, KeyError, TypeError):
        # Its recipe no longer exists, or its configuration has a different form.
        return record


def selections(words: Sequence[str], groups: Groups) -> Iterator[Selection]:
    """Yield the selections that complete words ask for, one per scale and protocol.

    Raises:
        ConfigError: A word is invalid, or a seed is not a number.
    """
    chosen = {
        key.lstrip("+"): [value_of(text) for text in texts]
        for key, texts in choices(words, groups).items()
        if not key.startswith(("~", "hydra.", "hydra/"))
    }
    named = {group: _names(group, chosen) for group in ("task", "attention")}
    folder = chosen.get("runs_dir", [runs_dir()])[-1]
    seeds = [seed_of(each) for each in chosen.get("seed", [])]
    rest = {
        key: values
        for key, values in chosen.items()
        if key not in {"seed", "scale", "protocol", "debug", *_OF_NO_RECORD}
        and "@" not in key
        and not (key in _UNDECIDED and _UNDECIDED[key] in values)
        and not any(isinstance(value, str) and "${" in value for value in values)
    }
    if "variant" in rest:
        # A variant is text, even if it reads as a number.
        rest["variant"] = [str(each) for each in rest["variant"]]
    for scale in chosen.get("scale", ["paper"]):
        for protocol in chosen.get("protocol", ["nystromformer"]):
            yield Selection(
                runs_dir=Path(str(folder)),
                scale=str(scale),
                protocol=str(protocol),
                tasks=named["task"],
                attentions=named["attention"],
                seeds=seeds,
                values=rest,
            )


def _names(group: str, chosen: dict[str, list[Any]]) -> list[str]:
    """Return the names that records use for the choices of a group, and remove the choices."""
    paths = [str(each) for each in chosen.pop(f"{group}.path", [])]
    names = [str(each) for each in chosen.pop(group, paths)]
    listed = [each for name in names for each in (paths if name == "custom" else [name])]
    return [each.replace(":", ".") for each in listed]


def _value(record: Record, key: str) -> Any:
    """Return a record's value for a key such as `train.steps`; None if it has none."""
    return getattr(record, key) if key in _OF_THE_RECORD else value_at(record.config, key)
