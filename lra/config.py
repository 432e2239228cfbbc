"""Every option once, with its type, default and unit, and which of them can change a number.

`configs/*.yaml` hold values only; `lra.compose` builds a `Config` from them.
"""

import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from lra import variant
from lra.paths import cache_dir, runs_dir
from lra.typecheck import describe, fits
from lra.words import ConfigError as ConfigError
from lra.words import shown
from models.sizes import ModelConfig

SCHEDULES = ("one_cycle", "rsqrt", "cosine", "half_cosine", "linear", "constant")
PRETRAININGS = (variant.NO_PRETRAINING, *variant.PRETRAININGS)
PRETRAIN_LOSSES = ("cross_entropy", "l1")
ROLES = ("dt", "A", "B", "C", "weight", "bias", "norm", "embedding")
PRECISIONS = ("float32", "bfloat16", "float16", "float16_on_gpu")
# AdamW divides it by numbers below 1, and the result must be a float32.
MAX_RATE = 1e30
# Seeds from here on count as negative in torch's generators.
SEED_LIMIT = 2**63
# File systems allow names of 255 bytes; a variant is the name of a folder.
MAX_VARIANT = 200
DATA_DIR_VARIABLE = "LRA_DATA_DIR"


@dataclass(kw_only=True)
class TaskConfig:
    """The data of a task.

    Args:
        name: Key of the task in `lra.tasks`; for a user's own task, the name that `backend_name`
            derives from its path.
        path: Module and class of a user's own task, such as `my_file:MyTask`.
        num_classes: Number of labels.
        num_symbols: Number of ids in use, padding included; the model's vocabulary is at least
            this large.
        sequences: Sequences per example: 1, or 2 for Retrieval.
        truncate: Longest sequence that is kept, in tokens; longer ones are cut on the right.
        stand_in: Use the project's own procedural stand-in instead of the published data.
        options: Options of the task's builder, checked against its fields.
    """

    name: str
    path: str | None = None
    num_classes: int
    num_symbols: int
    sequences: int = 1
    truncate: int
    stand_in: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, least in {"num_classes": 2, "num_symbols": 2, "truncate": 1}.items():
            if (value := getattr(self, key)) < least:
                raise ValueError(f"task.{key}={value}: must be at least {least}")
        if self.sequences not in (1, 2):
            raise ValueError(f"task.sequences={self.sequences}: must be 1 or 2")


@dataclass(kw_only=True)
class AttentionConfig:
    """The backend that mixes the tokens.

    Args:
        name: Key of the backend in `models.ATTENTION`; for a user's own backend, the name that
            `backend_name` derives from its path.
        path: Module and class of a user's own backend, such as `my_pkg.my_file:MyAttention`.
        options: Its options, checked against the keyword arguments of its `__init__`.
        inner: The inner backend, for a backend that nests another.
    """

    name: str
    path: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    inner: "AttentionConfig | None" = None


