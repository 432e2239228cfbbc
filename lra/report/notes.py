"""What a reader must know of the numbers of a report, the same in every format."""

from lra.report.effective_range import SHARE
from lra.report.grid import CHANCE_ERRORS, MOST_SPREAD, Grid
from lra.report.significance import LEVEL
from lra.report.standing import EXPLAINED
from lra.report.tables import MARK

ACCURACY = "Test accuracy in percent: mean over seeds ± standard deviation (n = number of seeds)."
CHANCE = (
    f"`at chance`: not above the majority class by more than {CHANCE_ERRORS} standard errors;"
    " where only some seeds are above it, their number is beside n. `above chance` averages"
    " (accuracy - chance) / (1 - chance); an incomplete row has no average."
)
SPEED = (
    "Training speed without validation: the median over windows of updates. `spread` is"
    " the interquartile range of these windows over their median; where it exceeds"
    f" {MOST_SPREAD:.0%}, {MARK} says that the machine was disturbed. The ratio to"
    " softmax is given only where both were measured on one machine, device,"
    " precision, number of threads, torch and commit. Memory on the CPU is the whole"
    " process at its peak, on a GPU the allocator's peak."
)
RANGES = (
    "`effective range`: from a method's best bin towards greater values, the end of the last bin"
    f" before the first whose accuracy is below {SHARE} of that best; in brackets the"
    f" {1 - LEVEL:.0%} interval of a bootstrap over test examples, where their predictions are"
    " stored. A method at chance has none."
)
LENGTHS = (
    "Bins by tokens of the longest sequence, with equal numbers of test examples, except that"
    " examples of one length, such as those cut there, share a bin."
)

SUBMITTED = (
    "Results that others submitted, of backends of theirs: not run here, and checked for what a"
    " file can tell. Test accuracy in percent as above."
)


def heading(grid: Grid, scale: str, protocol: str) -> str:
    """Return what a report is of, in words, its data among them."""
    return f"scale {scale}, protocol {protocol}, {sources(grid)} data"


def explanations(scale: str, compared: bool) -> list[str]:
    """Return what is said of the table of accuracy, a paragraph each.

    Args:
        scale: Scale.
        compared: Whether what is best is marked.
    """
    return [
        CHANCE,
        *[EXPLAINED] * compared,
        *[f"These are {scale} data: figures compare only within this table."] * (scale != "paper"),
    ]


def notes(grid: Grid) -> list[str]:
    """Return what a reader must know of the numbers, one line each."""
    lines = []
    data = {(r.task, r.data_source, r.data_description, r.data_fingerprint) for r in grid.records}
    for task, source, description, fingerprint in sorted(data):
        lines.append(f"Data of {task}: {source} ({description}), sha256 {fingerprint[:16]}.")
    lines += [
        f"Records of {task} are of different data, each in a column of its own: accuracies compare"
        " only within a column, and no average is taken."
        for task in grid.split
    ]
    skipped = {(r.task, r.data_skipped_rows) for r in grid.records if r.data_skipped_rows}
    lines += [f"Bad rows left out of {task}: {count:,}." for task, count in sorted(skipped)]
    if selected := sorted({r.task for r in grid.records if r.selected_on == "test"}):
        lines.append(f"Selected on test, as published: {', '.join(selected)}.")
    lines += changed(grid)
    own = {(r.attention, r.attention_source) for r in grid.records if r.attention_source}
    lines += [f"Backend {name}: {source}." for name, source in sorted(own)]
    machines = {
        f"{r.machine}, {r.device}, {r.dtype}, {r.threads} threads, torch {r.torch}"
        + (", torch.compile" if r.compiled else "")
        for r in grid.records
    }
    lines += [f"Machine: {machine}." for machine in sorted(machines)]
    commits = {
        f"{r.commit[:12] or 'unknown'}{' with local changes' if r.dirty else ''}"
        for r in grid.records
    }
    lines += [f"Code: {commit}." for commit in sorted(commits)]
    failed = [r for r in grid.records if r.status == "failed"]
    lines += [f"Failed: {r.task}/{r.method} seed {r.seed}: {r.reason}." for r in failed]
    return lines


def changed(grid: Grid) -> list[str]:
    """Return what has seeds of several versions of a user's own backend, one line each."""
    return [
        f"Not one method: {task}/{method} has seeds of {len(entry.versions)} versions of its file"
        " (`force=true` trains them again)."
        for task in grid.tasks
        for method, entry in grid.of(task).items()
        if len(entry.versions) > 1
    ]


def settings_notes(grid: Grid) -> list[str]:
    """Return the settings that a scale may choose task by task, one line per task."""
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
        lines.add(f"Setting of {record.task}{variant}: {', '.join(chosen)}.")
    return sorted(lines)


def sources(grid: Grid) -> str:
    """Return where the data of a grid's records are from, in words."""
    *first, last = sorted({record.data_source for record in grid.records}) or ["no"]
    return f"{', '.join(first)} and {last}" if first else last
