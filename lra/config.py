"""Every knob once, with its type, default and unit; Hydra's values are checked against these.

`configs/*.yaml` hold values only. `resolve` turns what Hydra composed into a `Config`, or stops
with a `ConfigError` that names the key, the value and what would be right.
"""

import copy
import functools
import hashlib
import inspect
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lra import variant
from lra.paths import CONFIGS, cache_dir, runs_dir
from lra.typecheck import describe, fits
from lra.words import SEARCH_PATH, Groups, check_keys, complete, key_of, quoted, read, shown
from lra.words import ConfigError as ConfigError
from models.sizes import ModelConfig

log = logging.getLogger(__name__)

SCHEDULES = ("one_cycle", "rsqrt", "cosine", "half_cosine", "linear")
ROLES = ("dt", "A", "B", "C", "weight", "bias", "norm", "embedding")
PRECISIONS = ("float32", "bfloat16", "float16", "float16_on_gpu")
# AdamW divides it by numbers below 1, and what comes out must be a float32.
LARGEST_RATE = 1e30
# What a generator of torch takes.
LEAST_WRONG_SEED = 2**63
# File systems allow 255 bytes; a variant is a folder's name.
LONGEST_VARIANT = 200
DATA_DIR_VARIABLE = "LRA_DATA_DIR"


