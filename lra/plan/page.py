"""The text of a plan: its cells, the hours by task and backend, disk, and what to leave out."""

import heapq
import math
import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lra import memory
from lra.cores import available_cores
from lra.machine import machine, resolve_device
from lra.markdown import Table, markdown
from lra.paths import existing
from lra.plan.cells import PlannedCell
from lra.words import grouped

# A part is worth leaving out when it takes at least this share of the time.
WORTH = 0.1
# Pairs of task and backend that together take this share are named if they are few.
HEAVY = 0.5
MAX_NAMED = 4
# Minutes to request for a Slurm job, at most: long jobs wait longer in the queue.
MAX_MINUTES = 24 * 60
MAX_LINES = 6


def duration(seconds: float) -> str:
    """Return seconds in a fitting unit, such as `2.4 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds / 60:.1f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h"


def precise(seconds: float) -> str:
    """Return seconds with three digits, or with all those before the decimal point."""
    return f"{seconds:.3g}" if seconds < 999.5 else f"{seconds:,.0f}"


def size(count: float) -> str:
    """Return bytes in a fitting unit, such as `1.4 GB`."""
    for unit, factor in {"GB": 1e9, "MB": 1e6}.items():
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count / 1e3:,.0f} kB"


def threads(number: int) -> str:
    """Return a number of threads in words."""
    return "1 thread" if number == 1 else f"{number} threads"


def name(cell: PlannedCell) -> str:
    """Return a cell's name, such as `text/softmax`."""
    return f"{cell.task}/{cell.method}"


def measured_on(cell: PlannedCell) -> str:
    """Return how many steps of which part of a batch were timed, such as `3 x 8/32`."""
    assert cell.cost is not None
    cost = cell.cost
    steps = f"{cost.repeats} x {cost.rows}/{cost.batch_size}"
    return steps if cost.width == cost.batch_width else f"{steps}, {cost.width}/{cost.batch_width}"


def cell_table(cells: Sequence[PlannedCell], base: int) -> Table:
    """Return one row per cell: its state, what is left and what that takes.

    Args:
        cells: The cells of a sweep.
        base: Bytes that a process holds before it has a model.
    """
    header = "task|attention|seed|state|updates|s each|timed|validations|s each|test|total|peak"
    table = [header.split("|")]
    for cell in cells:
        names = [cell.task, str(cell.method), str(cell.seed), cell.state]
        if cell.cost is None:
            table.append([*names, *["-"] * 8])
            continue
        table.append(
            [
                *names,
                f"{cell.updates:,}",
                precise(cell.cost.update_seconds),
                measured_on(cell),
                f"{cell.validations:,}",
                precise(cell.validation_seconds),
                duration(cell.test_seconds),
                duration(cell.seconds),
                size(peak(cell, base)),
            ]
        )
    return table


def peak(cell: PlannedCell, base: int) -> float:
    """Return a cell's memory at its peak: the process's on a CPU, the allocator's on a GPU."""
    assert cell.config is not None
    return cell.memory(base if resolve_device(cell.config.device).type == "cpu" else 0)


def hours_table(cells: Sequence[PlannedCell]) -> Table:
    """Return the time left by backend and task, summed over seeds, with totals."""
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    methods = list(dict.fromkeys(cell.method for cell in cells))
    table = [["attention", *tasks, "total"]]
    for method in methods:
        groups = [[c for c in cells if (c.task, c.method) == (task, method)] for task in tasks]
        table.append([str(method), *map(_sum, groups), _sum(c for g in groups for c in g)])
    columns = [_sum(c for c in cells if c.task == task) for task in tasks]
    return [*table, ["total", *columns, _sum(cells)]]


def _sum(cells: Iterable[PlannedCell]) -> str:
    """Return the total time of cells or, if none is left, the states that they are in."""
    listed = list(cells)
    if any(cell.cost for cell in listed):
        return duration(sum(cell.seconds for cell in listed))
    return ", ".join(dict.fromkeys(cell.state for cell in listed)) or "-"


