"""Load the user's own code by its path: `attention.path=my_pkg.my_file:MyAttention`.

A backend is chosen by `attention=custom`, a task by `task=custom task.path=my_file:MyTask`. Nothing
has to be installed: `lra train` finds modules in the current folder.
"""

import dataclasses
import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lra import networks, provenance
from lra.config import AttentionConfig, ConfigError, bind, is_path
from lra.tasks import SPLITS, DataError, Split, Task

EXAMPLE = "my_pkg.my_file:MyAttention"
SIGNATURE = "def __init__(self, shape: AttentionShape, *, window: int = 64)"
TASK_EXAMPLE = "my_file:MyTask"
# The facts that a user's own task states beyond `lra.tasks.Task`, each with its least value.
FACTS = {"version": 0, "id_shift": 0, "num_classes": 2, "num_symbols": 2, "length": 1}


def load(path: str | None, where: str) -> type[nn.Module]:
    """Return the backend that a path names.

    Args:
        path: Module and class, such as `my_pkg.my_file:MyAttention`.
        where: The key that holds it, for messages, such as `attention.path`.

    Raises:
        ConfigError: There is no such module or class, or it cannot be a backend.
    """
    backend = _find(path, where, EXAMPLE, "nn.Module classes", is_network)
    if not is_network(backend):
        name = str(path).split(":")[1]
        raise ConfigError(f"{where}={path}: {name} must be a subclass of torch.nn.Module")
    _check_signature(backend, f"{where}={path}")
    found: type[nn.Module] = backend
    return found


def load_task(path: str | None, where: str = "task.path") -> type[Task]:
    """Return the task that a path names.

    Args:
        path: Module and class, such as `my_file:MyTask`.
        where: The key that holds it, for messages.

    Raises:
        ConfigError: There is no such module or class, or it cannot be a task.
    """
    task = _find(path, where, TASK_EXAMPLE, "dataclasses", dataclasses.is_dataclass)
    name = getattr(task, "__name__", path)
    parameters = getattr(task, "__dataclass_params__", None)
    known = dataclasses.fields(task) if parameters is not None else ()
    if parameters is None or not parameters.frozen or not all(each.kw_only for each in known):
        needed = "@dataclass(frozen=True, kw_only=True)"
        raise ConfigError(f"{where}={path}: {name} must be a class under {needed}")
    fields = {each.name for each in known}
    needed_names = (*FACTS, "sizes", "locate", "write")
    if lacking := [each for each in needed_names if each not in fields and not hasattr(task, each)]:
        raise ConfigError(
            f"{where}={path}: {name} lacks {', '.join(lacking)}; CONTRIBUTING.md lists what a"
            " task of your own must state"
        )
    if not provenance.code(task.__module__):
        raise ConfigError(
            f"{where}={path}: {name} was typed in; write it into a file, so that data built by it"
            " can be told from those of another version"
        )
    found: type[Task] = task
    return found


def task_fact(fact: str, path: str | None, options: DictConfig | dict[str, Any]) -> int:
    """Return a fact that a user's own task states about its data, for values that depend on it.

    Args:
        fact: A key of `FACTS`, or `sequences`, which is 1 if the task does not state it.
        path: Module and class of the task.
        options: Its options.

    Raises:
        ConfigError: There is no such task or option, or the fact has an impossible value.
    """
    kind = load_task(path)
    plain = OmegaConf.to_container(options) if isinstance(options, DictConfig) else options
    assert isinstance(plain, dict)
    bound = bind(kind, {str(key): value for key, value in plain.items()}, "task.options")
    try:
        task = kind(**bound)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    check_facts(task, f"task.path={path}")
    value: int = getattr(task, fact, 1) if fact == "sequences" else getattr(task, fact)
    return value


def check_facts(task: Task, where: str) -> None:
    """Reject a user's own task whose facts have impossible values.

    Raises:
        ConfigError: One of them has an impossible value.
    """
    name = type(task).__name__
    for fact, least in FACTS.items():
        value = getattr(task, fact)
        if not isinstance(value, int) or value < least:
            message = f"{name}.{fact} is {value!r}, must be a whole number of at least {least}"
            raise ConfigError(f"{where}: {message}")
    if (sequences := getattr(task, "sequences", 1)) not in (1, 2):
        raise ConfigError(f"{where}: {name}.sequences is {sequences!r}, must be 1 or 2")
    sizes = task.sizes
    if not isinstance(sizes, dict) or set(sizes) != set(SPLITS):
        raise ConfigError(f"{where}: {name}.sizes must be a dict of {', '.join(SPLITS)}")


