"""Measure training and inference speed and memory of backends at several lengths, without data.

    lra bench attention=softmax,fourier length=1024,2048
    lra bench attention=my_file:MyAttention attention.options.window=16,32
    lra bench --report

The bench times updates, and forward passes alone, of a recipe's model on random tokens. All
backends at all lengths are timed in turn, round after round in one process, so that a busy moment
of the machine affects all alike; figures are medians. A run is added to this machine's file below
`results/bench`, with its tables and picture beside it. The last command above remakes these from
every such file, or from the files it names, without measuring.
"""

import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from lra.bar import progress_bar
from lra.bench import page
from lra.bench.measured import MODES, Bench, Cell, Document, add, this_machine, write
from lra.bench.measurement import Measurement, shape_of, steps_of
from lra.bench.request import WORD
from lra.build import BackendError, build_model, num_parameters
from lra.compose import load, register
from lra.config import Config, ConfigError, resolve_precision
from lra.division import is_out_of_memory
from lra.flops import inference_flops, training_flops
from lra.folders import writable, writing
from lra.machine import code_version, machine, resolve_device, resolve_threads
from lra.paths import CONFIGS, results_dir
from models import ATTENTION


@dataclass
class BenchConfig:
    """The measurements to take.

    Args:
        attentions: Backends, each given by its name, or by its path if it is one of your own.
            Options that differ from its defaults follow after spaces, such as `linformer rank=64`.
            None measures every built-in backend.
        lengths: Sequence lengths, in tokens.
        task: Task whose recipe defines the model.
        protocol: Protocol of the recipe.
        batch_size: Examples per step.
        repeats: Timings of each backend, length and mode, of which the median is reported.
        attention_dropout: Probability of dropping an attention weight.
        precision: `float32`, or `bfloat16` or `float16` autocast.
        compile: Run the model through `torch.compile`.
        device: `auto`, `cpu`, `cuda`, `cuda:<index>` or `mps`.
        threads: CPU threads; 0 uses torch's default.
        out: JSON file for this run alone, replaced if it exists; by default the run is added to
            this machine's file below `results/bench`.
    """

    attentions: list[str] | None
    lengths: list[int]
    task: str = "listops"
    protocol: str = "nystromformer"
    batch_size: int = 4
    repeats: int = 10
    attention_dropout: float = 0.0
    precision: str = "float32"
    compile: bool = False
    device: str = "auto"
    threads: int = 0
    out: str | None = None

    def check(self) -> None:
        """Check that the numbers are in range.

        Raises:
            ConfigError: A number is out of range; the message names the key, value and range.
        """
        if not self.lengths or min(self.lengths) < 1 or len({*self.lengths}) < len(self.lengths):
            raise ConfigError(
                f"lengths={self.lengths}: must be at least one, each at least 1, without repeats"
            )
        for key, least in (("batch_size", 1), ("repeats", 1), ("threads", 0)):
            if getattr(self, key) < least:
                raise ConfigError(f"{key}={getattr(self, key)}: must be at least {least}")


def cell_config(bench: BenchConfig, attention: str, length: int) -> Config:
    """Compose the configuration of one backend at one length.

    Args:
        bench: The measurements to take.
        attention: Name or path, and options, such as `my_pkg.my_file:MyAttention window=32`.
        length: Sequence length in tokens.

    Raises:
        ConfigError: There is no such backend, option, task or protocol, or a value is out of range.
    """
    word, *options = attention.split()
    overrides = [f"task={bench.task}", f"protocol={bench.protocol}", f"attention={word}"]
    overrides += [option.removeprefix(WORD) for option in options if option.startswith(WORD)]
    for option in [option for option in options if not option.startswith(WORD)]:
        if "=" not in option:
            raise ConfigError(f"attentions: {attention!r}: {option}: options are written key=value")
        overrides.append(f"attention.options.{option}")
    config = load(*overrides)
    model = replace(config.model, max_length=length, attention_dropout=bench.attention_dropout)
    train = replace(config.train, precision=bench.precision, compile=bench.compile)
    task = replace(config.task, truncate=length)
    return replace(config, model=model, train=train, task=task)


def row_names(backends: Sequence[str], attentions: Sequence[str]) -> list[str]:
    """Return the names of the rows of backends: each with its options and nested backends.

    If that leaves two names alike, as with several values of `model.layers`, all words are used.

    Args:
        backends: Names of the backends.
        attentions: The backends as requested in `BenchConfig`.

    Raises:
        ConfigError: Two rows are the same.
    """
    whole = [[name, *text.split()[1:]] for name, text in zip(backends, attentions, strict=True)]
    brief = [
        [w for w in words if not w.startswith(WORD) or w.startswith(f"{WORD}attention")]
        for words in whole
    ]
    for rows in (brief, whole):
        names = [" ".join(word.removeprefix(WORD) for word in words) for words in rows]
        if len({*names}) == len(names):
            return names
    twice = next(name for name in names if names.count(name) > 1)
    raise ConfigError(f"attentions: {twice} is given twice, must be given once")


