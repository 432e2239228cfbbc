"""Speed and memory of a training step for every backend at several lengths, without data.

    lra bench attention=softmax,fourier lengths=[1024,2048]
    lra bench attention=my_file:MyAttention attention.options.window=16,32

Random tokens, the model of a recipe, forward, backward and update. All backends of a length run
in turn within one process, so that the ratio to softmax is of the same minutes; figures are
medians. Results go to `results/bench/<device>.json`.
"""

import itertools
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from lra import memory
from lra.batches import Batch
from lra.bench.request import WORD
from lra.build import BackendError, build_model, num_parameters
from lra.compose import load, register
from lra.config import Config, ConfigError
from lra.flops import training_flops
from lra.machine import code_version, interleaved, machine, resolve_device
from lra.markdown import markdown
from lra.optimiser import optimiser_for
from lra.paths import CONFIGS, results_dir
from lra.precision import scaler_for
from lra.report.grid import BASELINE
from lra.update import update
from models import ATTENTION

log = logging.getLogger(__name__)


@dataclass
class BenchConfig:
    """What is measured.

    Args:
        attentions: Backends, each by its name, or by its path where it is one of your own; options
            that differ from its defaults follow after spaces, such as `linformer rank=64`. None
            stands for every built-in one.
        lengths: Sequence lengths, in tokens.
        task: Whose recipe gives the model.
        protocol: Whose recipe it is.
        batch_size: Sequences per step.
        repeats: Timed steps of each backend; the median counts.
        attention_dropout: Probability of dropping an attention weight.
        precision: `float32`, or `bfloat16` or `float16` autocast.
        compile: Run the model through `torch.compile`.
        device: `auto`, `cpu`, `cuda`, `cuda:<index>` or `mps`.
        threads: CPU threads; 0 takes torch's default.
        out: JSON file; by default `results/bench/<device>.json`, with a number where that is there.
    """

    attentions: list[str] | None
    lengths: list[int]
    task: str = "listops"
    protocol: str = "nystromformer"
    batch_size: int = 4
    repeats: int = 5
    attention_dropout: float = 0.0
    precision: str = "float32"
    compile: bool = False
    device: str = "auto"
    threads: int = 0
    out: str | None = None


def training_step(config: Config, batch_size: int, device: torch.device) -> Callable[[], None]:
    """Return a function that makes one update on random tokens of full length."""
    model = build_model(config).to(device).train()
    optimiser, _ = optimiser_for(model, config.train)
    scaler = scaler_for(device, config.train.precision)
    forward = torch.compile(model) if config.train.compile else model
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, *[2] * (config.task.sequences == 2), config.model.max_length)
    tokens = torch.randint(1, config.task.num_symbols, shape, generator=generator).to(device)
    labels = torch.randint(config.task.num_classes, (batch_size,), generator=generator).to(device)
    batch = Batch(tokens, None, labels, tokens.numel())

    def step() -> None:
        update(forward, optimiser, [batch], config.train, scaler)

    return step


def flops_of(config: Config, batch_size: int) -> int:
    """Return the operations of such an update's forward and backward, see `lra.flops`."""
    pair = [2] * (config.task.sequences == 2)
    return training_flops(build_model(config), (batch_size, *pair, config.model.max_length))


def cell_config(bench: BenchConfig, attention: str, length: int) -> Config:
    """Compose the configuration of one backend at one length.

    Args:
        bench: What is measured.
        attention: Name or path, and options, such as `my_pkg.my_file:MyAttention window=32`.
        length: In tokens.

    Raises:
        ConfigError: There is no such backend, option, task or protocol, or a value is out of range.
    """
    word, *options = attention.split()
    overrides = [f"task={bench.task}", f"protocol={bench.protocol}", f"attention={word}"]
    overrides += [option.removeprefix(WORD) for option in options if option.startswith(WORD)]
    for option in [option for option in options if not option.startswith(WORD)]:
        if "=" not in option:
            raise ConfigError(
                f"attentions: {attention!r}: {option}: an option is written key=value"
            )
        overrides.append(f"attention.options.{option}")
    config = load(*overrides)
    model = replace(config.model, max_length=length, attention_dropout=bench.attention_dropout)
    train = replace(config.train, precision=bench.precision, compile=bench.compile)
    task = replace(config.task, truncate=length)
    return replace(config, model=model, train=train, task=task)


