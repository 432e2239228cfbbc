"""Make the efficiency table of the Long Range Arena paper from bench records, without torch.

The tables give, for training and inference, steps per second, tokens per second, peak memory and
operations at every length, with the power of N with which time and memory grow. Nothing is timed.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from lra.bench.growth_figure import A_STEP, growth_figure
from lra.bench.measured import MODES, Bench, Cell, Machine, Mode, Quantity
from lra.markdown import Table, escaped, markdown
from lra.report.figure import save
from lra.report.grid import BASELINE
from lra.report.tables import MARK
from lra.stamp import version_text

# A timing is marked if its interquartile range exceeds this share of its median.
MAX_SPREAD = 0.1
STEPS = {"training": "Updates", "inference": "Batches"}


def ratio(run: Bench, cell: Cell) -> float | None:
    """Return how many times as fast as softmax a backend is; None if softmax was not measured."""
    baseline = run.cell(BASELINE, cell.length, cell.mode)
    return None if baseline is None else baseline.median / cell.median


def _doubtful(cell: Cell | None) -> bool:
    return cell is not None and cell.spread > MAX_SPREAD


def _speed(run: Bench, cell: Cell) -> str:
    faster = ratio(run, cell)
    text = f"{1 / cell.median:.3g}" + ("" if faster is None else f" ({faster:.2f})")
    both = (cell, run.cell(BASELINE, cell.length, cell.mode))
    return f"{text} {MARK}" if any(map(_doubtful, both)) else text


def _tokens(run: Bench, cell: Cell) -> str:
    text = f"{run.batch_size * run.sequences * cell.length / cell.median:,.0f}"
    return f"{text} {MARK}" if _doubtful(cell) else text


def _memory(run: Bench, cell: Cell) -> str:
    return f"{cell.peak_memory_bytes / 2**20:,.1f}"


def _operations(run: Bench, cell: Cell) -> str:
    return f"{cell.flops / 1e9:,.3g}"


# Each line is a table of both modes: its title, the value per length, and the quantity that grows.
TABLES: tuple[tuple[str, Callable[[Bench, Cell], str], Quantity | None], ...] = (
    ("{steps} per second (times softmax)", _speed, "seconds"),
    ("Tokens per second", _tokens, None),
    ("Peak memory, MiB", _memory, "peak_memory_bytes"),
    ("Operations, GFLOP {a_step}", _operations, "flops"),
)
GROWS = {"seconds": "time as N^", "peak_memory_bytes": "memory as N^", "flops": "FLOPs as N^"}


def _table(
    run: Bench, mode: Mode, shown: Callable[[Bench, Cell], str], quantity: Quantity | None
) -> Table:
    header = ["attention", *(f"{length:,}" for length in run.lengths)]
    rows = [header + ([GROWS[quantity]] if quantity else [])]
    for attention in run.attentions:
        cells = [run.cell(attention, length, mode) for length in run.lengths]
        row = [attention, *("failed" if cell is None else shown(run, cell) for cell in cells)]
        if quantity:
            found = run.growth(attention, mode, quantity)
            row.append("" if found is None else str(found))
        rows.append(row)
    return rows


def sections(run: Bench) -> Iterator[str]:
    """Yield the tables of a run, each preceded by its title."""
    for mode in MODES:
        yield f"## {mode.capitalize()}"
        for title, shown, quantity in TABLES:
            yield f"{title.format(steps=STEPS[mode], a_step=A_STEP[mode])}:"
            yield markdown(_table(run, mode, shown, quantity))


def about(machine: Machine, run: Bench) -> list[str]:
    """Return the notes that a reader needs for a run's figures."""
    timings = {len(cell.seconds) for cell in run.cells if not cell.failed} or {0}
    most = f"{100 * MAX_SPREAD:.0f} %"
    number = "–".join(str(each) for each in sorted({min(timings), max(timings)}))
    code = version_text(run.commit, run.dirty, 12)
    dropped = f"attention dropout {run.attention_dropout:g}"
    compiled = ", torch.compile" if run.compiled else ""
    return [
        f"{machine.name}, {machine.processors} processors; {run.device}, threads: {run.threads},"
        f" {run.dtype}{compiled}.",
        f"Model of {run.task} under {run.protocol}, random tokens, batches of {run.batch_size},"
        f" {dropped}.",
        f"Times are medians of {number} timings, taken in turn over all backends and lengths;"
        f" {MARK} marks an interquartile range, of the backend or of softmax, above {most} of the"
        " median.",
        "Powers of N are least-squares fits over the lengths, with 95 % intervals by Student's t."
        " Memory is what a step adds. Operations are counted: products, convolutions, attention and"
        " FFTs.",
        f"Code {code}, torch {run.torch}, Python {run.python}; {run.when},"
        f" {run.total_seconds:.0f} s in total.",
    ]


def failures(run: Bench) -> list[str]:
    """Return one line for each cell that has no timing."""
    return [
        f"failed: {cell.attention} at {cell.length:,}, {cell.mode}: {cell.failed}"
        for cell in run.cells
        if cell.failed
    ]


def page(machine: Machine, run: Bench) -> str:
    """Return the tables of a run as one Markdown page."""
    remarks = map(escaped, [*failures(run), *about(machine, run)])
    return "\n\n".join(["# Speed and memory by length", *sections(run), *remarks]) + "\n"


def write(file: Path, machine: Machine, run: Bench) -> str:
    """Write the page and picture of a run beside a machine's file; return the page.

    Args:
        file: The machine's JSON file; the page and picture share its name with other suffixes.
        machine: The machine.
        run: The run.
    """
    text = page(machine, run)
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    save(growth_figure(machine, run), file.with_suffix(""))
    return text