@dataclass(kw_only=True)
class ProtocolConfig:
    """The source of the recipe.

    Args:
        name: The protocol's name, also its folder in `configs/protocol/task`.
        source: The paper and code that it follows.
        deviations: Differences from the published code; printed under every table.
    """

    name: str
    source: str
    deviations: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class TrainConfig:
    """Optimisation.

    Args:
        steps: Number of updates.
        batch_size: Examples per update.
        learning_rate: Peak learning rate; for `rsqrt`, the factor in front of the root.
        warmup_steps: Number of warm-up updates.
        schedule: `one_cycle`: linear up from a 25th of the peak, then linear down to a 250,000th,
            with beta 1 moving from .95 to .85 and back. After t updates, with w of warm-up,
            `rsqrt`: learning_rate min(1, t / w) / sqrt(max(t, w)); `cosine`: learning_rate
            min(1, t / w) (1 + cos(pi frac((t - w) / cycle_steps))) / 2; `half_cosine` and
            `linear`: learning_rate (t / w)^warmup_power up to w, and then, with
            p = (t - w) / (steps - w), learning_rate (1 + cos(pi p)) / 2 and learning_rate (1 - p),
            respectively; `constant`: learning_rate min(1, t / w).
        cycle_steps: Period of `cosine`.
        clip_norm: Largest norm of the gradient; 0 disables clipping.
        beta1: Decay of AdamW's first moment; `one_cycle` replaces it.
        beta2: Decay of AdamW's second moment.
        epsilon: AdamW's epsilon.
        weight_decay: Decoupled weight decay, multiplied by the learning rate.
        kernel_learning_rate: Peak learning rate of the parameters that form a state-space layer's
            kernel; None takes `learning_rate`.
        kernel_roles: Roles of the parameters that form a state-space layer's kernel, among `dt`,
            `A`, `B` and `C`.
        undecayed: Roles without weight decay, among `dt`, `A`, `B`, `C`, `weight`, `bias`, `norm`
            and `embedding`.
        warmup_power: Exponent of the warm-up of `half_cosine` and `linear`.
        validate_every: Updates between validations.
        eval_batch_size: Examples per batch in evaluation, at most.
        micro_batch: Examples of a batch that are computed at once, sorted by length; their
            gradients add up to that of the whole batch, so this changes numbers only by rounding
            and, if there is dropout, by other masks. 0 computes the whole batch at once; null
            computes as many examples as fit, given their lengths, into the caches of a CPU or the
            memory of a GPU. See `lra.division`.
        precision: `float32`; `bfloat16` autocast; `float16` autocast, with loss scaling and the
            attention in float32, as github.com/mlpen trains; or `float16_on_gpu`, which is
            `float16` on a GPU and `float32` on the CPU, where float16 is slow. Records say which
            it was.
        compile: Run the model through `torch.compile`.
        checkpoint_seconds: Seconds between checkpoints.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    schedule: str = "one_cycle"
    cycle_steps: int = 0
    clip_norm: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    weight_decay: float = 0.0
    kernel_learning_rate: float | None = None
    kernel_roles: list[str] = field(default_factory=lambda: ["dt", "A", "B"])
    undecayed: list[str] = field(default_factory=list)
    warmup_power: float = 1.0
    validate_every: int
    eval_batch_size: int = 64
    micro_batch: int | None = None
    precision: str = "float32"
    compile: bool = False
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "validate_every", "eval_batch_size"):
            if (value := getattr(self, key)) < 1:
                raise ValueError(f"train.{key}={value}: must be at least 1")
        for key in ("learning_rate", "epsilon"):
            if not 0 < (number := getattr(self, key)) < float("inf"):
                raise ValueError(f"train.{key}={number}: must be a finite number above 0")
        if self.learning_rate > MAX_RATE:
            least = f"must be at most {MAX_RATE:g}, so that a float32 weight can be moved by it"
            raise ValueError(f"train.learning_rate={self.learning_rate}: {least}")
        for key in ("beta1", "beta2"):
            if not 0 <= (number := getattr(self, key)) < 1:
                raise ValueError(f"train.{key}={number}: must be in [0, 1)")
        if self.micro_batch is not None and self.micro_batch < 0:
            raise ValueError(
                f"train.micro_batch={self.micro_batch}: must be at least 0 (0 = the whole batch),"
                " or null for as many as fit"
            )
        for key in ("weight_decay", "clip_norm", "checkpoint_seconds"):
            if not 0 <= (number := getattr(self, key)) < float("inf"):
                raise ValueError(f"train.{key}={number}: must be a finite number, at least 0")
        if self.warmup_steps < 1:
            raise ValueError(f"train.warmup_steps={self.warmup_steps}: must be at least 1")
        if self.schedule == "one_cycle" and not 2 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"train.warmup_steps={self.warmup_steps}: one_cycle needs at least 2, and fewer"
                f" than train.steps={self.steps}"
            )
        if self.schedule in ("half_cosine", "linear") and self.warmup_steps >= self.steps:
            raise ValueError(
                f"train.warmup_steps={self.warmup_steps}: {self.schedule} needs fewer than"
                f" train.steps={self.steps}"
            )
        rate = self.kernel_learning_rate
        if rate is not None and not 0 < rate <= MAX_RATE:
            raise ValueError(
                f"train.kernel_learning_rate={rate}: must be above 0 and at most {MAX_RATE:g}, or"
                " null"
            )
        if not 0 < self.warmup_power < float("inf"):
            raise ValueError(
                f"train.warmup_power={self.warmup_power}: must be a finite number above 0"
            )
        for key in ("kernel_roles", "undecayed"):
            if unknown := [role for role in getattr(self, key) if role not in ROLES]:
                raise ValueError(f"train.{key}={unknown}: must be among {', '.join(ROLES)}")
        fewest = int(self.schedule == "cosine")
        if self.cycle_steps < fewest:
            raise ValueError(
                f"train.cycle_steps={self.cycle_steps}: {self.schedule} needs at least {fewest}"
            )
        for key, known in {"schedule": SCHEDULES, "precision": PRECISIONS}.items():
            if (choice := getattr(self, key)) not in known:
                raise ValueError(f"train.{key}={choice}: must be one of {', '.join(known)}")


@dataclass(kw_only=True)
class PretrainConfig:
    """What precedes training: nothing, or the same encoder learns to restore the task's own inputs.

    `spt` is self-pretraining (Amos, Berant and Gupta, arXiv 2310.02980): AdamW with a constant rate
    after a linear warm-up; anything not listed here is as in `train`. An encoder that sees no later
    token predicts the next one, whatever `hidden_share` is.

    Args:
        name: `none` or `spt`.
        steps: Number of updates.
        batch_size: Examples per update.
        learning_rate: Learning rate after the warm-up.
        warmup_steps: Number of warm-up updates.
        weight_decay: Decoupled weight decay, multiplied by the learning rate.
        hidden_share: Probability that a token or pixel is hidden and has to be restored.
        loss: `cross_entropy` of the hidden symbols, or `l1`: absolute error of their grey values.
        validate_every: Updates between validations; training starts from the best one.
    """

    name: str = variant.NO_PRETRAINING
    steps: int = 1
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 1
    weight_decay: float = 0.0
    hidden_share: float = 0.15
    loss: str = "cross_entropy"
    validate_every: int = 1

    def __post_init__(self) -> None:
        for key, known in {"name": PRETRAININGS, "loss": PRETRAIN_LOSSES}.items():
            if (choice := getattr(self, key)) not in known:
                raise ValueError(f"pretrain.{key}={choice}: must be one of {', '.join(known)}")
        for key in ("steps", "batch_size", "warmup_steps", "validate_every"):
            if (value := getattr(self, key)) < 1:
                raise ValueError(f"pretrain.{key}={value}: must be at least 1")
        if not 0 < self.learning_rate <= MAX_RATE:
            raise ValueError(
                f"pretrain.learning_rate={self.learning_rate}: must be a number above 0, at most"
                f" {MAX_RATE:g}"
            )
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(
                f"pretrain.weight_decay={self.weight_decay}: must be a finite number, at least 0"
            )
        if not 0 < self.hidden_share < 1:
            raise ValueError(
                f"pretrain.hidden_share={self.hidden_share}: must be a share above 0 and below 1"
            )
        if self.name == variant.NO_PRETRAINING:
            changed = [f for f in fields(self) if getattr(self, f.name) != f.default]
            for each in changed[:1]:
                value = getattr(self, each.name)
                hint = "there is no pretraining; pretrain=spt asks for it"
                raise ValueError(f"pretrain.{each.name}={value}: {hint}")


@dataclass(kw_only=True)
class Config:
    """One cell and how it is run.

    Args:
        task: The data.
        attention: The backend.
        protocol: The source of the recipe.
        model: Sizes.
        train: Optimisation.
        pretrain: What precedes training.
        scale: `paper` (as published), `small` (the real tasks in an evening on two CPU cores) or
            `mini` (minutes).
        seed: Seed of initialisation, data order and dropout; data have seeds of their own.
        variant: Name of a cell that departs from its recipe, so that it has its own folder; by
            default it lists the departures, such as learning_rate=0.001,steps=3.
        validation: Split that selects the checkpoint: `validation`, or `test` as in some papers,
            which every table then says.
        device: `auto`, `cpu`, `cuda`, `cuda:<index>` or `mps`.
        threads: CPU threads; 0 takes torch's default.
        data_dir: Folder of raw data, with imdb, cifar10, aan, listops and pathfinder below it;
            default: the environment variable LRA_DATA_DIR.
        cache_dir: Folder of the built data sets; default: the environment variable LRA_CACHE_DIR,
            then data/cache of the checkout, or the user's cache folder.
        runs_dir: Folder of the run folders; default: the environment variable LRA_RUNS_DIR, then
            results/runs of the checkout, or the user's data folder.
        force: Train again even if the cell is finished.
    """

    task: TaskConfig
    attention: AttentionConfig
    protocol: ProtocolConfig
    model: ModelConfig
    train: TrainConfig
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    scale: str
    seed: int = 0
    variant: str = "default"
    validation: str = "validation"
    device: str = "auto"
    threads: int = 0
    data_dir: str | None = None
    cache_dir: str = field(default_factory=cache_dir)
    runs_dir: str = field(default_factory=runs_dir)
    force: bool = False

    def __post_init__(self) -> None:
        self.cache_dir = str(expanded(self.cache_dir)) if self.cache_dir else ""
        if not 0 <= self.seed < SEED_LIMIT:
            raise ValueError(f"seed={self.seed}: must be at least 0 and below 2^63")
        if self.threads < 0:
            raise ValueError(f"threads={self.threads}: must be at least 0 (0 = torch's default)")
        if self.validation not in ("validation", "test"):
            raise ValueError(f"validation={self.validation}: must be one of validation, test")
        if problem := problem_of_folder(self.variant):
            raise ValueError(f"variant={shown(self.variant)}: {problem}")
        if problem := variant.problem_with_pretraining(self.variant, self.pretrain.name):
            raise ValueError(f"variant={shown(self.variant)}: {problem}")
        kind, _, index = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda", "mps") or (
            index and not (kind == "cuda" and index.isdecimal())
        ):
            raise ValueError(f"device={self.device}: must be auto, cpu, cuda, cuda:<index> or mps")
        if self.model.vocab_size < self.task.num_symbols:
            raise ValueError(
                f"model.vocab_size={self.model.vocab_size}: {self.task.name} has"
                f" {self.task.num_symbols} symbols"
            )
        if self.task.truncate > self.model.max_length:
            raise ValueError(
                f"task.truncate={self.task.truncate}: must not exceed"
                f" model.max_length={self.model.max_length}"
            )

    @property
    def cell(self) -> str:
        """The cell's name in logs, such as `listops/fourier seed0`."""
        variant = "" if self.variant == "default" else f" {self.variant}"
        stand_in = " (stand-in)" if self.task.stand_in else ""
        return f"{self.task.name}{stand_in}/{self.attention.name}{variant} seed{self.seed}"

    @property
    def folder(self) -> Path:
        """The run folder: the one that `configs/train.yaml` gives such a cell."""
        parts = (self.scale, self.protocol.name, self.task.name, self.attention.name, self.variant)
        return Path(self.runs_dir, *parts, f"seed{self.seed}")

    def raw_data_dir(self) -> Path | None:
        """Return the folder of raw data: the key `data_dir`, else LRA_DATA_DIR, else None."""
        folder = self.data_dir or os.environ.get(DATA_DIR_VARIABLE)
        return expanded(folder) if folder else None


