"""Say where the data of every task come from, or what is missing, before anything trains.

    python -m lra.preflight --tasks listops,image --scale paper --data-dir RAW [--missing skip]

The table goes to stderr; stdout gets one line, the tasks that can be trained, for the Makefile.
The exit status is 1 where data are missing, unless `--missing skip` leaves those tasks out.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from lra.build import build_task
from lra.config import Config, ConfigError, load
from lra.markdown import markdown
from lra.tasks import DataError, archive, cache, cifar10, text
from lra.tasks.hub import HubFile

# By the signature of the sources that are read from there.
HUBS = {str(hub): hub for hub in (cifar10.HUB, text.HUB)}
# Seconds.
TIMEOUT = 10.0


@dataclass(frozen=True)
class Finding:
    """Where a task's data come from.

    Args:
        task: The task's name.
        state: In a word or two, such as `generated` or `missing`.
        detail: In words.
        supply: What supplies missing data; empty when nothing is missing.
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
    """Ask the hub for a data set; return what is wrong, nothing if it is there."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        HfApi().dataset_info(hub.name, revision=hub.revision, timeout=TIMEOUT)
    except RepositoryNotFoundError:
        return f"the hub has no data set {hub.name} that is open to you"
    except RevisionNotFoundError:
        return f"the hub has no revision {hub.revision} of {hub.name}"
    except HfHubHTTPError as error:
        return f"the hub answers with an error: {_first_line(error)}"
    except Exception as error:  # every layer below the hub raises errors of its own
        return f"the hub cannot be reached from here: {_first_line(error)}"
    return ""


def _downloaded(hub: HubFile) -> bool:
    """Tell whether `datasets` holds the revision, ready to be read without a connection."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / hub.name.replace("/", "___")
    return any(folder.glob(f"*/*/{hub.revision}/dataset_info.json"))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _command(config: Config, data_dir: Path | None) -> str:
    """Return the command that fetches a task's published files, where they can be fetched."""
    if config.task.name not in archive.PARTS:
        return "these files, and DATA_DIR=/where/they/lie"
    return (
        f"make data FETCH=1 TASKS={config.task.name} SCALE={config.scale}"
        f" PROTOCOL={config.protocol.name} DATA_DIR={data_dir or '/where/raw/data/shall/lie'}"
    )


def _copy(hub: HubFile, data_dir: Path | None) -> str:
    raw = data_dir or Path("/where/raw/data/lie")
    folder = raw / hub.name.split("/")[1]
    return (
        f"hf download {hub.name} --repo-type dataset --revision {hub.revision} --local-dir {folder}"
        f" on a machine with a connection; copy that folder to here, and DATA_DIR={raw}"
    )


def data_overrides(words: Sequence[str]) -> list[str]:
    """Return those overrides of a sweep that decide which data are read.

    An option that is swept over is left out: its values read the same raw data.
    """
    kept = []
    for override in OverridesParser.create().parse_overrides([w for w in words if "=" in w]):
        key = override.get_key_element()
        about_data = key.startswith("task.") or key in ("data_dir", "cache_dir")
        if about_data and not override.is_sweep_override():
            assert override.input_line is not None
            kept.append(override.input_line)
    return kept


def report(findings: Sequence[Finding]) -> str:
    """Return the table, and under it what is missing and what supplies it."""
    rows = [[f.task, f.state, "see below" if f.supply else f.detail] for f in findings]
    lines = [markdown([["task", "data", "from"], *rows])]
    for finding in findings:
        if finding.supply:
            lines.append(f"{finding.task}: {finding.detail}\n  to supply it: {finding.supply}")
    return "\n\n".join(lines)


def main() -> None:
    """Look for the data of every task, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tasks", required=True, help="names, separated by commas")
    parser.add_argument("--scale", default="paper")
    parser.add_argument("--protocol", default="nystromformer")
    parser.add_argument("--data-dir", type=Path, help="raw data, before LRA_DATA_DIR")
    parser.add_argument("--missing", choices=("stop", "skip"), default="stop")
    parser.add_argument("overrides", nargs="*", help="key=value of lra.train; use after --")
    args = parser.parse_args()
    findings = []
    try:
        for task in args.tasks.split(","):
            words = [f"task={task}", f"scale={args.scale}", f"protocol={args.protocol}"]
            config = load(*words, *data_overrides(args.overrides))
            findings.append(find_data(config, args.data_dir or config.raw_data_dir()))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    whole = [finding.task for finding in findings if not finding.supply]
    print(report(findings), file=sys.stderr)
    if len(whole) < len(findings) and args.missing == "stop":
        print("\nNothing is trained. MISSING=skip leaves these tasks out.", file=sys.stderr)
        sys.exit(1)
    if not whole:
        print("\nNothing is left to train.", file=sys.stderr)
        sys.exit(1)
    print(",".join(whole))


if __name__ == "__main__":
    main()
