"""The words of every command: Hydra's overrides, which name a cell or a grid.

    task=listops,text attention=glob(lin*) seed=range(0,3) scale=mini

This module knows their grammar and the folders of configuration files, but not the schema or torch.
"""

import difflib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

# Keys of folders: their values are taken as they are, with commas, spaces and parentheses.
FOLDERS = ("data_dir", "cache_dir", "runs_dir")
# Number of characters of a word that a message shows, at most.
MAX_SHOWN = 100
SEARCH_PATH = "hydra.searchpath"
# What commands span if their words do not say.
TASKS = "task=listops,text,retrieval,image,pathfinder"
GRID = (TASKS, "attention=softmax,fourier,wavspa,mra")
# Files in a group that do not name an option.
_TEMPLATES = {"attention": "custom", "task": "custom"}
_KEY = re.compile(r"(?P<prefix>\+{0,2}|~)(?P<key>[^=+~][^=]*)(=(?P<value>.*))?", re.DOTALL)
_FUNCTION = re.compile(r"(choice|range|glob|shuffle|sort|interval|tag)\(.*\)\s*", re.DOTALL)
_PLAIN = re.compile(r"[\w./+-]*")

# What other packages call a key of ours, or a key for which `_ADVICE` says what to do instead.
_FOREIGN = {
    "train.learning_rate": "lr base_lr init_lr max_lr peak_lr",
    "train.batch_size": "batch_size bs bsz train_batch_size per_device_train_batch_size",
    "train.eval_batch_size": "eval_batch_size val_batch_size test_batch_size",
    "train.steps": "max_steps num_steps total_steps n_steps iterations num_iterations max_iters"
    " num_train_steps",
    "train.schedule": "scheduler lr_scheduler schedule",
    "train.warmup_steps": "warmup warmup_steps num_warmup_steps",
    "train.weight_decay": "wd weight_decay",
    "train.clip_norm": "grad_clip clip_grad max_grad_norm gradient_clip_val grad_norm_clip",
    "train.precision": "precision fp16 bf16 amp mixed_precision dtype",
    "train.compile": "compile torch_compile",
    "train.validate_every": "eval_every eval_frequency eval_steps val_check_interval",
    "model.dropout": "dropout dropout_rate",
    "model.dim": "hidden_size hidden_dim d_model embed_dim emb_dim width",
    "model.layers": "num_layers n_layers depth num_hidden_layers",
    "model.heads": "num_heads n_heads nhead num_attention_heads",
    "model.mlp_dim": "ffn_dim d_ff intermediate_size",
    "model.max_length": "seq_len max_len max_seq_len seq_length max_position_embeddings",
    "device": "gpu gpus accelerator devices cuda",
    "threads": "num_workers workers num_threads n_jobs",
    "seed": "random_seed manual_seed random_state",
    "runs_dir": "output_dir save_dir log_dir out_dir results_dir",
    "attention": "attn attention_type attn_type arch backbone net model_name model_type",
    "task": "dataset datamodule data dataset_name task_name",
    "launcher": "launcher",
}
_ADVICE = {
    "model": "the backend is chosen by attention=..., sizes are model.dim, model.layers, ...",
    "train": "the choices are train.steps, train.learning_rate, ...",
    "launcher": "use hydra/launcher",
    "epochs": "train.steps counts updates; an epoch is as many of them as the task has training"
    " examples, divided by train.batch_size",
    "trainer": "use train.steps, train.precision, device, threads",
    "logger": "TensorBoard events are always written into the run folder",
    "optimizer": "AdamW is the only one; its keys are train.learning_rate, train.beta1,"
    " train.beta2, train.epsilon, train.weight_decay",
    "resume": "a run continues automatically where it stopped; force=true starts over",
}
_SAME_ADVICE = {
    "epochs": "epoch max_epochs num_epochs n_epochs num_train_epochs",
    "trainer": "engine accelerate strategy",
    "logger": "wandb logging tensorboard mlflow use_wandb tb",
    "optimizer": "optim optimiser",
    "resume": "ckpt_path resume_from checkpoint ckpt pretrained",
}


class ConfigError(ValueError):
    """A key or value that the user got wrong."""