def commands(cells: Sequence[PlannedCell], grid: Sequence[PlannedCell]) -> list[str]:
    """Return the words that train some cells, one line per command.

    Args:
        cells: Cells to be trained.
        grid: The grid that they belong to; words that it has anyway are left out.
    """
    everything: dict[str, tuple[str, ...]] = {}
    for group in grouped([cell.words for cell in grid]):
        for key, values in group.items():
            everything[key] = tuple(dict.fromkeys(everything.get(key, ()) + values))
    lines = []
    for group in grouped([cell.words for cell in cells]):
        words = [
            f"{key}={','.join(value for value in everything[key] if value in some)}"
            for key, some in group.items()
            if len(some) < len(everything[key])
        ]
        lines += [shlex.join(words)] if words else []
    return lines


def _values(cells: Iterable[PlannedCell], axis: Callable[[PlannedCell], str]) -> list[str]:
    return list(dict.fromkeys(map(axis, cells)))


def savings(cells: Sequence[PlannedCell]) -> list[tuple[str, list[PlannedCell]]]:
    """Return what could be left out, as words and the cells that remain; what saves most is first.

    Candidates are every task, every backend, the best of these with the best after it, all seeds
    but the first, and those few pairs of task and backend that together take half of the time. Of
    all these, the ones that save a tenth are returned.
    """
    total, singles = _seconds(cells), _singles(cells)
    found = list(singles)
    best, out = max(singles, key=lambda each: _seconds(each[1]), default=("", []))
    rest = [cell for cell in cells if cell not in out]
    if rest:
        second, more = max(_singles(rest), key=lambda each: _seconds(each[1]))
        found.append((f"{best} and {second}", [*out, *more]))
    first = min((cell.seed for cell in cells), default=0)
    found.append((f"all seeds but {first}", [cell for cell in cells if cell.seed != first]))
    heavy = _heaviest(cells)
    if len(heavy) <= MAX_NAMED:
        found.append((", ".join(name(pair[0]) for pair in heavy), sum(heavy, [])))
    different = {frozenset(map(id, out)): (words, out) for words, out in reversed(found)}
    worth = [each for each in different.values() if WORTH * total <= _seconds(each[1]) < total]
    worth.sort(key=lambda each: -_seconds(each[1]))
    return [(words, [cell for cell in cells if cell not in out]) for words, out in worth]


def _singles(cells: Sequence[PlannedCell]) -> list[tuple[str, list[PlannedCell]]]:
    """Return the cells of every task and of every backend."""
    axes: tuple[Callable[[PlannedCell], str], ...]
    axes = (lambda cell: cell.task, lambda cell: cell.method.attention)
    return [
        (value, [cell for cell in cells if axis(cell) == value])
        for axis in axes
        for value in _values(cells, axis)
    ]


def _heaviest(cells: Sequence[PlannedCell]) -> list[list[PlannedCell]]:
    """Return the fewest pairs of task and backend that take half of the time, over seeds."""
    pairs = [[cell for cell in cells if name(cell) == each] for each in _values(cells, name)]
    heavy: list[list[PlannedCell]] = []
    for pair in sorted(pairs, key=_seconds, reverse=True):
        if sum(map(_seconds, heavy)) < HEAVY * _seconds(cells):
            heavy.append(pair)
    return heavy


def _seconds(cells: Iterable[PlannedCell]) -> float:
    return sum(cell.seconds for cell in cells)


def saving_lines(cells: Sequence[PlannedCell]) -> list[str]:
    """Return what could be left out, how long the rest takes, and the words for that."""
    grid = [cell for cell in cells if cell.state != "refused"]
    lines = []
    for words, rest in savings(grid)[:MAX_LINES]:
        times = f"{duration(_seconds(rest))} instead of {duration(_seconds(cells))}"
        if chosen := commands(rest, grid):
            lines.append(f"* without {words}: {times}, with {' and then '.join(chosen)}")
    return ["What could be left out:", *lines] if lines else []


