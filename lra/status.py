"""Show the progress of a grid's cells: done, running (since when), failed (why) or to do.

    lra status task=listops,text attention=softmax,mra seed=0,1 scale=mini
    lra status runs_dir=/shared/results/runs

This reads only files, so it works on any machine that sees the runs folder, whichever machines
train there. Without the words of a grid, it lists every cell that has been started. The words are
those of `lra train`; if a cell has a record, the words that differ from it are named.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lra.compose import IDENTITY, command, groups, place
from lra.config import ConfigError, backend_name, value_at
from lra.lock import read_note
from lra.markdown import Table, markdown
from lra.paths import CHECKPOINT, PRETRAINING, runs_dir
from lra.record import NOTE, RECORD, Record, RecordError, read_record
from lra.terminal import command_parser, refused, run
from lra.words import GRID, choices, expand, key_of, seed_of, value_of, with_defaults

State = Literal["done", "running", "failed", "stopped", "killed", "to do", "other"]
# Defaults of a single cell, the same as for `lra train`.
CELL = {"scale": "paper", "protocol": "nystromformer", "variant": "default", "seed": "0"}
# Words from which the folder of a cell is known without composing it.
_NAMES = IDENTITY - {"pretrain", "task.path"} | {"variant"}


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a cell is.

    Args:
        folder: Its run folder; the last parts are task, attention, variant and seed.
        state: `done`; `running`; `failed`: the next sweep tries it again; `stopped` on request: it
            continues where it was; `killed`: it continues from its last checkpoint; `to do`;
            `other`: another configuration's record is in its folder.
        step: Updates made, as last seen; 0 if unknown.
        steps: Updates of the whole run; 0 if unknown.
        since: When the process that works there, or worked there last, began; seconds since 1970.
        detail: Accuracy, process and machine, or the reason.
    """

    folder: Path
    state: State
    step: int = 0
    steps: int = 0
    since: float | None = None
    detail: str = ""


def status(folder: Path, asked: dict[str, Any] | None = None) -> Status:
    """Find out the state of a cell.

    Args:
        folder: Its run folder; it need not exist.
        asked: Values that its configuration should have, by keys such as `train.steps`.
    """
    note = read_note(folder / NOTE)
    since = note.since if note else None
    step, steps = (note.step, note.steps) if note else (0, 0)
    if note is not None and note.is_active:
        where = f"process {note.pid} on {note.host}"
        return Status(
            folder=folder, state="running", step=step, steps=steps, since=since, detail=where
        )
    reason = ""
    try:
        record = read_record(folder / RECORD)
        return _by_record(folder, record, since, asked or {})
    except RecordError as error:
        reason = str(error) if (folder / RECORD).exists() else ""
    state: State = "to do"
    if note is not None:
        state = "killed"
        if note.ended:
            state = "stopped" if note.ended.startswith("StoppedError") else "failed"
            reason = note.ended
    elif (folder / CHECKPOINT).exists():
        # It was left by a version that wrote no notes.
        state = "stopped"
    return Status(folder=folder, state=state, step=step, steps=steps, since=since, detail=reason)


def _by_record(folder: Path, record: Record, since: float | None, asked: dict[str, Any]) -> Status:
    asked_for = record.config.get("train", {}).get("steps")
    steps = asked_for if isinstance(asked_for, int) else record.steps
    state: State = "done" if record.status == "ok" else "failed"
    accuracy = 100 * (record.test_accuracy or 0)
    detail = f"test {accuracy:.1f} %" if state == "done" else record.reason
    differences = [
        f"{key}={there} in the record, {value} asked for"
        for key, value in asked.items()
        if (there := value_at(record.config, key)) is not None and there != value
    ]
    if differences:
        state, detail = "other", "; ".join(differences)
    return Status(
        folder=folder, state=state, step=record.steps, steps=steps, since=since, detail=detail
    )


def begun(root: Path) -> Iterator[Path]:
    """Yield the run folders that hold a record, a note or a checkpoint, sorted."""
    found = {f.parent for name in (RECORD, NOTE, CHECKPOINT) for f in root.glob(f"**/{name}")}
    yield from sorted(each for each in found if each.name != PRETRAINING)


def grid(words: Sequence[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the run folder of every cell of a grid, and the values that its words ask for.

    Raises:
        ConfigError: A word is invalid.
    """
    ready = command(with_defaults(words, GRID))
    for cell in expand(ready, groups(words)):
        chosen = {key: text for key, _, text in (word.partition("=") for word in cell)}
        plain = {key.lstrip("+"): value_of(text) for key, text in chosen.items()}
        asked = {
            key: value
            for key, value in plain.items()
            if key[0] != "~" and ("." in key or key == "validation")
        }
        departs = "variant" not in plain and not plain.keys() <= _NAMES
        if departs or any(mark in text for text in chosen.values() for mark in "$:"):
            # The name depends on other values, so the cell is composed, which takes a while.
            yield place(*cell)[1], asked
            continue
        names = {key: str(plain.get(key, default)) for key, default in CELL.items()}
        seed_of(plain.get("seed", 0))
        path = plain.get("attention.path")
        attention = backend_name(path) if path else str(plain["attention"])
        parts = [names["scale"], names["protocol"], str(plain["task"]), attention]
        root = Path(str(plain.get("runs_dir") or runs_dir()))
        yield root.joinpath(*parts, names["variant"], f"seed{names['seed']}"), asked


def table(cells: Iterable[Status]) -> Table:
    """Return a row for every cell."""
    rows = [["scale", "protocol", "task", "attention", "seed", "state", "step", "since", ""]]
    for cell in cells:
        # A run folder may have been copied without the folders around it.
        parts = ("-",) * 6 + cell.folder.parts
        scale, protocol, task, attention, variant, seed = parts[-6:]
        method = attention if variant == "default" else f"{attention} ({variant})"
        step = f"{cell.step:,} of {cell.steps:,}" if cell.steps else "-"
        began = "-"
        if cell.since is not None:
            began = time.strftime("%Y-%m-%d %H:%M", time.localtime(cell.since))
        names = [scale, protocol, task, method, seed.removeprefix("seed")]
        rows.append([*names, cell.state, step, began, " ".join(cell.detail.split()) or "-"])
    return rows


def page(cells: Sequence[Status]) -> str:
    """Return the table of the cells, and how many are in each state."""
    counts: dict[str, int] = {}
    for cell in cells:
        counts[cell.state] = counts.get(cell.state, 0) + 1
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    number = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
    return f"{markdown(table(cells))}\n\n{number}: {states}."


def main() -> None:
    """Print the progress of the cells that the command line names."""
    parser = command_parser("status", __doc__)
    parser.add_argument("words", nargs="*", help="key=value, as for lra train")
    words = parser.parse_intermixed_args().words
    folders: list[tuple[Path, dict[str, Any]]]
    with refused(ConfigError):
        if {key_of(word) for word in words} <= {"runs_dir"}:
            there = choices(command(words), groups()).get("runs_dir", [runs_dir()])
            folders = [(each, {}) for each in begun(Path(str(value_of(there[0]))))]
        else:
            folders = list(grid(words))
    if not folders:
        print("No cell has been started here; `lra status` with a grid's words lists its cells.")
        return
    print(page([status(folder, asked) for folder, asked in folders]))


if __name__ == "__main__":
    run(main)
