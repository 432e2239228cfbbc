"""Train one cell, or a sweep of cells, and leave a record of each.

    lra train task=listops attention=fourier seed=1
    lra train task=listops,image attention=softmax,fourier,my_file:Mine seed=0,1

A finished cell is skipped, an unfinished one continues; `force=true` trains it again. Values
separated by commas make a sweep, as Hydra's -m does; at its end, a sweep shows how its cells ended.
"""

import logging
import os
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lra import help, launch, sweep
from lra.compose import command, composed_cell, groups, register, resolve
from lra.config import Config, ConfigError, problem_of_folder
from lra.folders import writable, writing
from lra.paths import CONFIGS, existing
from lra.terminal import refused, run
from lra.words import SEARCH_PATH, Groups, expand, is_sweep, key_of, shown

if TYPE_CHECKING:
    from lra.record import Record

log = logging.getLogger(__name__)

# Keys whose values a search must not choose between: it tunes one cell, and a seed is not tuned.
_NOT_SEARCHED = {"task", "attention", "protocol", "scale", "seed"}
# Flags of Hydra that take a value.
_WITH_VALUE = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"}
_WITH_VALUE |= {"--experimental-rerun"}
# Flags with which nothing is trained.
_ONLY_SHOWN = {"--cfg", "-c", "--info", "-i", "--hydra-help", "--version"}
_ONLY_SHOWN |= {"--shell-completion", "-sc"}

register()


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")  # type: ignore[untyped-decorator]  # Hydra has no types
def train(composed: DictConfig) -> float | None:
    """Train the cell that Hydra composed, in the folder that Hydra made for it.

    Returns:
        The accuracy by which its checkpoint was chosen, which a search maximises.
    """
    # Importing torch takes seconds, and `--help` does not need it.
    from tqdm.contrib.logging import logging_redirect_tqdm

    from lra.runner import CellFailedError, run_cell
    from lra.signals import StoppedError, stop_without
    from lra.tasks import DataError

    folder, in_sweep = _folder(), HydraConfig.get().mode == RunMode.MULTIRUN
    words, name = list(HydraConfig.get().overrides.task), ""
    if _launcher() == "joblib":
        stop_without(os.getppid())
    try:
        config = resolve(composed)
        name = config.cell
        with logging_redirect_tqdm():
            record = run_cell(config, folder, sweep.place_of(_number(in_sweep), in_sweep))
        return sweep.finished(words, name, folder, record is None)
    except (ConfigError, DataError, CellFailedError) as error:
        # A traceback would bury the line that helps; in a sweep the other cells go on.
        if not isinstance(error, CellFailedError):
            log.error("%s", error)
        sweep.failed(words, name, folder, str(error))
        if in_sweep:
            return float("nan")
        sys.exit(1 if isinstance(error, CellFailedError) else 2)
    except Exception as error:
        # Perhaps from a user's own backend: where it was raised is what helps.
        if not in_sweep:
            raise
        log.exception("%s failed", name or " ".join(words))
        sweep.failed(words, name, folder, f"{type(error).__name__}: {error}")
        return float("nan")
    except StoppedError as error:
        log.warning("%s", error)
        if _launcher() == "joblib":
            # A worker would go on with the next cell.
            logging.shutdown()
            os._exit(error.code)
        sys.exit(error.code)


def _number(in_sweep: bool) -> int:
    """Return the number of this cell in its sweep, from 0."""
    return int(HydraConfig.get().job.num) if in_sweep else 0


def _launcher() -> str:
    return str(HydraConfig.get().runtime.choices.get("hydra/launcher", "basic"))


def _folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


def _check_composes(cells: list[list[str]], there: Groups) -> list[Path]:
    """Refuse, in one line, cells that Hydra would refuse and folders that are files.

    Returns:
        Their runs folders, which need not exist.

    Raises:
        ConfigError: A cell cannot be composed, or a file is where its folder would be.
    """
    # The options chosen from groups decide what is composed; any other word is checked once.
    chosen: set[tuple[str, ...]] = set()
    checked: set[str] = set()
    different = []
    for cell in cells:
        of_groups = (w for w in cell if there.has(key_of(w)) or key_of(w).startswith("hydra/"))
        if (choice := tuple(of_groups)) not in chosen or not checked.issuperset(cell):
            different.append(cell)
        chosen.add(choice)
        checked.update(cell)
    roots: dict[Path, None] = {}
    for cell in different:
        composed, folder = composed_cell(*cell)
        if composed.runs_dir == "":
            raise ConfigError("runs_dir=: must name a folder")
        # Hydra makes the folder whose name they are part of before any of them is checked.
        for key in ("scale", "protocol.name", "task.name", "attention.name", "variant"):
            name = str(OmegaConf.select(composed, key))
            if problem := problem_of_folder(name):
                raise ConfigError(f"{key}={shown(name)}: {problem}")
        roots[Path(composed.runs_dir)] = None
        try:
            above = existing(folder)
        except OSError as error:
            raise ConfigError(f"runs_dir={shown(composed.runs_dir)}: {error.strerror}") from error
        if not above.is_dir():
            raise ConfigError(f"runs_dir: {above} is a file, should be a folder")
    return list(roots)