def state_lines(cells: Sequence[PlannedCell]) -> list[str]:
    """Return the reason for the state of every cell that has one; equal ones are listed once."""
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if cell.detail:
            state = f"{cell.state}: {cell.detail}"
            reasons.setdefault(state, []).append(f"{name(cell)} seed {cell.seed}")
    return [f"* {', '.join(names)} {state}" for state, names in reasons.items()]


def data_lines(cells: Sequence[PlannedCell]) -> list[str]:
    """Return how long sequences were assumed to be, and which data are missing."""
    tasks: dict[str, list[str]] = {"real": [], "full": [], "missing": []}
    for cell in cells:
        if cell.cost and cell.data:
            tasks["real" if cell.data.built else "full"].append(cell.task)
            tasks["missing"] += [cell.task] * cell.data.missing
    real, full, missing = (", ".join(dict.fromkeys(names)) for names in tasks.values())
    lines = []
    if real:
        lines.append(f"Sequence lengths come from the data in the cache for {real}.")
    if full:
        lines.append(
            f"No data are built for {full}: sequences are assumed to have the full length."
            " `lra data` builds them; otherwise, the first cell does, which is not counted."
        )
    return [
        *lines,
        *(
            [f"There are no raw data to build from for {missing}; see `lra preflight`."]
            * bool(missing)
        ),
    ]


def total_lines(cells: Sequence[PlannedCell]) -> list[str]:
    """Return the totals: cells, time, disk."""
    todo = [cell for cell in cells if cell.cost]
    counts: dict[str, int] = {}
    for cell in cells:
        counts[cell.state] = counts.get(cell.state, 0) + 1
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    lines = [f"Cells: {states}."]
    if counts.get("elsewhere"):
        lines.append(
            f"{counts['elsewhere']} of them are to be trained on a GPU, which this machine lacks:"
            " make the plan on a machine with one, for example with srun --gpus=1 lra plan ..."
        )
    if not todo:
        return lines if counts.get("elsewhere") else [*lines, "Nothing is left to train."]
    config, values = todo[0].config, todo[0].values
    assert config is not None
    device = resolve_device(config.device)
    where = f"{machine(device)}, {device.type}, {threads(values['threads'])}"
    lines.append(f"Time: {duration(_seconds(cells))}, one cell after the other, on {where}.")
    lines += at_once_lines(todo, device.type, available_cores())
    partly = [c for c in todo if c.cost and c.cost.rows < c.cost.batch_size]
    if partly and device.type == "cpu" and config.train.micro_batch == 0:
        lines.append(
            f"{len(partly)} of {len(todo)} cells were timed on part of a batch. On a CPU, they may"
            " take longer: a part fits the caches, but a whole batch does not (up to 2.6 times as"
            " long where both were measured). `lra plan --budget 60` times larger parts."
        )
    builds = {c.data.folder: c.data.bytes for c in todo if c.data and c.data.bytes}
    runs, data = sum(cell.disk for cell in todo), sum(builds.values())
    free = {Path(where): _free(Path(where)) for where in (config.runs_dir, config.cache_dir)}
    build = f", at most {size(data)} for data in {config.cache_dir}" if data else ""
    room = " and ".join(f"{size(count)} free in {where}" for where, count in free.items())
    lines.append(f"Disk: {size(runs)} in {config.runs_dir}{build}; {room}.")
    if runs + data > min(free.values()):
        lines.append("WARNING: there is too little space on the disk.")
    return lines


