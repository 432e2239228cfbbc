"""From words to a configuration: check what Hydra composes, and compare it with its recipe.

`resolve` turns what Hydra composed into a `Config`, or raises a `ConfigError` that names the key,
the value and what would be right.
"""

import copy
import functools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
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
from lra.config import (
    AttentionConfig,
    Config,
    TaskConfig,
    backend_name,
    is_path,
    resolve_precision,
)
from lra.paths import CONFIGS
from lra.words import (
    SEARCH_PATH,
    ConfigError,
    Groups,
    check_keys,
    complete,
    expand,
    key_of,
    quoted,
    read,
)

log = logging.getLogger(__name__)


def resolve(composed: DictConfig | ListConfig) -> Config:
    """Check what Hydra composed.

    Raises:
        ConfigError: A value is missing, of the wrong type or out of range.
    """
    try:
        if "variant" in composed:
            # Fixed as the folder was named; a warm-up that follows from the number of updates is
            # not a departure of its own.
            composed.variant = composed.variant
        _follow_steps(composed)
        config = OmegaConf.to_object(composed)
    except (OmegaConfBaseException, ValueError) as error:
        # A value that is derived from others has an error of its own.
        cause = error.__cause__ if isinstance(error.__cause__, ConfigError) else error
        raise ConfigError(str(cause).splitlines()[0]) from error
    assert isinstance(config, Config)
    return config


def _follow_steps(composed: DictConfig | ListConfig) -> None:
    """Shorten the warm-up in proportion if it takes at least as many updates as the whole run.

    A warm-up that was set explicitly stays, and is rejected later. Schedules that do not end with
    the run (`rsqrt`, `cosine`, `constant`) may consist of their warm-up alone.
    """
    train = OmegaConf.select(composed, "train")
    ends = train is not None and train.schedule in ("one_cycle", "half_cosine", "linear")
    if not ends or not 2 < train.steps <= train.warmup_steps:
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
        "train.warmup_steps=%d: in proportion to train.steps=%d, as %d of %d in the recipe",
        train.warmup_steps,
        train.steps,
        recipe["warmup_steps"],
        recipe["steps"],
    )


def load(*overrides: str) -> Config:
    """Compose a configuration outside `lra.train`, from the same words as on its command line.

    Raises:
        ConfigError: A word names no group, option or key, or has a wrong value.
    """
    return place(*overrides)[0]


def place(*overrides: str) -> tuple[Config, Path]:
    """Return what `load` returns, and the run folder that a sweep gives such a cell.

    Raises:
        ConfigError: A word names no group, option or key, or has a wrong value.
    """
    composed, folder = composed_cell(*overrides)
    return resolve(composed), folder


def composed_cell(*overrides: str) -> tuple[DictConfig, Path]:
    """Return the configuration that Hydra composes for a cell, unchecked, and its run folder.

    Raises:
        ConfigError: A word names no group, option or key, or has a wrong value.
    """
    words = command(overrides)
    try:
        with _hydra():
            composed = compose("train", words, return_hydra_config=True)
        sweep = composed.hydra.sweep
        folder = Path(sweep.dir) / sweep.subdir
        # Deriving a variant from the recipe needs the choices of Hydra, which are deleted below.
        composed.variant = composed.variant
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_in_a_line(error)) from error
    except AssertionError as error:
        # OmegaConf's own, for a key inside an inner backend that is not there.
        raise ConfigError("attention.inner: there is no inner backend with options") from error
    with open_dict(composed):
        del composed["hydra"]
    return composed, folder


def data_cells(words: Sequence[str]) -> list[list[str]]:
    """Return the words of the cells of a grid that differ in their data.

    Args:
        words: Complete words of the grid.
    """
    keys = ("task", "scale", "protocol", "data_dir", "cache_dir", "debug", "hydra.searchpath")
    about = [word for word in words if key_of(word) in keys or key_of(word).startswith("task.")]
    return list(expand(about, groups(words)))


def check_composes(name: str, words: Sequence[str]) -> None:
    """Reject words that Hydra would reject, with a message of one line.

    Args:
        name: Name of the configuration, such as `bench`.
        words: The words as Hydra reads them.

    Raises:
        ConfigError: A word's key does not exist there, or its value has the wrong type.
    """
    try:
        with _hydra():
            compose(name, list(words))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_in_a_line(error)) from error


@contextmanager
def _hydra() -> Iterator[None]:
    """Let Hydra compose from `configs`; an enclosing run of Hydra continues as before."""
    instance = GlobalHydra.instance()
    around = instance.hydra
    instance.clear()
    try:
        with initialize_config_dir(str(CONFIGS), job_name="train", version_base="1.3"):
            yield
    finally:
        instance.hydra = around


