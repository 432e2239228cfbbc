"""Which records a report shows, by the words of its command."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lra.paths import runs_dir
from lra.record import Record
from lra.words import Groups, choices, seed_of, value_of

# What a record lacks, since it changes no number, and what says nothing of one.
_OF_NO_RECORD = {"data_dir", "cache_dir", "runs_dir", "force", "train.checkpoint_seconds"}
_UNDECIDED = {"device": "auto", "threads": 0, "train.precision": "float16_on_gpu"}
_OF_THE_RECORD = ("task", "attention", "seed", "variant", "device", "scale", "protocol", "pretrain")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Records of one scale and protocol.

    Args:
        runs_dir: Folder of run folders.
        scale: Scale.
        protocol: Protocol.
        tasks: Tasks asked for, which get a column, trained or not; all there are where none is.
        attentions: Backends asked for, which get a row.
        seeds: Seeds asked for, which every cell should have.
        values: Values of other keys, one of which a record has.
    """

    runs_dir: Path
    scale: str = "paper"
    protocol: str = "nystromformer"
    tasks: Sequence[str] = ()
    attentions: Sequence[str] = ()
    seeds: Sequence[int] = ()
    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def has(self, record: Record) -> bool:
        """Tell whether a record is one of these."""
        asked = {"task": self.tasks, "attention": self.attentions, "seed": self.seeds}
        return all(
            not values or getattr(record, key) in values for key, values in asked.items()
        ) and all(_value(record, key) in values for key, values in self.values.items())


def selections(words: Sequence[str], groups: Groups) -> Iterator[Selection]:
    """Yield what complete words ask for, once for each scale and protocol among them.

    Raises:
        ConfigError: A word is none, or a seed no number.
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
        and not (set(values) & {_UNDECIDED.get(key)} - {None})
        and not any(isinstance(value, str) and "${" in value for value in values)
    }
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
    """Return the names that records have for what a group's words choose; take them out."""
    paths = [str(each) for each in chosen.pop(f"{group}.path", [])]
    names = [str(each) for each in chosen.pop(group, paths)]
    listed = [each for name in names for each in (paths if name == "custom" else [name])]
    return [each.replace(":", ".") for each in listed]


def _value(record: Record, key: str) -> Any:
    """Return the value that a record has for a key, such as train.steps; None where it has none."""
    if key in _OF_THE_RECORD:
        return getattr(record, key)
    node: Any = record.config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node
