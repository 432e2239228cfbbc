"""Say where the data of every task come from, or what is missing, before anything is trained.

    lra preflight task=listops,image data_dir=RAW [--missing skip]

The table goes to stderr; stdout gets one line, the tasks that can be trained, for `lra reproduce`.
The exit status is 1 if data are missing, unless `--missing skip` leaves those tasks out.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lra.build import build_task
from lra.compose import command, groups, load
from lra.config import Config, ConfigError
from lra.markdown import markdown
from lra.tasks import DataError, archive, cache, cifar10, text
from lra.tasks.hub import HubFile
from lra.terminal import run
from lra.words import choices

# Data sets on the hub, by the signature of the sources that are read from there.
HUBS = {str(hub): hub for hub in (cifar10.HUB, text.HUB)}
# Other keys that decide which data are read.
_OF_DATA = ("data_dir", "cache_dir", "debug", "hydra.searchpath")
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


def find_data(config: Config, data_dir: Path | None) -> Finding:
    """Find out where the data of a task come from, without reading them.

    Args:
        config: A cell of the task.
        data_dir: Folder of raw data.

    Raises:
        ConfigError: There is no such task, or an option is wrong.
    """
    name, task = config.task.name, build_task(config)
    try:
        source = task.locate(data_dir)
    except DataError as error:
        return Finding(name, "missing", str(error), _command(config, data_dir))
    built = Path(config.cache_dir) / f"{name}-{cache.key(task, source)}"
    if (built / "manifest.json").is_file():
        return Finding(name, "in the cache", f"{built}: {source}")
    hub = HUBS.get(source.signature)
    if source.files or hub is None:
        return Finding(name, source.kind, str(source))
    if _downloaded(hub):
        return Finding(name, "hub, downloaded", str(source))
    if reason := ask(hub):
        return Finding(name, "missing", f"{source}: {reason}", _copy(hub, data_dir))
    return Finding(name, "hub", str(source))


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


def _downloaded(hub: HubFile) -> bool:
    """Return whether `datasets` holds the revision, ready to be read without a connection."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / hub.name.replace("/", "___")
    return any(folder.glob(f"*/*/{hub.revision}/dataset_info.json"))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _command(config: Config, data_dir: Path | None) -> str:
    """Return the command that fetches a task's published files, if they can be fetched."""
    if config.task.name not in archive.PARTS:
        return "these files, and data_dir=/path/to/them (for make: DATA_DIR)"
    folder = data_dir or "/path/to/raw/data"
    words = [f"task={config.task.name}", f"protocol={config.protocol.name}", f"data_dir={folder}"]
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


def of_each_task(words: Sequence[str]) -> list[list[str]]:
    """Return, for each task of a grid, the words that decide which data are read.

    An option that is swept over is left out: all its values read the same raw data.

    Args:
        words: Complete words.
    """
    chosen = choices(words, groups(words))
    tasks = chosen.get("task", ["listops"])
    kept = [
        f"{key}={values[0]}"
        for key, values in chosen.items()
        if len(values) == 1 and key.startswith(("task.", *_OF_DATA))
    ]
    one = [f"{key}={chosen[key][0]}" for key in ("scale", "protocol") if key in chosen]
    return [[f"task={task}", *one, *kept] for task in tasks]


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
    parser = argparse.ArgumentParser(prog="lra preflight", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("words", nargs="*", help="key=value, as for lra train; data_dir=FOLDER")
    parser.add_argument(
        "--missing",
        choices=("stop", "skip"),
        default="stop",
        help="what to do if data are missing (%(default)s)",
    )
    args = parser.parse_intermixed_args()
    findings = []
    try:
        for words in of_each_task(command(args.words)):
            config = load(*words)
            findings.append(find_data(config, config.raw_data_dir()))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    whole = [finding.task for finding in findings if not finding.supply]
    print(report(findings), file=sys.stderr)
    if len(whole) < len(findings) and args.missing == "stop":
        hint = "--missing skip (for make: MISSING=skip) leaves these tasks out."
        print(f"\nNothing is trained. {hint}", file=sys.stderr)
        sys.exit(1)
    if not whole:
        print("\nNothing is left to train.", file=sys.stderr)
        sys.exit(1)
    print(",".join(whole))


if __name__ == "__main__":
    run(main)
