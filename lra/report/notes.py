"""The notes that a reader needs for the numbers of a report, the same in every format."""

from typing import Any

from lra.config import differing
from lra.record import Record
from lra.report.effective_range import SHARE
from lra.report.grid import CHANCE_ERRORS, MAX_SPREAD, Entry, Grid
from lra.report.significance import LEVEL
from lra.report.standing import EXPLAINED
from lra.report.tables import MARK
from lra.stamp import version_text

ACCURACY = (
    "Test accuracy in percent: mean over seeds ± sample standard deviation (n = number of seeds)."
)
CHANCE = (
    "`at chance` marks an accuracy that exceeds the majority class by no more than"
    f" {CHANCE_ERRORS} standard errors for the size of the test set; if only some of the seeds"
    " exceed it by more, their number is given beside n. `above chance` averages (accuracy -"
    " chance) / (1 - chance) over the tasks; a row that lacks a task has no average, and a cell"
    " counts with the seeds that it has."
)
SPEED = (
    "Training speed excludes validation and is the median over windows of updates. `spread` is"
    " the interquartile range of these windows divided by their median; if it exceeds"
    f" {MAX_SPREAD:.0%}, {MARK} indicates that the machine was disturbed; it also marks seeds that"
    " were trained in different conditions. The ratio to softmax is given only if both were"
    " measured on the same machine and device, with the same precision, number of threads, torch"
    " version and commit. Peak memory is that of the whole process on the CPU, and that of the"
    " allocator on a GPU. Over several seeds, speed is the median, whatever their commits, and"
    " spread and memory are the largest; the ratio is taken commit by commit."
)
RANGES = (
    "`effective range`: starting at a method's best bin and moving towards greater values, the end"
    f" of the last bin before the first one whose accuracy is below {SHARE} of that best. The"
    f" {1 - LEVEL:.0%} interval in brackets is from a bootstrap over test examples; it is given if"
    " their predictions are stored. A method at chance has no effective range."
)
LENGTHS = (
    "Test examples are binned by the number of tokens in their longest sequence. The bins hold"
    " equal numbers of examples, except that examples of the same length, such as those truncated"
    " to it, share a bin."
)

SUBMITTED = (
    "Others submitted these results for their own backends. They were not run here, and were"
    " checked only as far as a file allows. Test accuracy is in percent, as above."
)


# What may differ between the seeds of a cell.
_PER_RUN = ("seed", "threads", "device", "data", "protocol")


def heading(grid: Grid, scale: str, protocol: str) -> str:
    """Return the scale, protocol and data of a report as text."""
    return f"scale {scale}, protocol {protocol}, {sources(grid)} data"


def explanations(scale: str, compared: bool) -> list[str]:
    """Return the explanations of the accuracy table, one paragraph each.

    Args:
        scale: Scale.
        compared: Whether the best entries are marked.
    """
    return [
        CHANCE,
        *[EXPLAINED] * compared,
        *[f"The data are those of scale {scale}: figures are comparable only within this table."]
        * (scale != "paper"),
    ]


def notes(grid: Grid) -> list[str]:
    """Return the notes that a reader needs for the numbers, one line each."""
    lines = []
    data = {(r.task, r.data_source, r.data_description, r.data_fingerprint) for r in grid.records}
    for task, source, description, fingerprint in sorted(data):
        lines.append(f"Data of {task}: {source} ({description}), sha256 {fingerprint[:16]}.")
    lines += [
        f"The records of {task} come from different data sets, each with a column of its own:"
        " accuracies are comparable only within a column, and no average is taken."
        for task in grid.split
    ]
    skipped = {(r.task, r.data_skipped_rows) for r in grid.records if r.data_skipped_rows}
    lines += [f"Bad rows left out of {task}: {count:,}." for task, count in sorted(skipped)]
    if selected := sorted({r.task for r in grid.records if r.selected_on == "test"}):
        lines.append(f"Selected on the test set, as published: {', '.join(selected)}.")
    lines += changed(grid)
    own = {(r.attention, r.attention_source) for r in grid.records if r.attention_source}
    lines += [f"Backend {name}: {source}." for name, source in sorted(own)]
    machines = {
        f"{r.machine}, {r.device}, {r.dtype}, {r.threads} thread{'s' * (r.threads != 1)},"
        f" torch {r.torch}" + (", torch.compile" if r.compiled else "")
        for r in grid.records
    }
    lines += [f"Machine: {machine}." for machine in sorted(machines)]
    commits = {version_text(r.commit, r.dirty, 12) for r in grid.records}
    lines += [f"Code: {commit}." for commit in sorted(commits)]
    failed = [r for r in grid.records if r.status == "failed"]
    lines += [f"Failed: {r.task}/{r.method} seed {r.seed}: {r.reason}." for r in failed]
    return lines


def changed(grid: Grid) -> list[str]:
    """Return one line for each entry whose seeds are not of one method or not of one recipe."""
    lines = []
    for task in grid.tasks:
        for method, entry in grid.of(task).items():
            if len(entry.versions) > 1:
                lines.append(
                    f"Not one method: the seeds of {task}/{method} were trained with"
                    f" {len(entry.versions)} versions of its file (`force=true` trains them again)."
                )
            if keys := _unlike(entry):
                lines.append(
                    f"Not one recipe: the seeds of {task}/{method} differ in {', '.join(keys)}."
                )
    return lines


def _unlike(entry: Entry) -> list[str]:
    """Return the keys of the recipe in which the seeds of an entry differ."""
    first, *others = (_recipe(record) for record in entry.finished)
    return sorted({key for each in others for key in differing(first, each)})


def _recipe(record: Record) -> dict[str, Any]:
    """Return what must be equal for two seeds to be averaged."""
    kept = {key: value for key, value in record.config.items() if key not in _PER_RUN}
    return kept | {"parameters": record.parameters}


def settings_notes(grid: Grid) -> list[str]:
    """Return the settings that a scale may choose for each task, one line per task."""
    keys = {
        "model": ("max_length", "positions", "position_std", "pooling", "embedding_std", "dropout"),
        "train": ("learning_rate", "batch_size", "steps"),
    }
    lines = set()
    for record in grid.records:
        chosen = [
            f"{key} {record.config.get(group, {}).get(key, '?')}"
            for group, names in keys.items()
            for key in names
        ]
        variant = "" if record.variant == "default" else f" ({record.variant})"
        lines.add(f"Settings of {record.task}{variant}: {', '.join(chosen)}.")
    return sorted(lines)


def sources(grid: Grid) -> str:
    """Return the sources of the data of a grid's records as text."""
    *first, last = sorted({record.data_source for record in grid.records}) or ["no"]
    return f"{', '.join(first)} and {last}" if first else last