@dataclass(kw_only=True)
class TaskConfig:
    """What the data of a task are.

    Args:
        name: Key of the task in `lra.tasks`; of a user's own what `backend_name` makes of its
            path.
        path: Module and class of a user's own task, such as `my_file:MyTask`.
        num_classes: Number of labels.
        num_symbols: Ids in use, padding included; the model's vocabulary is at least this.
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
    """Which backend mixes the tokens.

    Args:
        name: Key of the backend in `models.ATTENTION`; of a user's own what `backend_name` makes
            of its path.
        path: Module and class of a user's own backend, such as `my_pkg.my_file:MyAttention`.
        options: Its options, checked against the keyword arguments of its `__init__`.
        inner: The backend inside, for one that nests.
    """

    name: str
    path: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    inner: "AttentionConfig | None" = None


@dataclass(kw_only=True)
class ProtocolConfig:
    """Where the recipe comes from.

    Args:
        name: The protocol's name, also its folder in `configs/protocol/task`.
        source: Paper and code it follows.
        deviations: What differs from the published code; printed under every table.
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
        learning_rate: Peak learning rate; of `rsqrt` the factor before the root.
        warmup_steps: Updates of warm-up.
        schedule: `one_cycle`: linear from a 25th of the peak up, then linear down to a 250,000th,
            with beta 1 moving from .95 to .85 and back. With t updates made and w of warm-up,
            `rsqrt`: learning_rate min(1, t / w) / sqrt(max(t, w)); `cosine`: learning_rate
            min(1, t / w) (1 + cos(pi frac((t - w) / cycle_steps))) / 2; up to w `half_cosine` and
            `linear`: learning_rate (t / w)^warmup_power, and then, with p = (t - w) / (steps - w),
            learning_rate (1 + cos(pi p)) / 2 and learning_rate (1 - p).
        cycle_steps: Period of `cosine`.
        clip_norm: Largest norm of the gradient; 0 clips nothing.
        beta1: Decay of AdamW's first moment; `one_cycle` replaces it.
        beta2: Decay of AdamW's second moment.
        epsilon: AdamW's epsilon.
        weight_decay: Decoupled weight decay, multiplied by the learning rate.
        kernel_learning_rate: Peak learning rate of the parameters that make a state-space layer's
            kernel; None takes `learning_rate`.
        kernel_roles: Which those are, by the role that a layer gives them: `dt`, `A`, `B`, `C`.
        undecayed: Roles without weight decay: those, and `weight`, `bias`, `norm`, `embedding`.
        warmup_power: Of `half_cosine` and `linear`.
        validate_every: Updates between validations.
        eval_batch_size: Examples per batch in evaluation, at most.
        micro_batch: Examples of a batch that are computed at once, sorted by length; their
            gradients add up to that of the whole batch, so that it changes numbers by rounding
            only. 0 computes the whole batch at once; null as many as fit, by their lengths, the
            caches of a CPU or the memory of a GPU. See `lra.division`.
        precision: `float32`; `bfloat16` autocast; `float16` autocast, with loss scaling and the
            attention in float32, as github.com/mlpen trains; or `float16_on_gpu`: that on a GPU,
            and float32 on the CPU, where float16 is slow. Records say which it was.
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
        if self.learning_rate > LARGEST_RATE:
            least = f"must be at most {LARGEST_RATE:g}, what a float32 weight can be moved by"
            raise ValueError(f"train.learning_rate={self.learning_rate}: {least}")
        for key in ("beta1", "beta2"):
            if not 0 <= (number := getattr(self, key)) < 1:
                raise ValueError(f"train.{key}={number}: must be in [0, 1)")
        if self.micro_batch is not None and self.micro_batch < 0:
            raise ValueError(
                f"train.micro_batch={self.micro_batch}: must be at least 0 (0 = the whole batch),"
                " or null for what fits"
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
        if rate is not None and not 0 < rate < float("inf"):
            raise ValueError(
                f"train.kernel_learning_rate={rate}: must be a finite number above 0, or null"
            )
        if not 0 < self.warmup_power < float("inf"):
            raise ValueError(
                f"train.warmup_power={self.warmup_power}: must be a finite number above 0"
            )
        for key in ("kernel_roles", "undecayed"):
            if unknown := [role for role in getattr(self, key) if role not in ROLES]:
                raise ValueError(f"train.{key}={unknown}: must be among {', '.join(ROLES)}")
        if self.schedule == "cosine" and self.cycle_steps < 1:
            raise ValueError(f"train.cycle_steps={self.cycle_steps}: cosine needs at least 1")
        for key, known in {"schedule": SCHEDULES, "precision": PRECISIONS}.items():
            if (choice := getattr(self, key)) not in known:
                raise ValueError(f"train.{key}={choice}: must be one of {', '.join(known)}")


@dataclass(kw_only=True)
class Config:
    """One cell and how it is run.

    Args:
        task: The data.
        attention: The backend.
        protocol: Source of the recipe.
        model: Sizes.
        train: Optimisation.
        scale: `paper` (as published) or `mini` (minutes on two CPU cores).
        seed: Seed of initialisation, data order and dropout; data have their own.
        variant: Names what departs from the recipe, so that it has its own folder; without it,
            what departs does, such as learning_rate=0.001,steps=3.
        validation: What selects the checkpoint: `validation`, or `test` as some papers did, which
            every table then says.
        device: `auto`, `cpu`, `cuda`, `cuda:<index>` or `mps`.
        threads: CPU threads; 0 takes torch's default.
        data_dir: Folder of raw data, with imdb, cifar10, aan, listops and pathfinder below it;
            without it, the environment variable LRA_DATA_DIR.
        cache_dir: Folder of the built data sets; without it, the environment variable
            LRA_CACHE_DIR, then data/cache of the checkout, or the user's cache folder.
        runs_dir: Folder of the run folders; without it, the environment variable LRA_RUNS_DIR,
            then results/runs of the checkout, or the user's data folder.
        force: Train again although the cell is finished.
    """

    task: TaskConfig
    attention: AttentionConfig
    protocol: ProtocolConfig
    model: ModelConfig
    train: TrainConfig
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
        if not 0 <= self.seed < LEAST_WRONG_SEED:
            raise ValueError(f"seed={self.seed}: must be at least 0 and below 2^63")
        if self.threads < 0:
            raise ValueError(f"threads={self.threads}: must be at least 0 (0 = torch's default)")
        if self.validation not in ("validation", "test"):
            raise ValueError(f"validation={self.validation}: must be one of validation, test")
        if problem := _problem_of_folder(self.variant):
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
        """Return where raw data lie: the key `data_dir` before LRA_DATA_DIR, else None."""
        folder = self.data_dir or os.environ.get(DATA_DIR_VARIABLE)
        return expanded(folder) if folder else None


def expanded(folder: str) -> Path:
    """Return a folder with `~` and `$VARIABLES` replaced."""
    return Path(os.path.expandvars(folder)).expanduser()


def _problem_of_folder(name: str) -> str:
    """Return why a name cannot be a folder's on every system; nothing where it can."""
    if len(name.encode()) > LONGEST_VARIANT:
        return f"must be a plain folder name of at most {LONGEST_VARIANT} bytes"
    forbidden = sorted(set(name) & set('/\\|<>:"?*') | {c for c in name if not c.isprintable()})
    if not name or name.startswith(".") or name != name.strip() or forbidden:
        which = f", without {' '.join(map(shown, forbidden))}" if forbidden else ""
        return f"must be a plain folder name{which}"
    return ""


def resolve_precision(precision: str, device: str) -> str:
    """Return what `train.precision` means on a device; `auto` decides nothing yet."""
    if precision != "float16_on_gpu" or device == "auto":
        return precision
    return "float32" if device == "cpu" else "float16"


# Knobs that are younger than records and checkpoints: at their defaults they are left out of
# hashes, so that those stay valid.
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
# What a run may change without changing its numbers.
_OUTSIDE_HASH = ("force", "data_dir", "cache_dir", "runs_dir")


def resolve(composed: DictConfig | ListConfig) -> Config:
    """Check what Hydra composed.

    Raises:
        ConfigError: A value is missing, of the wrong type or out of range.
    """
    try:
        _follow_steps(composed)
        config = OmegaConf.to_object(composed)
    except (OmegaConfBaseException, ValueError) as error:
        # What a value that follows from others cannot be made of is told by itself.
        cause = error.__cause__ if isinstance(error.__cause__, ConfigError) else error
        raise ConfigError(str(cause).splitlines()[0]) from error
    assert isinstance(config, Config)
    return config


def _follow_steps(composed: DictConfig | ListConfig) -> None:
    """Let the warm-up follow in proportion where fewer updates were asked for than it takes.

    A warm-up that was asked for stays, to be refused.
    """
    train = OmegaConf.select(composed, "train")
    if train is None or train.schedule != "one_cycle" or not 2 < train.steps <= train.warmup_steps:
        return
    shown_variant = {**composed, "variant": variant.DEFAULT} if composed else {}
    values = OmegaConf.to_container(OmegaConf.create(shown_variant), resolve=True)
    assert isinstance(values, dict)
    named = {str(key): value for key, value in values.items()}
    recipe = _recipe_of(named, *_surroundings(None))["train"]
    if train.warmup_steps != recipe["warmup_steps"] or train.steps == recipe["steps"]:
        return
    train.warmup_steps = max(2, round(recipe["warmup_steps"] * train.steps / recipe["steps"]))
    log.info(
        "train.warmup_steps=%d: follows train.steps=%d, as %d of %d in the recipe",
        train.warmup_steps,
        train.steps,
        recipe["warmup_steps"],
        recipe["steps"],
    )


def load(*overrides: str) -> Config:
    """Compose a configuration outside `lra.train`, from the words of its command line.

    Raises:
        ConfigError: A word names no group, option or key, or has a wrong value.
    """
    return place(*overrides)[0]


def place(*overrides: str) -> tuple[Config, Path]:
    """Return what `load` does, and the run folder that a sweep gives such a cell.

    Raises:
        ConfigError: A word names no group, option or key, or has a wrong value.
    """
    composed, folder = composed_cell(*overrides)
    return resolve(composed), folder


def composed_cell(*overrides: str) -> tuple[DictConfig, Path]:
    """Return what Hydra composes of a cell, its values unchecked, and its run folder.

    Raises:
        ConfigError: A word names no group, option or key, or has a wrong value.
    """
    words = command(overrides)
    try:
        with _hydra():
            composed = compose("train", words, return_hydra_config=True)
        sweep = composed.hydra.sweep
        folder = Path(sweep.dir) / sweep.subdir
        # A variant that follows from the recipe asks for what was chosen.
        composed.variant = composed.variant
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_in_a_line(error)) from error
    with open_dict(composed):
        del composed["hydra"]
    return composed, folder