def measurements(bench: BenchConfig, device: torch.device) -> Iterator[Measurement]:
    """Yield the measurements to take: every backend at every length, in both modes."""
    attentions = list(ATTENTION) if bench.attentions is None else bench.attentions
    for length in bench.lengths:
        configs = [cell_config(bench, attention, length) for attention in attentions]
        names = row_names([config.attention.name for config in configs], attentions)
        for name, config in zip(names, configs, strict=True):
            model = build_model(config)
            shape = shape_of(config, bench.batch_size)
            # Counted without computing, before the model moves to the device.
            flops = {
                "training": training_flops(model, shape),
                "inference": inference_flops(model, shape),
            }
            steps = steps_of(model, config, bench.batch_size, device)
            for mode in MODES:
                yield Measurement(
                    name, length, mode, steps[mode], flops[mode], num_parameters(model)
                )


def measure(bench: BenchConfig) -> list[Cell]:
    """Measure every backend at every length, in rounds.

    Raises:
        ConfigError: There is no such backend, option, task or protocol, or a value is out of range.
        BackendError: A backend rejects a length.
    """
    device = resolve_device(bench.device)
    found = list(measurements(bench, device))
    rounds = bench.repeats + 1
    with progress_bar(total=rounds * len(found), desc="bench", unit="timing") as bar:
        for each in found:
            bar.set_postfix_str(f"{each.name} {each.length:,}")
            each.prepare(device)
            bar.update()
        for _ in range(bench.repeats):
            for each in found:
                bar.set_postfix_str(f"{each.name} {each.length:,}")
                each.time(device)
                bar.update()
    return [each.cell for each in found]


def check_out(bench: BenchConfig) -> None:
    """Reject an output that cannot be written, before minutes are spent on measuring.

    Raises:
        ConfigError: `out`, or the folder of results, cannot be written.
    """
    folder = Path(bench.out).parent if bench.out else Path(results_dir(), "bench")
    if bench.out and Path(bench.out).is_dir():
        raise ConfigError(f"out={bench.out}: is a folder, must be a file")
    if bench.out and Path(bench.out).suffix in (".md", ".svg", ".png"):
        raise ConfigError(
            f"out={bench.out}: must be a JSON file; {Path(bench.out).suffix} is the suffix of its"
            " tables or picture"
        )
    if not writable(folder):
        key = "out" if bench.out else "results_dir"
        raise ConfigError(f"{key}={folder}: cannot be written to; choose another with out=FILE")


def benched(bench: BenchConfig, cells: Sequence[Cell], total_seconds: float) -> Bench:
    """Return a run as it is stored."""
    device = resolve_device(bench.device)
    commit, dirty = code_version()
    first = cell_config(bench, (bench.attentions or [*ATTENTION])[0], bench.lengths[0])
    return Bench(
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        device=device.type,
        threads=torch.get_num_threads(),
        dtype=resolve_precision(bench.precision, device.type),
        compiled=bench.compile,
        task=bench.task,
        protocol=bench.protocol,
        batch_size=bench.batch_size,
        attention_dropout=bench.attention_dropout,
        total_seconds=round(total_seconds, 1),
        torch=torch.__version__,
        python=platform.python_version(),
        commit=commit,
        dirty=dirty,
        cells=list(cells),
        sequences=first.task.sequences,
    )


register()
ConfigStore.instance().store(name="bench_schema", node=BenchConfig)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="bench")  # type: ignore[untyped-decorator]  # Hydra has no types
def main(composed: DictConfig) -> None:
    """Measure, print the tables, and write them beside the machine's file."""
    bench = OmegaConf.to_object(composed)
    assert isinstance(bench, BenchConfig)
    started = time.perf_counter()
    try:
        bench.check()
        check_out(bench)
        if bench.threads:
            torch.set_num_threads(resolve_threads(bench.threads))
        cells = measure(bench)
        run = benched(bench, cells, time.perf_counter() - started)
        here = this_machine(machine(resolve_device(bench.device)))
        if bench.out is None:
            file = add(Path(results_dir(), "bench"), here, run)
        else:
            file = Path(bench.out)
            with writing("out", file, "writing the records of a bench"):
                file.parent.mkdir(parents=True, exist_ok=True)
                write(file, Document(machine=here, runs=[run]))
    except (ValueError, BackendError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        # The model itself is too large; if only a step is, its cell says so.
        if not is_out_of_memory(error):
            raise
        print(f"out of memory: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)
    print(page.write(file, here, run))
    print(f"Written to {file}, {file.with_suffix('.md').name} and {file.with_suffix('.svg').name}")