@dataclass(frozen=True)
class Groups:
    """The groups of configuration files, in folders of which earlier ones take precedence.

    Args:
        folders: Such as `configs`.
    """

    folders: tuple[Path, ...]

    def options(self, group: str) -> list[str]:
        """Return the names of a group's options, sorted; none if there is no such group."""
        files = (file for folder in self.folders for file in (folder / group).glob("*.yaml"))
        return sorted({file.stem for file in files})

    def has(self, group: str) -> bool:
        """Return whether there is such a group."""
        # os.path, because it says False for a word that is too long to be a file name.
        return any(os.path.isdir(folder / group) for folder in self.folders)

    def get_group_options(self, group_name: str, results_filter: object = None) -> list[str]:
        """Return the options that a glob chooses from; Hydra's parser calls it by this name."""
        return [each for each in self.options(group_name) if each != _TEMPLATES.get(group_name)]

    def file(self, group: str, option: str) -> Path:
        """Return the file of an option.

        Raises:
            ConfigError: There is none.
        """
        for folder in self.folders:
            if os.path.isfile(file := folder / group / f"{option}.yaml"):
                return file
        raise ConfigError(f"{group}={shown(option)}: {self.refusal(group, option)}")

    def refusal(self, group: str, option: str) -> str:
        """Return why an option is not in a group, with the nearest ones that are."""
        options = self.get_group_options(group)
        close = difflib.get_close_matches(option, options, 2)
        nearest = f"did you mean {' or '.join(close)}? " if close else ""
        own = ", or module:Class for one of your own" if group in _TEMPLATES else ""
        return f"{nearest}choose from {', '.join(options)}{own}"


def printable(text: str) -> str:
    """Return a text on one line, with unprintable characters replaced by their codes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(text: str) -> str:
    """Return a text as one short line, for a message."""
    line = printable(text)
    return line if len(line) <= MAX_SHOWN else f"{line[: MAX_SHOWN - 4]} ..."


def seed_of(value: object) -> int:
    """Return the seed that a word gives.

    Raises:
        ConfigError: It is not a whole number.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        text = shown(str(value))
        raise ConfigError(f"seed={text}: must be whole numbers, as in 0,1 or range(0,2)")
    return value


def key_of(word: str) -> str:
    """Return the key of a word, without its prefix and package.

    Raises:
        ConfigError: It is not a word.
    """
    found = _KEY.fullmatch(word)
    if found is None or (found["value"] is None and found["prefix"] != "~"):
        hint = "" if word.startswith("-") else ", such as attention=softmax"
        raise ConfigError(f"{shown(word)}: a word is written key=value{hint}")
    return found["key"].partition("@")[0].strip()


def read(word: str, groups: Groups) -> Override:
    """Return a word as Hydra reads it.

    Raises:
        ConfigError: It does not follow Hydra's grammar.
    """
    key_of(word)
    try:
        return OverridesParser.create(groups).parse_overrides([word])[0]
    except HydraException as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ConfigError(f"{shown(word)}: {shown(reason)}") from error


def quoted(text: str) -> str:
    """Return a text that Hydra's grammar reads as it is."""
    # A dollar before a brace would be an interpolation.
    return str(QuotedString(text.replace("${", "\\${"), Quote.single).with_quotes())


def _literal(word: str, groups: Groups) -> str:
    """Return a word with its value in quotes if its characters are not meant as grammar."""
    found = _KEY.fullmatch(word)
    if found is None or not (value := found["value"]):
        return word
    start = f"{found['prefix']}{found['key']}="
    if found["key"] not in FOLDERS:
        try:
            read(word, groups)
        except ConfigError:
            return start + quoted(value) if not _FUNCTION.fullmatch(value) else word
        return word
    # A shell expands a tilde only at the beginning of a word, if at all.
    value = os.path.expanduser(value)
    word = start + value
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if is_quoted or "${" in value:
        try:
            return word if not read(word, groups).is_sweep_override() else start + quoted(value)
        except ConfigError:
            return start + quoted(value)
    return start + (value if _PLAIN.fullmatch(value) else quoted(value))