def expanded(folder: str) -> Path:
    """Return a folder with `~` and `$VARIABLES` expanded."""
    return Path(os.path.expandvars(folder)).expanduser()


def problem_of_folder(name: str) -> str:
    """Return why a name is no valid folder name on every system; empty if it is one."""
    if len(name.encode()) > MAX_VARIANT:
        return f"must be a plain folder name of at most {MAX_VARIANT} bytes"
    forbidden = sorted(set(name) & set('/\\|<>:"?*') | {c for c in name if not c.isprintable()})
    if not name or name.startswith(".") or name != name.strip() or forbidden:
        which = f", without {' '.join(map(shown, forbidden))}" if forbidden else ""
        return f"must be a plain folder name{which}"
    return ""


def resolve_precision(precision: str, device: str) -> str:
    """Return what `train.precision` means on a device; `auto` leaves it undecided."""
    if precision != "float16_on_gpu" or device == "auto":
        return precision
    return "float32" if device == "cpu" else "float16"


# Options that are newer than existing records and checkpoints: at their defaults they are left out
# of hashes, so that existing hashes stay valid.
_YOUNGER: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "task": (TaskConfig, ("path",)),
    "model": (
        ModelConfig,
        (
            *("inputs", "value_mean", "value_std", "norm", "norm_momentum", "norm_padding"),
            *("norm_place", "attention_norm", "last_norm", "channel_mixing", "activation"),
            *("input_dropout", "output_dropout", "hidden_dropout", "tied_dropout"),
            *("classifier_activation", "classifier_dropout", "classifier_bias"),
        ),
    ),
    "train": (
        TrainConfig,
        ("kernel_learning_rate", "kernel_roles", "undecayed", "warmup_power"),
    ),
}
# Keys that may change without changing a run's numbers.
_OUTSIDE_HASH = ("force", "data_dir", "cache_dir", "runs_dir")