def check_data(task: Task, splits: Mapping[str, Split]) -> None:
    """Reject data that contradict the facts of a user's own task, which no model could read.

    Raises:
        DataError: A label or a symbol is out of range; `lra check` checks for more.
    """
    for name, split in splits.items():
        for what, values, shift, fact in (
            ("label", split.labels, 0, "num_classes"),
            ("id", split.tokens, task.id_shift, "num_symbols"),
        ):
            low, high, most = int(values.min()), int(values.max()) + shift, getattr(task, fact)
            if low < 0 or high >= most:
                wrong = low if low < 0 else high
                bound = f"0 to {fact} - 1 = {most - 1}"
                raise DataError(f"{type(task).__name__}: {what} {wrong} in {name}, must be {bound}")


def find(path: str, where: str) -> type[Any]:
    """Return the class that a path names, whatever its kind; see `load` and `load_task`."""
    return _find(path, where, EXAMPLE, "classes", lambda value: isinstance(value, type))


def _find(
    path: str | None, where: str, example: str, kind: str, fits: Callable[[Any], bool]
) -> type[Any]:
    if path is None:
        raise ConfigError(f"{where}: needs a value, module:Class, such as {example}")
    if not is_path(path):
        raise ConfigError(f"{where}={path}: must be module:Class, such as {example}")
    module_name, class_name = path.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A missing module that this one imports is a different fault.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{where}={path}: {finding(error)}") from error
        stem = module_name.removesuffix(".py")
        hint = f"; did you mean {stem}:{class_name}?" if stem != module_name else ""
        raise ConfigError(
            f"{where}={path}: there is no module {error.name}; looked in {Path.cwd()} and among"
            f" the installed packages{networks.hint(module_name)}{hint}"
        ) from error
    except SyntaxError as error:
        place = f"{error.filename}, line {error.lineno}: {error.msg}"
        raise ConfigError(f"{where}={path}: Python cannot read {place}") from error
    except SystemExit as error:
        raise ConfigError(f"{where}={path}: {module_name} calls exit when imported") from error
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(f"{where}={path}: importing it raises {finding(error)}") from error
    found = getattr(module, class_name, None)
    if found is None:
        there = [n for n, v in vars(module).items() if fits(v) and v.__module__ == module_name]
        raise ConfigError(
            f"{where}={path}: {getattr(module, '__file__', 'a module of Python')} has no class"
            f" {class_name}; its {kind} are: {', '.join(there) or 'none'}"
        )
    # Hashed now and not when the record is written: the file may have been edited by then.
    provenance.hashes(module_name)
    own: type[Any] = found
    return own


def finding(error: BaseException) -> str:
    """Return an error of the user's code in one line: type, message, and the file and line."""
    message = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {message} ({_place(error)})"


def _place(error: BaseException) -> str:
    """Return the file and line of the innermost frame outside torch."""
    frames = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    # torch.compile traces code without running it, and its messages hold the frames.
    _, _, traced = str(error).partition("from user code:")
    frames += re.findall(r'File "(.+)", line (\d+)', traced)
    torch_folder = str(Path(torch.__file__).parent)
    file, line = [each for each in frames if not each[0].startswith((torch_folder, "<"))][-1]
    return f"{Path(file).name}:{line}"


def sources(config: AttentionConfig) -> str:
    """Return path and sha256 of each of the user's own backends; empty if there is none.

    The hashes cover its file as loaded, and the modules of its package or folder that it imports.

    Args:
        config: A backend, with those nested in it.
    """
    parts = [] if config.path is None else [f"{config.path}, {_hashes(config.path)}"]
    inner = "" if config.inner is None else sources(config.inner)
    return "; ".join([*parts, inner] if inner else parts)


def _hashes(path: str) -> str:
    # The class may be defined elsewhere, and only be imported in the module of the path.
    return provenance.hashes(load(path, "attention.path").__module__)


def is_network(value: Any) -> bool:
    """Return whether a value is a subclass of `nn.Module`."""
    return isinstance(value, type) and issubclass(value, nn.Module)


def _check_signature(backend: type[nn.Module], where: str) -> None:
    initialise = backend.__init__
    parameters = list(inspect.signature(initialise).parameters.values())[1:]
    if not parameters or parameters[0].name != "shape":
        raise ConfigError(f"{where}: __init__ must take shape first, as in {SIGNATURE}")
    for parameter in parameters[1:]:
        if parameter.kind is not parameter.KEYWORD_ONLY:
            raise ConfigError(
                f"{where}: __init__ takes {parameter}, but options must be keyword-only: after"
                f" shape and a *, as in {SIGNATURE}"
            )
    try:
        get_type_hints(initialise)
    except (NameError, AttributeError) as error:
        raise ConfigError(f"{where}: the types of __init__ cannot be read: {error}") from error