def complete(words: Iterable[str], groups: Groups) -> list[str]:
    """Return words that Hydra reads as they are meant.

    An experiment becomes its words, `debug=true` the file of its group, and a glob its matches; a
    folder, and a value that is not grammar, is quoted. Words that are complete stay as they are.

    Raises:
        ConfigError: A word is invalid, or there is no such experiment.
    """
    given = list(words)
    keys = {key_of(word) for word in given}
    listed = []
    for word in given:
        key, value = key_of(word), word.partition("=")[2].strip()
        if key == "experiment":
            listed = [each for each in experiment(value, groups) if key_of(each) not in keys]
    listed += [word for word in given if key_of(word) != "experiment"]
    ready = []
    for word in listed:
        key, value = key_of(word), word.partition("=")[2].strip()
        if key == "debug" and value.lower() in ("true", "false", "1", "0"):
            if value.lower() in ("true", "1"):
                ready += ["debug='true'", *["scale=mini"] * ("scale" not in keys)]
            continue
        override = read(word := _literal(word, groups), groups)
        if override.is_choice_sweep() and value.startswith("glob("):
            names = list(override.sweep_string_iterator())
            if not names:
                raise ConfigError(
                    f"{shown(word)}: matches none of {', '.join(groups.options(key))}"
                )
            word = f"{override.get_key_element()}={','.join(names)}"
        ready.append(word)
    return ready


def with_defaults(words: Sequence[str], defaults: Sequence[str]) -> list[str]:
    """Return words, preceded by the defaults whose keys they lack."""
    keys = {key_of(word) for word in words}
    return [*(each for each in defaults if key_of(each) not in keys), *words]


def experiment(name: str, groups: Groups) -> list[str]:
    """Return the words of an experiment: a file of `configs/experiment`, one key per line.

    Raises:
        ConfigError: There is no such experiment, or its file does not hold one.
    """
    file = groups.file("experiment", name)
    try:
        values = OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file}: {shown(str(error))}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: must hold one key and value per line")
    return [f"{key!s}={str(v).lower() if isinstance(v, bool) else v}" for key, v in values.items()]


def choices(words: Sequence[str], groups: Groups) -> dict[str, list[str]]:
    """Return the values of every key, as Hydra writes them; of equal keys, the last one counts.

    Args:
        words: Complete words.
        groups: Where a glob looks.

    Raises:
        ConfigError: A word is invalid, or sweeps over values that cannot be listed.
    """
    found: dict[str, list[str]] = {}
    for word in words:
        override, key = read(word, groups), read(word, groups).get_key_element()
        if not override.is_sweep_override():
            found[key] = [override.get_value_element_as_str()]
        elif override.is_discrete_sweep():
            found[key] = list(override.sweep_string_iterator())
        else:
            reason = "an interval is for a search; a grid needs values separated by commas"
            raise ConfigError(f"{shown(word)}: {reason}")
    return found


def expand(words: Sequence[str], groups: Groups) -> Iterator[list[str]]:
    """Yield the words of every cell of a grid, in the order in which Hydra runs them.

    Raises:
        ConfigError: A word is invalid, or sweeps over values that cannot be listed.
    """
    each = choices(words, groups).items()
    listed = [[f"{key}={value}" for value in values] for key, values in each]
    yield from map(list, itertools.product(*listed))