@contextmanager
def _hydra() -> Iterator[None]:
    """Let Hydra compose from `configs`; a run of Hydra around this goes on as before."""
    instance = GlobalHydra.instance()
    around = instance.hydra
    instance.clear()
    try:
        with initialize_config_dir(str(CONFIGS), job_name="train", version_base="1.3"):
            yield
    finally:
        instance.hydra = around


# Words that leave a recipe as it is.
_IDENTITY = {"task", "attention", "protocol", "scale", "seed", "device", "threads", "force"}
_IDENTITY |= {"data_dir", "cache_dir", "runs_dir", "task.path", "attention.path"}


def departures(
    values: Mapping[str, Any], chosen: Mapping[str, str] | None = None, own: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Return what departs from the recipe of a cell: values by key, the cell's and the recipe's.

    Args:
        values: Those of the cell, as `comparable` or `asdict` give them.
        chosen: What was chosen of each group, where a file of the user's own has another name
            than what it says.
        own: Folders of the user's own configurations.

    Raises:
        ConfigError: There is no such recipe.
    """
    recipe = _recipe_of(values, chosen, own)
    # What a machine decides is the same for both.
    device, train = values["device"], dict(values["train"])
    for each in (train, recipe["train"]):
        each["precision"] = resolve_precision(each["precision"], device)
    return variant.departures({**values, "train": train}, recipe)


def told_departures(config: Config) -> str:
    """Return what departs from a cell's recipe in words; empty where nothing does."""
    try:
        return variant.told(departures(asdict(config), *_surroundings(None)))
    except ConfigError:
        return variant.UNKNOWN


def _recipe_of(
    values: Mapping[str, Any], chosen: Mapping[str, str] | None, own: Sequence[str]
) -> dict[str, Any]:
    """Return the values of a cell's recipe, with the same backend inside where one nests."""
    names = {"scale": values["scale"]}
    for group in ("task", "attention", "protocol"):
        name, path = values[group]["name"], values[group].get("path")
        known = name in groups().options(group) or not chosen
        names[group] = path or (name if known else str(chosen and chosen[group]))
    words = [f"{group}={name}" for group, name in names.items()]
    words += [f"{SEARCH_PATH}=[{','.join(map(quoted, own))}]"] * bool(own)
    recipe, inner = _recipe(*words), values["attention"].get("inner")
    theirs = recipe["attention"]["inner"]
    if inner and inner["name"] != (theirs or {}).get("name"):
        start = "attention" if theirs else "+attention"
        recipe = _recipe(*words, f"{start}@attention.inner={inner.get('path') or inner['name']}")
        recipe["attention"]["inner"]["name"] = theirs["name"] if theirs else variant.ABSENT
    return recipe


def _surroundings(hydra: DictConfig | None) -> tuple[dict[str, str] | None, list[str]]:
    """Return what Hydra says was chosen of each group, and the folders of the user's own."""
    if hydra is None:
        if not HydraConfig.initialized():
            return None, []
        hydra = HydraConfig.get()
    if "runtime" not in hydra:
        return None, []
    sources = hydra.runtime.config_sources
    own = [each.path for each in sources if each.provider.startswith("hydra.searchpath")]
    return dict(hydra.runtime.choices), own


def _recipe(*words: str) -> dict[str, Any]:
    return copy.deepcopy(_composed_recipe(words))


@functools.lru_cache(maxsize=256)
def _composed_recipe(words: tuple[str, ...]) -> dict[str, Any]:
    ready = command(words)
    try:
        with _hydra():
            composed = compose("train", ready)
        composed.variant = variant.DEFAULT
        values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_in_a_line(error)) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _derived_variant(_root_: DictConfig) -> str:
    """Return the variant that a cell's departures from its recipe name."""
    hydra = _root_.hydra if "hydra" in _root_ else None
    if hydra is None and HydraConfig.initialized():
        hydra = HydraConfig.get()
    chosen, own = _surroundings(hydra)
    if hydra is None or chosen is None:
        return variant.DEFAULT
    given = {word.partition("=")[0].lstrip("+~") for word in hydra.overrides.task}
    if given <= _IDENTITY and not own and not chosen.get("debug"):
        return variant.DEFAULT
    keys = {each.name for each in fields(Config)} - {"variant"}
    cell = OmegaConf.masked_copy(_root_, list(keys))
    values = OmegaConf.to_container(cell, resolve=True)
    assert isinstance(values, dict)
    try:
        named = {str(key): value for key, value in values.items()}
        return variant.name(departures(named, chosen, own))
    except ConfigError:
        # A protocol of the user's own may have recipes for its own names alone.
        return variant.DEFAULT


