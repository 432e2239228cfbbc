"""Translate the words of `lra bench`, which are those of every command, into its options."""

import itertools
from collections.abc import Sequence

from lra.compose import command, groups
from lra.config import ConfigError
from lra.words import choices, quoted, value_of

# Keys of the bench itself; see `lra.bench.lengths.BenchConfig`.
OWN = {"attentions", "lengths", "length", "task", "protocol", "batch_size", "repeats", "threads"}
OWN |= {"attention_dropout", "precision", "compile", "device", "out"}
# Keys that change the cell but not its training step.
_OUTSIDE = {"seed", "variant", "data_dir", "cache_dir", "runs_dir", "force", "validation"}
# Marks a word of the cell among the options of a backend, in the text that names the backend.
WORD = "+"


def of_lengths(words: Sequence[str]) -> list[str]:
    """Return the words of the bench for those of a grid: one text per backend with its options.

    Raises:
        ConfigError: A word is invalid, or several tasks or protocols are requested.
    """
    own = [word for word in words if word.partition("=")[0] in OWN or "=" not in word]
    rest = command([word for word in words if word not in own])
    found = choices(rest, groups(rest))
    for word in [word for word in own if word.startswith(("task=", "protocol="))]:
        if len(choices([word], groups())[word.partition("=")[0]]) > 1:
            raise ConfigError(f"{word}: a bench uses the model of one task and one protocol")
    kept = {
        key: values
        for key, values in found.items()
        if key not in _OUTSIDE and not key.startswith(("hydra.", "hydra/"))
    }
    bench_words = [
        f"lengths=[{word.partition('=')[2]}]" if word.startswith("length=") else word
        for word in own
    ]
    if not kept or any(word.startswith("attentions=") for word in own):
        return bench_words
    names = kept.pop("attention", groups().get_group_options("attention"))
    each = [[_option(key, value) for value in values] for key, values in kept.items()]
    texts = [
        " ".join([str(value_of(name)), *options])
        for name in names
        for options in itertools.product(*each)
    ]
    return [*bench_words, f"attentions=[{','.join(map(quoted, texts))}]"]


def _option(key: str, value: str) -> str:
    plain = key.lstrip("+")
    is_option = plain.startswith("attention.options.")
    return f"{plain.removeprefix('attention.options.') if is_option else WORD + plain}={value}"