def makespan(seconds: Iterable[float], jobs: int) -> float:
    """Return how long cells take if each of the jobs always takes the next cell that is left."""
    free = [0.0] * jobs
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def at_once_lines(cells: Sequence[PlannedCell], device: str, number: int) -> list[str]:
    """Return how long it takes with a cell per core, if there are cores for several.

    Args:
        cells: Cells that are to be trained.
        device: `cpu` or `cuda`.
        number: Cores.
    """
    each = cells[0].values["threads"]
    jobs = min(number // each, len(cells))
    if device != "cpu" or jobs < 2:
        return []
    whole = duration(makespan([cell.seconds for cell in cells], jobs))
    words = f"hydra.launcher.n_jobs={jobs} threads={each}"
    return [
        f"With {jobs} cells at a time (hydra/launcher=joblib {words}, for make: LAUNCHER=joblib"
        f" ARGS='{words}'): {whole} at best, as they share caches and memory."
    ]


def slurm_lines(cells: Sequence[PlannedCell], base: int) -> list[str]:
    """Return the words that ask Slurm for what a plan has found, if there is a Slurm.

    Args:
        cells: The cells of a sweep.
        base: Bytes that a process holds before it has a model.
    """
    todo = [cell for cell in cells if cell.cost]
    asked = any("hydra/launcher=slurm" in cell.words for cell in cells)
    if not todo or not (asked or shutil.which("sbatch")):
        return []
    # Half as much again, for a busy node; a job that needs more goes back into the queue.
    minutes = min(MAX_MINUTES, math.ceil(1.5 * max(cell.seconds for cell in todo) / 60) + 10)
    device = resolve_device(todo[0].config.device) if todo[0].config else None
    # Updates take the memory of the GPU, if there is one, and not that of the node.
    on_gpu = device is not None and device.type != "cpu"
    sizes = [cell.memory_between(base) if on_gpu else cell.memory(base) for cell in todo]
    gigabytes = math.ceil(1.25 * max(sizes) / 1e9) + 2
    wanted = {"timeout_min": minutes, "mem_gb": gigabytes}
    wanted["cpus_per_task"] = max(cell.values["threads"] for cell in todo)
    words = " ".join(f"hydra.launcher.{key}={value}" for key, value in wanted.items())
    lines = [f"Slurm: hydra/launcher=slurm {words}"]
    if device is not None and not on_gpu:
        lines[0] += " hydra.launcher.gpus_per_node=0"
        lines.append(
            "This is for processors like those of this machine; for GPUs, make the plan on a node"
            " with one, for example with srun --gpus=1 lra plan ..."
        )
    return lines


def _free(folder: Path) -> int:
    """Return the free bytes where a folder is, or would be."""
    return shutil.disk_usage(existing(folder)).free


def memory_lines(cells: Sequence[PlannedCell], base: int) -> list[str]:
    """Return a warning for every cell that needs more memory than there is."""
    lines = {}
    for cell in cells:
        if cell.cost and cell.config:
            total = memory.total(resolve_device(cell.config.device))
            if (needed := peak(cell, base)) > total:
                lines[name(cell)] = f"* {name(cell)}: {size(needed)} of {size(total)}"
    return ["WARNING: these need more memory than there is:", *lines.values()] if lines else []


def page(cells: Sequence[PlannedCell], base: int) -> str:
    """Return the whole plan.

    Args:
        cells: The cells of a sweep; those to be trained have their costs.
        base: Bytes that a process holds before it has a model.
    """
    legend = (
        "timed: steps x sequences timed / sequences of a batch, then tokens timed / tokens if only"
        " a part of the length was; scaled to the batch. peak: memory of libraries and, at most, of"
        " tensors; on a CPU, a process takes some 0.2 GB more."
    )
    parts = [
        markdown(cell_table(cells, base)),
        "\n".join([legend, *data_lines(cells), *state_lines(cells)]),
        "Time left:\n\n" + markdown(hours_table(cells)),
        "\n".join([*total_lines(cells), *slurm_lines(cells, base), *memory_lines(cells, base)]),
        "\n".join(saving_lines(cells)),
    ]
    return "\n\n".join(part for part in parts if part)
