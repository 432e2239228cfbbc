"""Check a backend, or a task of your own, against its contract.

    lra check my_pkg.my_file:MyAttention window=32
    lra check my_file:MyTask num_train=100
    lra check wavspa inner=linear wavelet=ortho
    lra check attention=wavspa attention@attention.inner=linear attention.options.wavelet=ortho
    lra check attention=softmax,mra,my_file:MyAttention
    lra check

The checks of a backend are those that the tests run on every built-in one; the checks of a task
build its data, from LRA_DATA_DIR if it reads any. Each check prints one line: `pass`, `FAIL` with
the reason, or `skip` with the reason. With several backends, or with none named, which checks every
built-in one, only a failed check has a line of its own. The exit code is 1 if a check fails.
Nothing has to be installed: modules in the current folder are found.
"""

import argparse
import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lra import custom, task_contract
from lra.build import build_attention, find_backend
from lra.compose import command, groups, place
from lra.config import DATA_DIR_VARIABLE, AttentionConfig, ConfigError, backend_name, expanded
from lra.contract import (
    CHECKS,
    LENGTH,
    MORE,
    SMALL,
    BrokenError,
    SkippedError,
    Subject,
    compiles,
    sentence,
    shape_and_type,
)
from lra.task_contract import TASK_CHECKS
from lra.tasks import DataError
from lra.terminal import refused
from lra.terminal import run as run_command
from lra.words import expand, value_of

MIN_LENGTH = LENGTH + MORE
SIZES = {
    "dim": "model width",
    "heads": "heads",
    "head_dim": "width of a head",
    "max_length": f"longest sequence, at least {MIN_LENGTH}",
}


def attention_config(
    word: str, options: dict[str, Any] | None = None, where: str = "attention"
) -> AttentionConfig:
    """Return the configuration of the backend that the command line names.

    Args:
        word: Its name or path, such as `softmax` or `my_pkg.my_file:MyAttention`.
        options: Its options, with the inner backend under `inner`, either its name or its name and
            options; softmax if one is needed and none is given.
        where: The key that would hold it, for messages.

    Raises:
        ConfigError: There is no such backend.
    """
    options = dict(options or {})
    inner = options.pop("inner", None)
    path = word if ":" in word else None
    config = AttentionConfig(name=backend_name(word) if path else word, path=path, options=options)
    if inner is None and "inner" in inspect.signature(find_backend(config, where)).parameters:
        inner = "softmax"
    if inner is not None:
        name, more = inner if isinstance(inner, tuple) else (str(inner), {})
        config.inner = attention_config(name, more, f"{where}.inner")
    return config


S = TypeVar("S")


def run(check: Callable[[S], None], subject: S) -> tuple[str, str]:
    """Return the result of a check, `pass`, `FAIL` or `skip`, and the reason."""
    try:
        check(subject)
    except BrokenError as error:
        return "FAIL", str(error)
    except SkippedError as error:
        return "skip", str(error)
    except (Exception, SystemExit) as error:  # whatever the code under test raises is a finding
        return "FAIL", custom.finding(error)
    return "pass", ""