def _check_sweep(
    words: list[str], there: Groups, cells: list[list[str]] | None, launcher: str
) -> None:
    """Refuse a sweep without cells or with a cell twice, and a search that could not choose.

    Args:
        words: Complete words of the command.
        there: The groups that exist.
        cells: The words of every cell; None for a search.
        launcher: Hydra's launcher.

    Raises:
        ConfigError: The sweep is one of these.
    """
    if cells is None:
        if launcher == "slurm":
            raise ConfigError(
                "hydra/launcher=slurm: a search needs the result of each trial, and jobs in a queue"
                " return none; start the search within one job, without this launcher"
            )
        for word in words:
            if key_of(word) in _NOT_SEARCHED and is_sweep([word], there):
                raise ConfigError(
                    f"{shown(word)}: a search must not choose between these values; start one"
                    " search for each of them"
                )
        return
    if not cells:
        raise ConfigError("this sweep has no cell: a range is empty; range(0,3) gives 0, 1, 2")
    counts = Counter(map(tuple, cells))
    if twice := [cell for cell, count in counts.items() if count > 1]:
        raise ConfigError(
            f"{shown(' '.join(twice[0]))}: this cell is asked for {counts[twice[0]]} times; give"
            " each value once"
        )


def _make(roots: list[Path]) -> None:
    """Make the runs folders, as Hydra would not say why it cannot make them.

    Raises:
        FolderError: One cannot be made.
    """
    for root in roots:
        with writing("runs_dir", root, "making it"):
            root.mkdir(parents=True, exist_ok=True)


def _finished_for_good(cells: list[list[str]]) -> list[str]:
    """Return a line for each cell that says it is finished, if nothing can be written.

    There are no lines if one of the cells is not finished, or can be written to. Hydra makes
    folders before anything asks whether there is something to do.
    """
    messages = []
    for cell in cells:
        composed, folder = composed_cell(*cell)
        if writable(folder):
            return []
        from lra.runner import finished_message

        messages.append(finished_message(resolve(composed), folder))
    return messages if all(messages) else []


def divide(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split arguments into Hydra's flags and words; --config-dir becomes a word."""
    flags, words, left = [], [], list(arguments)
    while left:
        each = left.pop(0)
        if each in ("--config-dir", "-cd") and left:
            words.append(f"{SEARCH_PATH}=['file://{Path(left.pop(0)).absolute()}']")
        elif each in _WITH_VALUE and left:
            flags += [each, left.pop(0)]
        elif each.startswith("-"):
            flags.append(each)
        else:
            words.append(each)
    return flags, words


def main() -> None:
    """Train what the command line names; several values of a word make a sweep."""
    flags, given = divide(sys.argv[1:])
    if {"--help", "-h"} & set(flags):
        print(help.text())
        return
    with refused(ConfigError):
        words, there = command(given), groups(given)
        if _ONLY_SHOWN & set(flags):
            sys.argv[1:] = [*flags, *words]
            train()
            return
        # Hydra uses a launcher in a sweep alone.
        in_sweep = (name := launch.launcher(words)) != "basic"
        in_sweep |= bool({"-m", "--multirun"} & set(flags)) or is_sweep(words, there)
        is_search = sweep.is_search(words)
        cells = None if is_search else list(expand(words, there))
        _check_sweep(words, there, cells, name)
        launch.prepare(name)
    several = (is_search or in_sweep) and int(os.environ.get("WORLD_SIZE", "1")) > 1
    with refused(ConfigError):
        single = [word for word in words if not is_sweep([word], there)]
        roots = _check_composes(cells or [single], there)
        if several:
            raise ConfigError("torchrun trains one cell, without a launcher")
        finished_messages = _finished_for_good(cells or [])
        elsewhere = not in_sweep and any("hydra.run.dir" in word for word in words)
        if not finished_messages and not elsewhere:
            _make(roots)
    if finished_messages:
        print("\n".join(finished_messages))
        return
    if is_search or in_sweep:
        flags = [*(flag for flag in flags if flag not in ("-m", "--multirun")), "--multirun"]
    sys.argv[1:] = [*flags, *words]
    if "--multirun" not in flags:
        train()
        return
    if name == "slurm":
        # The jobs are only put into the queue, so it is not known here how they end.
        train()
        return
    parallel = launch.workers_ended() if name == "joblib" else nullcontext()
    with sweep.watched(given, cells) as outcomes, parallel:
        train()
    sys.exit(any(outcome.state in ("failed", "unfinished") for outcome in outcomes))


class _Callable(ModuleType):
    """This module, which `lra.train(config)` calls to train a cell from Python."""

    def __call__(self, config: Config) -> "Record":
        """Train a cell in its own folder, unless it is finished; see `lra.runner.train`."""
        from lra import runner

        return runner.train(config)


if __name__ == "__main__":
    run(main)
else:
    sys.modules[__name__].__class__ = _Callable