def comparable(config: Config, **resolved: Any) -> dict[str, Any]:
    """Return the part of a configuration that can change the numbers of a cell.

    Args:
        config: The configuration.
        resolved: Values that the machine decided, such as device and threads; they replace keys of
            the same name.
    """
    values = asdict(config) | resolved
    if config.pretrain.name == variant.NO_PRETRAINING:
        del values["pretrain"]
    train = values["train"]
    train["precision"] = resolve_precision(train["precision"], values["device"])
    del values["protocol"]["deviations"], train["checkpoint_seconds"], train["micro_batch"]
    for group, (owner, keys) in _YOUNGER.items():
        for key in keys:
            if values[group][key] == _default(owner, key):
                del values[group][key]
    return {key: value for key, value in values.items() if key not in _OUTSIDE_HASH}


def value_at(values: dict[str, Any], key: str) -> Any:
    """Return the value of a key in what `comparable` returned; None if there is no such key.

    Args:
        values: The part of a configuration that records hold.
        key: Key such as `train.steps`. One that was left out at its default has that default.
    """
    node: Any = values
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    group, _, option = key.partition(".")
    owner, younger = _YOUNGER.get(group, (None, ()))
    if node is None and owner is not None and option in younger:
        return _default(owner, option)
    return node


def _default(owner: type[Any], key: str) -> Any:
    [found] = [each for each in fields(owner) if each.name == key]
    return found.default if found.default_factory is MISSING else found.default_factory()