OmegaConf.register_new_resolver("derived_variant", _derived_variant, replace=True)

# Plugins of Hydra's, and the extra of the project that has them.
_PLUGIN = re.compile(r"Could not find 'hydra/(launcher|sweeper)/([^']+)'")
_EXTRAS = {"submitit": "slurm", "joblib": "sweep", "optuna": "optuna"}
_NO_RECIPE = re.compile(r"Could not find 'protocol/task/([^/']+)/([^/']+)'")


def _in_a_line(error: Exception) -> str:
    """Return what Hydra or OmegaConf says is wrong, in a line."""
    text = str(error)
    if found := _NO_RECIPE.search(text):
        protocol, task = found.groups()
        recipes = CONFIGS / "protocol" / "task"
        there = ", ".join(sorted(file.stem for file in (recipes / protocol).glob("*.yaml")))
        others = sorted(file.parent.name for file in recipes.glob(f"*/{task}.yaml"))
        return (
            f"protocol={protocol} has no recipe for task={task}, only for {there or 'none'};"
            f" {task} is in protocol={','.join(others) or 'none'}"
        )
    if found := _PLUGIN.search(text):
        kind, name = found.groups()
        extra = _EXTRAS.get(name.partition("_")[0])
        brings = f": pip install -e '.[{extra}]' brings it" if extra else ""
        return f"hydra/{kind}={name} is not installed{brings}"
    first = text.strip().splitlines()[0].removeprefix("In 'train': ")
    cause = str(error.__cause__).splitlines()[0] if error.__cause__ else ""
    return first if not cause or cause in first else f"{first}: {cause}"