# A word that sets an option of a backend inside another.
_INNER_OPTION = re.compile(r"attention(\.inner)+\.options\.")
# Keys that leave a recipe as it is.
IDENTITY = {"task", "attention", "protocol", "scale", "seed", "device", "threads", "force"}
IDENTITY |= {"pretrain", "data_dir", "cache_dir", "runs_dir", "task.path", "attention.path"}


def departures(
    values: Mapping[str, Any], chosen: Mapping[str, str] | None = None, own: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Return the cell's departures from its recipe, by key: the cell's value and the recipe's.

    Args:
        values: The values of the cell, as `comparable` or `asdict` returns them.
        chosen: The option chosen in each group, for files of the user's own whose name differs
            from the name that they set.
        own: Folders of the user's own configurations.

    Raises:
        ConfigError: There is no such recipe.
    """
    recipe = _recipe_of(values, chosen, own)
    # Values that depend on the machine are resolved alike for both.
    device, train = values["device"], dict(values["train"])
    for each in (train, recipe["train"]):
        each["precision"] = resolve_precision(each["precision"], device)
    return variant.departures({**values, "train": train}, recipe)


def describe_departures(config: Config) -> str:
    """Return a cell's departures from its recipe in words; empty if there are none."""
    try:
        return variant.describe(departures(asdict(config), *_surroundings(None)))
    except ConfigError:
        return variant.UNKNOWN


def _recipe_of(
    values: Mapping[str, Any], chosen: Mapping[str, str] | None, own: Sequence[str]
) -> dict[str, Any]:
    """Return the values of a cell's recipe, with the same inner backend if the backend nests."""
    names = {"scale": values["scale"]}
    # Hashed values lack this key if there is no pretraining.
    values = {"pretrain": {"name": variant.NO_PRETRAINING}, **values}
    for group in ("task", "attention", "pretrain", "protocol"):
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
    """Return the option that Hydra chose in each group, and the user's own config folders."""
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


def _derived_variant(own: str = "", *, _root_: DictConfig) -> str:
    """Return the variant of a cell: the given one, or its departures from its recipe.

    The name of a pretraining precedes it.
    """
    pretrain = str(OmegaConf.select(_root_, "pretrain.name"))
    return variant.with_pretraining(own or _departing(_root_), pretrain)


def _departing(_root_: DictConfig) -> str:
    """Return the variant named after a cell's departures from its recipe."""
    hydra = _root_.hydra if "hydra" in _root_ else None
    if hydra is None and HydraConfig.initialized():
        hydra = HydraConfig.get()
    chosen, own = _surroundings(hydra)
    if hydra is None or chosen is None:
        return variant.DEFAULT
    given = {word.partition("=")[0].lstrip("+~") for word in hydra.overrides.task}
    if given <= IDENTITY and not own and not chosen.get("debug"):
        return variant.DEFAULT
    keys = {each.name for each in fields(Config)} - {"variant"}
    cell = OmegaConf.masked_copy(_root_, list(keys))
    values = OmegaConf.to_container(cell, resolve=True)
    assert isinstance(values, dict)
    try:
        named = {str(key): value for key, value in values.items()}
        return variant.name(departures(named, chosen, own))
    except ConfigError:
        # A user's own protocol may have recipes only for its own names.
        return variant.DEFAULT


OmegaConf.register_new_resolver("derived_variant", _derived_variant, replace=True)
# Hydra plugins, and the extra of the project that installs them.
_PLUGIN = re.compile(r"Could not find 'hydra/(launcher|sweeper)/([^']+)'")
_EXTRAS = {"submitit": "slurm", "joblib": "sweep", "optuna": "optuna"}
# What OmegaConf calls the types of values.
_KINDS = {"Integer": "a whole number", "Float": "a number", "valid bool": "true or false"}
_WRONG_TYPE = re.compile(f" (?:could not be converted to|is not a) ({'|'.join(_KINDS)})")
_INNER = re.compile(r"attention(\.inner)+=")
_NO_RECIPE = re.compile(r"Could not find 'protocol/task/([^/']+)/([^/']+)'")


def _in_a_line(error: Exception) -> str:
    """Return what Hydra or OmegaConf says is wrong, in one line."""
    text = str(error)
    if found := _NO_RECIPE.search(text):
        protocol, task = found.groups()
        recipes = CONFIGS / "protocol" / "task"
        there = ", ".join(sorted(file.stem for file in (recipes / protocol).glob("*.yaml")))
        # A user's own task is named by its path.
        file = "custom" if ":" in task else task
        others = sorted(each.parent.name for each in recipes.glob(f"*/{file}.yaml"))
        where = f"; for {task} use protocol={','.join(others)}" if others else ""
        return (
            f"protocol={protocol} has no recipe for task={task}, only for {there or 'none'}{where}"
        )
    if found := _PLUGIN.search(text):
        kind, name = found.groups()
        extra = _EXTRAS.get(name.partition("_")[0])
        brings = f"; run pip install -e '.[{extra}]'" if extra else ""
        return f"hydra/{kind}={name} is not installed{brings}"
    first = text.strip().splitlines()[0].removeprefix("In 'train': ")
    first = first.removeprefix("ConfigError raised while resolving interpolation: ")
    cause = str(error.__cause__).splitlines()[0] if error.__cause__ else ""
    word = first.removeprefix("Error merging override ")
    if word != first and _INNER.match(word):
        return f"{word}: an inner backend is chosen by attention@{word}"
    if word != first and (found := _WRONG_TYPE.search(cause)):
        return f"{word}: must be {_KINDS[found[1]]}"
    return first if not cause or cause in first else f"{first}: {cause}"


def recorded(values: dict[str, Any]) -> Config:
    """Return the configuration of a record, from what `comparable` kept of it.

    The fingerprint of the data, which `comparable` adds as `data`, is left out.

    Raises:
        ConfigError: The record is from another version of the configuration.
    """
    try:
        kept = {key: value for key, value in values.items() if key != "data"}
        merged = OmegaConf.merge(OmegaConf.structured(Config), kept)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    return resolve(merged)


def _task_fact(fact: str, path: str | None, options: DictConfig | dict[str, Any]) -> int:
    """Return a fact that a user's own task states about its data, while a cell is composed."""
    # Importing torch takes seconds, and other cells do not need it.
    from lra.custom import task_fact

    return task_fact(fact, path, options)


# Registered at import, so that the processes of a parallel sweep have them too.
OmegaConf.register_new_resolver("backend_name", backend_name, replace=True)
OmegaConf.register_new_resolver("task_fact", _task_fact, replace=True)


def groups(words: Iterable[str] = ()) -> Groups:
    """Return the groups of configuration files, those in `hydra.searchpath` before the suite's.

    Raises:
        ConfigError: A word is not of the form key=value.
    """
    own: list[Path] = []
    for word in words:
        if key_of(word) == SEARCH_PATH:
            listed = read(word, Groups(())).value()
            assert isinstance(listed, list), word
            own += [Path(str(each).removeprefix("file://")) for each in listed]
    return Groups((*own, CONFIGS))


def command(words: Sequence[str]) -> list[str]:
    """Return the words of a command as Hydra reads them, and register the schemas with Hydra.

    A user's own backend or task may be given in place of a name: attention=my_file:Mine.

    Raises:
        ConfigError: A word is not of the form key=value, or names no key, group or option.
    """
    there = groups(words)
    # As open as the options of the outer backend, which `register` leaves open.
    ready = [f"++{w}" if _INNER_OPTION.match(w) else w for w in complete(words, there)]
    check_keys(ready, known_keys(), there)
    register()
    for word in ready:
        for path in _paths(word, there) if key_of(word) in ("task", "attention") else []:
            _register_own(key_of(word), path, there)
    return ready


def known_keys() -> list[str]:
    """Return every key of a cell; a key that ends in a dot holds keys of its own."""
    return list(_keys(Config))


def _keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield every key of a dataclass; a key that ends in a dot holds keys of its own."""
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
    """Return the values of a word that are paths of a user's own backends or tasks.

    Raises:
        ConfigError: A value has a colon but is not a path.
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
    # The files that protocols and scales have for custom tasks.
    for folder in there.folders:
        for file in folder.glob("*/task/*/custom.yaml"):
            layer = str(file.parent.relative_to(folder))
            node = {"defaults": [f"/{layer}/custom@_global_", "_self_"]}
            store(group=layer, name=path, node=node, package="_global_")


def register() -> None:
    """Register the schemas with Hydra under the names that `configs` start from."""
    schema = OmegaConf.structured(Config)
    for key, group in {"task": TaskConfig, "attention": AttentionConfig}.items():
        schema[key] = OmegaConf.structured(group)
        # Options are left open, so that a wrong one reaches `bind`, which lists the choices.
        OmegaConf.set_struct(schema[key].options, False)
    ConfigStore.instance().store(name="schema", node=schema)
    # A user's own backend nested in another one has options that no YAML file lists.
    ConfigStore.instance().store(name="attention_schema", node=schema.attention)