def _arguments(words: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    backend, task = (
        "\n".join(f"  {sentence(check)}" for check in checks) for checks in (CHECKS, TASK_CHECKS)
    )
    parser = argparse.ArgumentParser(
        prog="lra check",
        description=__doc__,
        epilog=f"checks of a backend:\n{backend}\n\nchecks of a task:\n{task}\n\n"
        "lra/contract.py and lra/task_contract.py say what each must provide.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words", nargs="*", help="attention=NAME and attention.options.KEY=VALUE, or NAME KEY=VALUE"
    )
    parser.add_argument("--fast", action="store_true", help="skip the check of torch.compile")
    for key, what in SIZES.items():
        default = getattr(SMALL, key)
        flag = f"--{key.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=default, help=f"{what} ({default})")
    # Intermixed, so that words may follow a flag.
    return parser, parser.parse_intermixed_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Run every check on the backend or task that the command line names.

    Args:
        words: The command line; None takes that of the process.
    """
    parser, args = _arguments(words)
    if args.max_length < MIN_LENGTH:
        parser.error(f"--max-length {args.max_length}: must be at least {MIN_LENGTH}")
    try:
        sizes: dict[str, Any] = {key: getattr(args, key) for key in SIZES}
        replace(SMALL, **sizes)
    except ValueError as error:
        parser.error(f"--{str(error).replace('_', '-', 1)}")
    with refused(ConfigError, DataError, OmegaConfBaseException):
        named = _named(args.words)
        is_one = len(named) == 1
        first = args.words[0].lstrip("+") if args.words else ""
        where = "task" if first.startswith(("task=", "task.")) else "attention"
        failed = [_check(*each, sizes, args.fast, is_one, where) for each in named]
    sys.exit(any(failed))


def _named(words: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return the backends, or the user's own task, that words name, each with its options.

    Raises:
        ConfigError: A word is wrong.
    """
    if not words:
        return [(name, {}) for name in groups().get_group_options("attention")]
    if "=" not in words[0]:
        if ":" not in words[0] and words[0] not in groups().get_group_options("attention"):
            # The error names the nearest backend.
            place(f"attention={words[0]}")
        if wrong := [word for word in words[1:] if "=" not in word]:
            raise ConfigError(f"{wrong[0]}: options are written key=value")
        return [(words[0], _options(words[1:]))]
    found = []
    ready = command(words)
    for cell in expand(ready, groups(ready)):
        given = dict(word.lstrip("+").partition("=")[::2] for word in cell)
        group = "attention" if any(key.startswith("attention") for key in given) else "task"
        name, options = _taken(given, group)
        if group == "task" and ":" not in name:
            raise ConfigError(
                f"task={name}: must be a task of your own, such as {custom.TASK_EXAMPLE}; the"
                " suite's tests check the built-in ones"
            )
        if given:
            raise ConfigError(
                f"lra check does not read {', '.join(given)}: it reads {group}=..., its options"
                + (" and its inner backend" if group == "attention" else "")
                + f"; raw data are looked for in {DATA_DIR_VARIABLE}"
            )
        found.append((name, options))
    return found


def _taken(given: dict[str, str], place: str) -> tuple[str, dict[str, Any]]:
    """Take a backend or task, its options and its inner backend from the words of a cell.

    Args:
        given: Values by key; those that are used are removed.
        place: The key of the backend or task, such as `attention.inner`.

    Returns:
        Its name or path, and its options, with the inner backend under `inner`.

    Raises:
        ConfigError: A path is missing.
    """
    name = str(value_of(given.pop(f"attention@{place}" if "." in place else place, "softmax")))
    if (path := given.pop(f"{place}.path", None)) is None and name == "custom":
        example = custom.TASK_EXAMPLE if place == "task" else custom.EXAMPLE
        raise ConfigError(f"{place}.path: needs a value, module:Class, such as {example}")
    start, inside = f"{place}.options.", f"{place}.inner"
    mine = [key for key in given if key.startswith(start)]
    options = _options([f"{key.removeprefix(start)}={given.pop(key)}" for key in mine])
    if any(key == f"attention@{inside}" or key.startswith(f"{inside}.") for key in given):
        options["inner"] = _taken(given, inside)
    return str(value_of(path)) if path else name, options


def _check(
    name: str,
    options: dict[str, Any],
    sizes: dict[str, Any],
    fast: bool,
    is_one: bool,
    where: str,
) -> bool:
    """Run every check on a backend or task, print the results, and return whether one failed.

    Raises:
        ConfigError: There is no such backend or option, or the backend rejects the sizes.
        DataError: The raw data of a task are missing.
    """
    if ":" in name and _is_task(name, where):
        return _check_task(name, options)
    shape = replace(SMALL, **sizes)
    subject = Subject(build_attention(attention_config(name, options)), shape)
    try:
        subject.build()
    except ValueError as error:
        raise ConfigError(
            f"{name} cannot be built with {shape}: {error}\nGive options that fit"
            " these sizes, as key=value, or other sizes: --dim, --heads, --head-dim, --max-length"
        ) from error
    except (Exception, SystemExit) as error:  # whatever the backend raises is a finding
        print(f"FAIL  It is built from a shape and its options: {custom.finding(error)}")
        return True
    left_out = compiles if fast else None
    return _run_all(name, CHECKS, subject, left_out, is_one, needed=shape_and_type)


def _options(words: Sequence[str]) -> dict[str, Any]:
    options = OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items()}


def _run_all(
    name: str,
    checks: Sequence[Callable[[S], None]],
    subject: S,
    leave_out: Callable[[S], None] | None = None,
    is_one: bool = True,
    needed: Callable[[S], None] | None = None,
) -> bool:
    """Run checks, print a line for each or only for failures, and return whether one failed.

    If the check that the others need fails, they are skipped: they would only fail because of it.
    """
    counts = {"pass": 0, "FAIL": 0, "skip": 0}
    usable = True
    for check in checks:
        if not usable:
            state, why = "skip", "there is no output to look at"
        else:
            state, why = ("skip", "--fast") if check is leave_out else run(check, subject)
        usable = usable and (check is not needed or state != "FAIL")
        counts[state] += 1
        if is_one or state == "FAIL":
            print(f"{state}  {sentence(check)}{': ' if why else ''}{why}", flush=True)
    passed, failed, skipped = counts.values()
    print(f"{name}: {passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return failed > 0


def _is_task(path: str, where: str) -> bool:
    found = custom.find(path, where)
    return dataclasses.is_dataclass(found) and not custom.is_network(found)


def _check_task(path: str, options: dict[str, Any]) -> bool:
    task_contract.make(path, options)
    raw = os.environ.get(DATA_DIR_VARIABLE)
    with TemporaryDirectory() as folder:
        try:
            there = expanded(raw) if raw else None
            subject = task_contract.build(path, options, Path(folder), there)
        except (ConfigError, DataError):
            raise
        except (Exception, SystemExit) as error:  # whatever the task raises is a finding
            print(f"FAIL  Its data are built: {custom.finding(error)}")
            return True
        return _run_all(path, TASK_CHECKS, subject)


if __name__ == "__main__":
    run_command(main)