def _shown(attention: str) -> list[str]:
    """Return what tells one row of a backend from another: its options, and what is inside."""
    words = attention.split()[1:]
    kept = [
        word for word in words if not word.startswith(WORD) or word.startswith(f"{WORD}attention")
    ]
    return [word.removeprefix(WORD) for word in kept]


def measure(bench: BenchConfig) -> list[dict[str, Any]]:
    """Return one row per length and backend: seconds, ratio to softmax, memory, operations."""
    device = resolve_device(bench.device)
    attentions = list(ATTENTION) if bench.attentions is None else bench.attentions
    rows = []
    for length in bench.lengths:
        cells = [cell_config(bench, attention, length) for attention in attentions]
        configs = {
            # The options too, so that two variants of a backend are two rows.
            " ".join([config.attention.name, *_shown(attention)]): config
            for attention, config in zip(attentions, cells, strict=True)
        }
        steps = {n: training_step(c, bench.batch_size, device) for n, c in configs.items()}
        seconds = interleaved(steps, bench.repeats, device)
        for name, step in steps.items():
            faster = seconds[BASELINE] / seconds[name] if BASELINE in seconds else None
            row = {
                "attention": name,
                "length": length,
                "seconds_per_step": seconds[name],
                "speed_ratio_to_softmax": faster,
                "peak_memory_bytes": memory.peak_of(step, device),
                "flops_per_step": flops_of(configs[name], bench.batch_size),
                "parameters": num_parameters(build_model(configs[name])),
            }
            log.info("%s", {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown: backends by lengths."""
    lengths = sorted({row["length"] for row in rows})
    header = ["attention", *(f"{n}: steps/s (x softmax), MiB" for n in lengths)]
    lines = []
    for name in dict.fromkeys(row["attention"] for row in rows):
        texts = []
        for length in lengths:
            row = next(r for r in rows if (r["attention"], r["length"]) == (name, length))
            ratio = row["speed_ratio_to_softmax"]
            faster = "-" if ratio is None else f"{ratio:.2f}"
            peak = row["peak_memory_bytes"] / 2**20
            texts.append(f"{1 / row['seconds_per_step']:.2f} ({faster}), {peak:,.0f}")
        lines.append([name, *texts])
    return markdown([header, *lines])


register()


def unused(start: Path) -> Path:
    """Return a JSON file that is not there yet: results are overwritten by `out=` alone."""
    names = (f"-{number}" if number > 1 else "" for number in itertools.count(1))
    files = (start.with_name(f"{start.name}{each}.json") for each in names)
    return next(file for file in files if not file.exists())


ConfigStore.instance().store(name="bench_schema", node=BenchConfig)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="bench")  # type: ignore[untyped-decorator]  # Hydra has no types
def main(composed: DictConfig) -> None:
    """Measure, print the table and write the JSON file."""
    bench = OmegaConf.to_object(composed)
    assert isinstance(bench, BenchConfig)
    if bench.threads:
        torch.set_num_threads(bench.threads)
    device = resolve_device(bench.device)
    try:
        rows = measure(bench)
    except (ConfigError, BackendError) as error:
        raise SystemExit(f"{error}") from error
    commit, dirty = code_version()
    document = {
        "machine": machine(device),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit,
        "dirty": dirty,
        "config": OmegaConf.to_container(composed),
        "rows": rows,
    }
    file = Path(bench.out) if bench.out else unused(Path(results_dir(), "bench", device.type))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1) + "\n")
    print(table(rows))
    print(f"Batch {bench.batch_size}, {document['machine']}, {document['threads']} threads; {file}")
