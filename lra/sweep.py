"""How the cells of a sweep ended: noted by each cell, printed at the end.

Cells may run in other processes, so each appends a line to a file that the environment names. For
cells on other machines, which do not see that file, the records are read.
"""

import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from lra.compose import place
from lra.config import ConfigError
from lra.markdown import markdown
from lra.record import RECORD, Record, RecordError, read_record
from lra.report.grid import build_grid
from lra.report.tables import accuracy_table
from lra.words import key_of, merged, shown

# Holds the number of cells and the file that takes their outcomes, such as `4:/tmp/x/cells`.
VARIABLE = "LRA_SWEEP"
MAX_COMMANDS = 4
# Words about where cells run and lie, which are not among those of a single cell.
_AROUND = re.compile(r"hydra[./](?!sweeper)")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a cell ended.

    Args:
        words: Its words.
        name: Its name, such as `listops/softmax seed0`.
        folder: Its run folder.
        state: `done`, `skipped` (it was finished before), `failed`, or `unfinished`.
        reason: Why it failed.
    """

    words: list[str]
    name: str
    folder: str
    state: str
    reason: str = ""


def is_search(words: Iterable[str]) -> bool:
    """Return whether words ask for a search, whose trials are chosen as it goes."""
    keys = ("search", "hydra/sweeper")
    return any(key_of(word) in keys and word != "hydra/sweeper=basic" for word in words)


def place_of(number: int, in_sweep: bool) -> str:
    """Return `[3/20] ` for the third of twenty cells, nothing for a single one.

    Args:
        number: Number of the cell, from 0.
        in_sweep: Whether it is one of several.
    """
    if not in_sweep:
        return ""
    total = os.environ.get(VARIABLE, "").partition(":")[0]
    return f"[{number + 1}/{total}] " if total else f"[{number + 1}] "


def finished(words: list[str], name: str, folder: Path, before: bool) -> float | None:
    """Note that a cell has its result.

    Args:
        words: Its words.
        name: Its name.
        folder: Its run folder.
        before: Whether it already had one.

    Returns:
        The accuracy by which its checkpoint was chosen.
    """
    state = "skipped" if before else "done"
    _note(Outcome(words=words, name=name, folder=str(folder), state=state))
    return read_record(folder / RECORD).best_accuracy


def failed(words: list[str], name: str, folder: Path, reason: str) -> None:
    """Note that a cell has no result.

    Args:
        words: Its words.
        name: Its name; empty if it has none yet.
        folder: Its run folder.
        reason: Why.
    """
    short = shown(reason.splitlines()[0] if reason else "no reason").removeprefix(
        f"{name} failed: "
    )
    named = name or " ".join(words)
    _note(Outcome(words=words, name=named, folder=str(folder), state="failed", reason=short))


def _note(outcome: Outcome) -> None:
    file = Path(os.environ.get(VARIABLE, "").partition(":")[2])
    # On another machine, the folder does not exist.
    if file.name and file.parent.is_dir():
        with open(file, "a", encoding="utf-8") as out:
            out.write(json.dumps(asdict(outcome)) + "\n")


@contextmanager
def watched(given: Sequence[str], cells: Sequence[list[str]] | None) -> Iterator[list[Outcome]]:
    """Collect how the cells of a sweep end, and print it at the end, whatever ends the sweep.

    Args:
        given: The words of the command.
        cells: The words of every cell; None if a search chooses them as it goes.
    """
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="lra-sweep-") as folder:
        file = Path(folder) / "cells"
        os.environ[VARIABLE] = f"{len(cells) if cells else ''}:{file}"
        try:
            yield outcomes
        finally:
            del os.environ[VARIABLE]
            noted = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
            outcomes += [Outcome(**json.loads(line)) for line in noted]
            outcomes += _not_noted(cells or [], outcomes)
            print(summary(outcomes, given, cells is None))


def _not_noted(cells: Sequence[list[str]], outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
    """Yield how the cells that noted nothing ended, by the records in their folders."""
    there = {Path(outcome.folder).absolute() for outcome in outcomes}
    if len(there) >= len(cells):
        return
    for words in cells:
        try:
            config, folder = place(*words)
        except ConfigError:
            continue
        if folder.absolute() in there:
            continue
        state, reason = "unfinished", ""
        if (folder / RECORD).exists():
            try:
                record = read_record(folder / RECORD)
                state, reason = "done" if record.status == "ok" else "failed", record.reason
            except RecordError as error:
                state, reason = "failed", str(error)
        yield Outcome(words=words, name=config.cell, folder=str(folder), state=state, reason=reason)


def summary(outcomes: Sequence[Outcome], given: Sequence[str], is_search: bool = False) -> str:
    """Return how a sweep ended: failures by cause, the command that retries them, accuracies.

    Args:
        outcomes: How its cells ended.
        given: The words of its command.
        is_search: Whether the cells are trials, of which validation chooses one.
    """
    counts = {"done": 0, "skipped": 0, "failed": 0, "unfinished": 0}
    causes: dict[str, list[str]] = {}
    for outcome in outcomes:
        counts[outcome.state] += 1
        if outcome.state == "failed":
            causes.setdefault(outcome.reason, []).append(outcome.name)
    descriptions = {"skipped": "skipped because already finished", "unfinished": "not finished"}
    parts = [
        f"{count} {descriptions.get(state, state)}" for state, count in counts.items() if count
    ]
    cells = "1 cell" if len(outcomes) == 1 else f"{len(outcomes)} cells"
    lines = ["", f"{cells}: {', '.join(parts) or 'none ended'}."]
    lines += [f"failed: {', '.join(names)}: {cause}" for cause, names in causes.items()]
    again = [outcome.words for outcome in outcomes if outcome.state in ("failed", "unfinished")]
    around = [word for word in given if _AROUND.match(key_of(word))]
    if again:
        commands = [[*each, *(w for w in around if w not in each)] for each in merged(again)]
        # Many commands would hide the rest of the page; finished cells are skipped anyway.
        chosen = commands if len(commands) <= MAX_COMMANDS else [list(given)]
        lines += [f"run just these again: {shlex.join(['lra', 'train', *each])}" for each in chosen]
    tables = [*_tables(outcomes), *(_best(outcomes) if is_search else [])]
    folders = [outcome.folder for outcome in outcomes if outcome.state != "failed"]
    if tables:
        lines += [*tables, f"Files: {_shared(folders)}"]
    return "\n".join(lines)


def _tables(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the accuracies, one table for each scale and protocol."""
    records: dict[tuple[str, str], list[Record]] = {}
    for _, record in _finished(outcomes):
        records.setdefault((record.scale, record.protocol), []).append(record)
    for (scale, protocol), group in records.items():
        grid = build_grid(group)
        lines = [f"\nTest accuracy in percent, scale {scale}, protocol {protocol}:\n"]
        lines += [markdown(accuracy_table(grid)), "", *grid.departure_lines()]
        yield "\n".join(lines).rstrip() + "\n"


def _best(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield a line with the trial that validation chooses, and its command."""
    scored = [(record.best_accuracy or 0.0, outcome) for outcome, record in _finished(outcomes)]
    if scored:
        accuracy, best = max(scored, key=lambda each: each[0])
        [words] = merged([best.words])
        words = [word for word in words if not is_search([word])]
        yield f"best by validation, {100 * accuracy:.1f} %: {shlex.join(['lra', 'train', *words])}"


def _finished(outcomes: Iterable[Outcome]) -> Iterator[tuple[Outcome, Record]]:
    """Yield the cells that have a readable record, with it."""
    for outcome in outcomes:
        if outcome.state in ("done", "skipped"):
            with suppress(RecordError):
                yield outcome, read_record(Path(outcome.folder) / RECORD)


def _shared(folders: Sequence[str]) -> str:
    """Return the folder that contains all of them, as seen from here."""
    shared = os.path.commonpath([os.path.abspath(folder) for folder in folders])
    here = os.path.relpath(shared)
    return shared if here.startswith("..") else here
