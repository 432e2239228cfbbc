"""Say where the data of every task come from, or what is missing, before anything is trained.

    lra preflight task=listops,image data_dir=RAW [--missing skip]

The table goes to stderr; stdout gets one line, the tasks that can be trained, for `lra reproduce`.
The exit status is 1 if data are missing or refused, unless `--missing skip` leaves those tasks out.
"""

import functools
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lra.build import build_task
from lra.compose import command, data_cells, load
from lra.config import Config, ConfigError
from lra.markdown import markdown
from lra.tasks import DataError, Task, archive, cache, cifar10, raw, text
from lra.tasks.hub import HubFile
from lra.terminal import command_parser, refused, run

# Data sets on the hub, by the signature of the sources that are read from there.
HUBS = {str(hub): hub for hub in (cifar10.HUB, text.HUB)}
# Seconds to wait for the hub.
TIMEOUT = 10.0


@dataclass(frozen=True)
class Finding:
    """Where a task's data come from.

    Args:
        task: The task's name.
        state: In a word or two, such as `generated` or `missing`.
        detail: An explanation in words.
        supply: How to supply missing data; empty if nothing is missing.
    """

    task: str
    state: str
    detail: str
    supply: str = ""


def ask(hub: HubFile) -> str:
    """Ask the hub for a data set; return what is wrong, or an empty string if it is there."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        HfApi().dataset_info(hub.name, revision=hub.revision, timeout=TIMEOUT)
    except RepositoryNotFoundError:
        return f"the hub has no data set {hub.name} that you can access"
    except RevisionNotFoundError:
        return f"the hub has no revision {hub.revision} of {hub.name}"
    except HfHubHTTPError as error:
        return f"the hub returned an error: {_first_line(error)}"
    except Exception as error:  # every layer below the hub raises errors of its own
        return f"the hub cannot be reached from here: {_first_line(error)}"
    return ""


def find_data(
    config: Config, data_dir: Path | None, ask: Callable[[HubFile], str] = ask
) -> Finding:
    """Find out where the data of a task come from, without reading them.

    Args:
        config: A cell of the task.
        data_dir: Folder of raw data.
        ask: Returns what is wrong with a data set on the hub.

    Raises:
        ConfigError: There is no such task, or an option is wrong.
    """
    name, task = config.task.name, build_task(config)
    try:
        source = task.locate(data_dir)
    except DataError as error:
        return Finding(name, "missing", str(error), _command(config, task, data_dir))
    try:
        # Also for a task that reads none, as when it is trained.
        raw.check_data_dir(data_dir)
    except DataError as error:
        return Finding(name, "refused", str(error), "a data_dir that exists")
    built = cache.built(name, task, Path(config.cache_dir), source)
    if built is not None:
        try:
            cache.check_demand(task, built.source)
        except DataError as error:
            return Finding(name, "refused", str(error), "other data, or another source")
        return Finding(name, "in the cache", f"{built.folder}: {built.source}")
    hub = HUBS.get(source.signature)
    if source.files or hub is None:
        return Finding(name, source.kind, str(source))
    if _downloaded(hub):
        return Finding(name, "hub, downloaded", str(source))
    if reason := ask(hub):
        return Finding(name, "missing", f"{source}: {reason}", _copy(hub, data_dir))
    return Finding(name, "hub", str(source))


def _downloaded(hub: HubFile) -> bool:
    """Return whether `datasets` holds the revision, ready to be read without a connection."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / hub.name.replace("/", "___")
    return any(folder.glob(f"*/*/{hub.revision}/dataset_info.json"))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _command(config: Config, task: Task, data_dir: Path | None) -> str:
    """Return the command that fetches a task's published files, if they can be fetched."""
    if not getattr(task, "has_published", True):
        return "other options, or no task.options.source=published"
    part = archive.part_of(config.task.name, task)
    if part is None:
        return "these files, and data_dir=/path/to/them (for make: DATA_DIR)"
    folder = data_dir or "/path/to/raw/data"
    words = [f"task={part}", f"protocol={config.protocol.name}"]
    words += [] if config.scale == "paper" else [f"scale={config.scale}"]
    words.append(f"data_dir={folder}")
    return shlex.join(["lra", "data", "--fetch", *words])


def _copy(hub: HubFile, data_dir: Path | None) -> str:
    raw = data_dir or Path("/path/to/raw/data")
    folder = raw / hub.name.split("/")[1]
    download = ["hf", "download", hub.name, "--repo-type", "dataset", "--revision", hub.revision]
    return (
        f"{shlex.join([*download, '--local-dir', str(folder)])} on a machine with a connection;"
        f" then copy that folder here, and pass data_dir={shlex.quote(str(raw))} (for make:"
        " DATA_DIR)"
    )


def report(findings: Sequence[Finding]) -> str:
    """Return the table, and below it what is missing and how to supply it."""
    rows = [[f.task, f.state, "see below" if f.supply else f.detail] for f in findings]
    lines = [markdown([["task", "data", "from"], *rows])]
    for finding in findings:
        if finding.supply:
            lines.append(f"{finding.task}: {finding.detail}\n  to supply it: {finding.supply}")
    return "\n\n".join(lines)


def main() -> None:
    """Look for the data of every task, and report what was found."""
    parser = command_parser("preflight", __doc__)
    parser.add_argument("words", nargs="*", help="key=value, as for lra train; data_dir=FOLDER")
    parser.add_argument(
        "--missing",
        choices=("stop", "skip"),
        default="stop",
        help="what to do if data are missing (%(default)s)",
    )
    args = parser.parse_intermixed_args()
    found: dict[Finding, None] = {}
    ask_once = functools.cache(ask)
    with refused(ConfigError):
        for words in data_cells(command(args.words)):
            config = load(*words)
            # Cells that read the same data have the same finding.
            found[find_data(config, config.raw_data_dir(), ask_once)] = None
    lacking = {finding.task for finding in found if finding.supply}
    whole = dict.fromkeys(each.task for each in found if each.task not in lacking)
    print(report(list(found)), file=sys.stderr)
    if lacking and args.missing == "stop":
        hint = "--missing skip (for make: MISSING=skip) leaves these tasks out."
        print(f"\nNot all data can be used; {hint}", file=sys.stderr)
        sys.exit(1)
    if not whole:
        print("\nNothing is left to train.", file=sys.stderr)
        sys.exit(1)
    print(",".join(whole))


if __name__ == "__main__":
    run(main)