def recorded(values: dict[str, Any]) -> Config:
    """Return the configuration of a record, from what `comparable` kept of it.

    Raises:
        ConfigError: The record is of another version of the configuration.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), values)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    return resolve(merged)


def comparable(config: Config, **resolved: Any) -> dict[str, Any]:
    """Return the part of a configuration that can change the numbers of a cell.

    Args:
        config: The configuration.
        resolved: What the machine decided, such as device and threads; replaces keys of the
            same name.
    """
    values = asdict(config) | resolved
    train = values["train"]
    train["precision"] = resolve_precision(train["precision"], values["device"])
    del values["protocol"]["deviations"], train["checkpoint_seconds"], train["micro_batch"]
    for group, (owner, keys) in _YOUNGER.items():
        for key in keys:
            if values[group][key] == _default(owner, key):
                del values[group][key]
    return {key: value for key, value in values.items() if key not in _OUTSIDE_HASH}


def _default(owner: type[Any], key: str) -> Any:
    [found] = [each for each in fields(owner) if each.name == key]
    return found.default if found.default_factory is MISSING else found.default_factory()


def config_hash(values: dict[str, Any]) -> str:
    """Return the first 16 hex digits of the sha256 of `values` as canonical JSON."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    """Return where two configurations differ, a line per key.

    Args:
        there: One, as `comparable` returns it.
        here: The other.
        prefix: Of the keys.
    """
    lines = []
    for key in sorted(there | here):
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"  {prefix}{key}: {old} there, {new} here")
    return lines


def bind(target: Callable[..., Any], options: dict[str, Any], where: str) -> dict[str, Any]:
    """Check `options` against the keyword-only arguments of a class.

    Args:
        target: A class whose options are the keyword-only arguments of its `__init__`.
        options: Values by name.
        where: The key that holds them, for messages, such as `attention.options`.

    Returns:
        The options, lists turned to tuples where the signature asks for one.

    Raises:
        ConfigError: An option is unknown, lacks a value, or has one of the wrong type.
    """
    initialise = target.__init__
    hints = get_type_hints(initialise)
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
    """Tell whether a text has the form `my_pkg.my_file:MyAttention`."""
    return _PATH.fullmatch(text) is not None


def backend_name(path: str | None) -> str:
    """Return the name of a user's own backend or task, in run folders and tables.

    It is the whole path, since two classes that shared a name would share their folders and rows.

    Args:
        path: Such as `my_pkg.my_file:MyAttention`.

    Returns:
        `my_pkg.my_file.MyAttention`; `custom` for what is no path, which `lra.build` refuses.
    """
    return path.replace(":", ".") if path is not None and is_path(path) else "custom"


# At import, so that the processes of a parallel sweep have it too.
OmegaConf.register_new_resolver("backend_name", backend_name, replace=True)


def groups(words: Iterable[str] = ()) -> Groups:
    """Return the groups of configuration files: those of `hydra.searchpath` before the suite's.

    Raises:
        ConfigError: A word is none.
    """
    own: list[Path] = []
    for word in words:
        if key_of(word) == SEARCH_PATH:
            listed = read(word, Groups(())).value()
            assert isinstance(listed, list), word
            own += [Path(str(each).removeprefix("file://")) for each in listed]
    return Groups((*own, CONFIGS))


def command(words: Sequence[str]) -> list[str]:
    """Return the words of a command as Hydra reads them, and make the schemas known to it.

    A user's own backend or task may be written where a name is: attention=my_file:Mine.

    Raises:
        ConfigError: A word is none, or names no key, group or option.
    """
    there = groups(words)
    ready = complete(words, there)
    check_keys(ready, known_keys(), there)
    register()
    for word in ready:
        for path in _paths(word, there) if key_of(word) in ("task", "attention") else []:
            _register_own(key_of(word), path, there)
    return ready


def known_keys() -> list[str]:
    """Return every key of a cell; one that ends in a point holds keys of its own."""
    return list(_keys(Config))


def _keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Return every key of a dataclass; one that ends in a point holds keys of its own."""
    types = get_type_hints(kind)
    for each in fields(kind):
        key, inside = f"{prefix}{each.name}", types[each.name]
        yield key
        if is_dataclass(inside):
            assert isinstance(inside, type)
            yield from _keys(inside, f"{key}.")
        elif each.name in ("options", "inner"):
            yield f"{key}."