def merged(cells: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the words of a few commands that together run the given cells, and no others.

    Args:
        cells: The words of each cell.
    """
    return [
        [f"{key}={','.join(values)}" for key, values in group.items()] for group in grouped(cells)
    ]


def grouped(cells: Sequence[Sequence[str]]) -> list[dict[str, tuple[str, ...]]]:
    """Return cells in a few groups, each of which is all combinations of some values by key.

    Args:
        cells: The words of each cell.
    """
    groups: list[dict[str, tuple[str, ...]]] = [
        # A path of a user's own backend reads better without Hydra's escapes, and means the same.
        {key: (value.replace("\\:", ":"),) for key, _, value in (w.partition("=") for w in cell)}
        for cell in cells
    ]
    for key in dict.fromkeys(key for group in groups for key in group):
        # Groups that differ only in the values of this key.
        alike: dict[Any, dict[str, tuple[str, ...]]] = {}
        for group in groups:
            rest = (tuple(item for item in group.items() if item[0] != key), key in group)
            if rest in alike and key in group:
                alike[rest][key] = tuple(dict.fromkeys(alike[rest][key] + group[key]))
            else:
                alike[rest] = dict(group)
        groups = list(alike.values())
    return groups


def value_of(text: str) -> Any:
    """Return the value that Hydra reads from a text, such as the number 3 from `3`."""
    try:
        return OverridesParser.create().parse_overrides([f"key={text}"])[0].value()
    except HydraException:
        return text


def is_sweep(words: Iterable[str], groups: Groups) -> bool:
    """Return whether any of the complete words has several values."""
    return any(read(word, groups).is_sweep_override() for word in words)


def check_keys(words: Iterable[str], keys: Sequence[str], groups: Groups) -> None:
    """Refuse a key that neither a schema nor a group has, and an option that a group lacks.

    Args:
        words: Complete words.
        keys: Every key of the schema; one that ends in a dot holds keys of its own.
        groups: The groups that exist.

    Raises:
        ConfigError: With the nearest keys or options, or our name for what others call differently.
    """
    inside = tuple(key for key in keys if key.endswith("."))
    for word in words:
        override = read(word, groups)
        key = override.key_or_group
        if override.is_delete() and ".options." in key:
            raise ConfigError(
                f"{shown(word)}: options cannot be removed; set {key}=VALUE, or {key}=null for no"
                " value"
            )
        if key.startswith(("hydra.", "hydra/", *inside)):
            # Groups of Hydra also have options from plugins.
            continue
        if groups.has(key):
            _check_option(override, groups)
        elif key not in keys:
            raise ConfigError(f"{shown(word)}: {_unknown(key, keys)}")
        elif key in _ADVICE and not isinstance(override.value(), dict):
            raise ConfigError(f"{shown(word)}: {_ADVICE[key]}")


def _check_option(override: Override, groups: Groups) -> None:
    group, known = override.key_or_group, groups.options(override.key_or_group)
    if override.is_delete() or not known:
        return
    texts = override.sweep_iterator() if override.is_discrete_sweep() else [override.value()]
    for value in texts:
        text = value.text if isinstance(value, QuotedString) else value
        if text is None or (isinstance(text, str) and (":" in text or "$" in text)):
            continue
        if not isinstance(text, str) or text not in known:
            raise ConfigError(f"{group}={shown(str(text))}: {groups.refusal(group, str(text))}")


def _unknown(key: str, keys: Sequence[str]) -> str:
    """Return what to say about a key that does not exist."""
    tail = key.rpartition(".")[2].replace("-", "_").lower()
    head = key.partition(".")[0].lower()
    for ours, names in _FOREIGN.items():
        if tail in names.split() and key != ours:
            advice = _ADVICE.get(ours)
            return f"there is no key {shown(key)}; {advice or f'use {ours}'}"
    # Parts of our own keys keep the meaning that they have here.
    own = {each.partition(".")[0] for each in keys}
    for name in (tail, *({key.lower(), head} - own)):
        for advised, text in _ADVICE.items():
            if name == advised or name in _SAME_ADVICE.get(advised, "").split():
                return f"there is no key {shown(key)}; {text}"
    if f"{head}.options." in keys:
        return f"there is no key {shown(key)}; did you mean {head}.options.{tail}?"
    close = nearest(key, [each for each in keys if not each.endswith(".")])
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"there is no key {shown(key)}{hint or '; `lra train --help` lists them'}"


def nearest(key: str, keys: Sequence[str]) -> list[str]:
    """Return the keys that resemble one most, at most three: as a whole, or in their last part."""
    tail = key.rpartition(".")[2]
    by_tail: Mapping[str, list[str]] = {
        part: [each for each in keys if each.rpartition(".")[2] == part]
        for part in difflib.get_close_matches(tail, {k.rpartition(".")[2] for k in keys}, 2, 0.7)
    }
    if tail in by_tail:
        return by_tail[tail][:3]
    found = [each for group in by_tail.values() for each in group]
    found += difflib.get_close_matches(key, keys, 2, 0.75)
    return sorted(set(found), key=lambda each: -_likeness(key, each))[:3]


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