def config_hash(values: dict[str, Any]) -> str:
    """Return the first 16 hex digits of the sha256 of `values` as canonical JSON."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Return where two configurations differ, one line per key.

    Args:
        there: One configuration, as `comparable` returns it.
        here: The other one.
    """
    pairs = differing(there, here).items()
    return [f"  {key}: {old} there, {new} here" for key, (old, new) in pairs]


def differing(there: dict[str, Any], here: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return where two configurations differ: by key, such as `train.steps`, both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(there | here):
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= {f"{key}.{rest}": pair for rest, pair in differing(old, new).items()}
        elif old != new:
            found[key] = (old, new)
    return found


def bind(target: Callable[..., Any], options: dict[str, Any], where: str) -> dict[str, Any]:
    """Check `options` against the keyword-only arguments of a class.

    Args:
        target: A class whose options are the keyword-only arguments of its `__init__`.
        options: Values by name.
        where: The key that holds them, for messages, such as `attention.options`.

    Returns:
        The options, with lists turned into tuples.

    Raises:
        ConfigError: An option is unknown, lacks a value, or has one of the wrong type.
    """
    initialise = target.__init__
    try:
        hints = get_type_hints(initialise)
    except (NameError, AttributeError) as error:
        raise ConfigError(f"{where}: the types of its names cannot be read: {error}") from error
    signature = inspect.signature(initialise).parameters.values()
    known = {p.name: p for p in signature if p.kind is p.KEYWORD_ONLY and p.name != "inner"}
    hints = {name: hints.get(name, Any) for name in known}
    bound = {}
    for name, value in options.items():
        if name not in known:
            listing = ", ".join(f"{n} ({describe(hints[n])})" for n in known) or "none"
            raise ConfigError(f"{where}.{name}: no such option; the options are: {listing}")
        if not fits(value, hints[name]):
            raise ConfigError(f"{where}.{name}={value!r}: must be {describe(hints[name])}")
        bound[name] = tuple(value) if isinstance(value, list) else value
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in bound:
            raise ConfigError(f"{where}.{name}: needs a value ({describe(hints[name])})")
    return bound


_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_path(text: str) -> bool:
    """Return whether a text has the form `my_pkg.my_file:MyAttention`."""
    return _PATH.fullmatch(text) is not None


def backend_name(path: str | None) -> str:
    """Return the name of a user's own backend or task in run folders and tables.

    It is the whole path, since two classes of the same name would share their folders and rows.

    Args:
        path: Such as `my_pkg.my_file:MyAttention`.

    Returns:
        `my_pkg.my_file.MyAttention`; `custom` if it is not a path, which `lra.build` rejects.
    """
    return path.replace(":", ".") if path is not None and is_path(path) else "custom"