def _paths(word: str, there: Groups) -> list[str]:
    """Return those values of a word that are paths of a user's own backends.

    Raises:
        ConfigError: One has a colon and is no path.
    """
    override = read(word, there)
    if override.is_delete() or override.is_interval_sweep():
        return []
    values = override.sweep_iterator() if override.is_sweep_override() else [override.value()]
    paths = [str(value) for value in values if isinstance(value, str) and ":" in value]
    for path in paths:
        if not is_path(path) and "$" not in path:
            where = override.get_key_element()
            raise ConfigError(f"{where}={path}: must be module:Class, such as my_file:MyAttention")
    return [path for path in paths if is_path(path)]


def _register_own(group: str, path: str, there: Groups) -> None:
    """Make a user's own backend or task an option of its group, by its path."""
    store = ConfigStore.instance().store
    if group == "attention":
        schema: dict[str, Any] = {"defaults": ["/attention_schema@_here_", "_self_"]}
        store(group=group, name=path, node=schema | {"name": backend_name(path), "path": path})
        return
    store(group=group, name=path, node={"defaults": ["custom", "_self_"], "path": path})
    # What protocols and scales have for it.
    for folder in there.folders:
        for file in folder.glob("*/task/*/custom.yaml"):
            layer = str(file.parent.relative_to(folder))
            node = {"defaults": [f"/{layer}/custom@_global_", "_self_"]}
            store(group=layer, name=path, node=node, package="_global_")


def register() -> None:
    """Make the schemas known to Hydra under the names that `configs` start from."""
    schema = OmegaConf.structured(Config)
    for key, group in {"task": TaskConfig, "attention": AttentionConfig}.items():
        schema[key] = OmegaConf.structured(group)
        # Options are open, so that a wrong one reaches `bind`, which names the choices.
        OmegaConf.set_struct(schema[key].options, False)
    ConfigStore.instance().store(name="schema", node=schema)
    # A user's own backend inside another one has options that no YAML lists.
    ConfigStore.instance().store(name="attention_schema", node=schema.attention)
