"""Plan a sweep: find out the state of its cells, and measure those that are to be trained."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch

from lra import custom
from lra.bar import progress_bar
from lra.build import build_task
from lra.compose import command, groups
from lra.config import ConfigError, config_hash
from lra.machine import code_version, machine, resolve_device
from lra.plan import cost
from lra.plan.cells import PlannedCell, State, assess
from lra.typecheck import fits
from lra.words import expand

NAME = "plan.json"


def _cost(values: dict[str, Any]) -> cost.Cost:
    """Return a stored measurement; raise TypeError for anything else."""
    for key, kind in get_type_hints(cost.Cost).items():
        if key in values and not fits(values[key], kind):
            raise TypeError(f"{key}={values[key]!r}")
    return cost.Cost(**values)


class Measurements:
    """Measurements, kept in a file.

    Args:
        file: The file; it need not exist.
        kept: Whether to read and write it.
    """

    def __init__(self, file: Path, kept: bool = True) -> None:
        self._file, self._kept = file, kept
        self._costs: dict[str, cost.Cost] = {}
        if kept and file.exists():
            try:
                stored = json.loads(file.read_text())
                self._costs = {key: _cost(values) for key, values in stored.items()}
            except (OSError, ValueError, TypeError, AttributeError, RecursionError):
                logging.warning("%s holds no valid measurements; measuring again", file)

    def get(self, key: str) -> cost.Cost | None:
        """Return the measurement under a key, or None if there is none."""
        return self._costs.get(key)

    def put(self, key: str, measured: cost.Cost) -> None:
        """Keep a measurement."""
        self._costs[key] = measured
        if not self._kept:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial = self._file.with_name(f"{NAME}.{os.getpid()}")
            stored = {each: asdict(values) for each, values in self._costs.items()}
            partial.write_text(json.dumps(stored, indent=1) + "\n")
            os.replace(partial, self._file)
        except OSError as error:
            # A plan is worth having even if nothing can be written.
            self._kept = False
            logging.warning("%s cannot be written: %s", self._file, error.strerror)


def measured(cell: PlannedCell, known: Measurements, budget: float = cost.BUDGET) -> PlannedCell:
    """Return a cell with its cost, measured now unless an equal cell was measured before.

    Args:
        cell: A cell that is to be trained.
        known: Earlier measurements; takes the new one.
        budget: Seconds that it should take.
    """
    assert cell.config is not None and cell.data is not None
    device, built = resolve_device(cell.config.device), cell.data.built
    # Neither the seed nor a variant's name changes the time.
    same = {key: value for key, value in cell.values.items() if key not in ("seed", "variant")}
    here = [machine(device), torch.__version__, code_version()[0], budget]
    try:
        own = custom.sources(cell.config.attention)
    except ConfigError as error:
        return replace(cell, state="no model", detail=str(error))
    # The identity of a cell leaves the micro-batches out.
    here += [own, cell.config.train.micro_batch]
    key = config_hash({"cell": same, "here": here, "data": built.fingerprint if built else ""})
    if (found := known.get(key)) is None:
        torch.set_num_threads(cell.values["threads"])
        task, splits = build_task(cell.config), built.splits if built else None
        try:
            found = cost.measure(cell.config, task, splits, device, budget)
        except Exception as error:  # whatever a user's backend raises concerns its cell alone
            reason = str(error).strip() or type(error).__name__
            if not isinstance(error, (ValueError, RuntimeError)):
                reason = f"{type(error).__name__}: {reason}"
            state: State = "no model" if isinstance(error, ConfigError) else "cannot run"
            return replace(cell, state=state, detail=reason.splitlines()[0])
        known.put(key, found)
    return replace(cell, cost=found)


def plan(words: Sequence[str], budget: float = cost.BUDGET) -> list[PlannedCell]:
    """Return the cells of a sweep in its order; those to be trained have their costs.

    Args:
        words: Words of `lra.train`.
        budget: Seconds that the measurement of a cell should take.

    Raises:
        ConfigError: A word is not an override.
    """
    words = command(words)
    cells: list[PlannedCell] = []
    for each in expand(words, groups(words)):
        cell = assess(each)
        if cell.is_open and any(cell.folder == other.folder for other in cells):
            reason = "an earlier cell of this sweep has the same folder; distinguish them by a"
            reason += " variant with a value in its name, such as 'variant=layers${model.layers}'"
            cell = replace(cell, state="conflict", detail=reason)
        cells.append(cell)
    todo = [place for place, cell in enumerate(cells) if cell.is_open]
    bar = progress_bar(todo, "measuring", unit="cell", leave=False)
    known = None
    for place in bar:
        config = cells[place].config
        assert config is not None
        bar.set_postfix_str(config.cell)
        if known is None:
            # Costs of changed code are not kept: nothing distinguishes one change from the next.
            known = Measurements(Path(config.runs_dir) / NAME, not code_version()[1])
        cells[place] = measured(cells[place], known, budget)
    return cells
