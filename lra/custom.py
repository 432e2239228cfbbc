"""A backend of the user's own, loaded by its path: `attention.path=my_pkg.my_file:MyAttention`.

Nothing has to be installed: `python -m lra.train` finds modules of the current folder.
"""

import hashlib
import importlib
import inspect
from pathlib import Path
from typing import Any, get_type_hints

from torch import nn

from lra.config import AttentionConfig, ConfigError, is_path

EXAMPLE = "my_pkg.my_file:MyAttention"
SIGNATURE = "def __init__(self, shape: AttentionShape, *, window: int = 64)"


def load(path: str | None, where: str) -> type[nn.Module]:
    """Return the class that a path names.

    Args:
        path: Module and class, such as `my_pkg.my_file:MyAttention`.
        where: The key that holds it, for messages, such as `attention.path`.

    Raises:
        ConfigError: There is no such module or class, or it cannot be a backend.
    """
    if path is None:
        raise ConfigError(f"{where}: needs a value, module:Class, such as {EXAMPLE}")
    if not is_path(path):
        raise ConfigError(f"{where}={path}: must be module:Class, such as {EXAMPLE}")
    module_name, class_name = path.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that this one imports in its turn is another matter: Python says where.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"{where}={path}: there is no module {error.name}; looked in {Path.cwd()} and among"
            " what is installed"
        ) from error
    backend = getattr(module, class_name, None)
    if backend is None:
        there = [
            n for n, v in vars(module).items() if _is_network(v) and v.__module__ == module_name
        ]
        raise ConfigError(
            f"{where}={path}: {module.__file__} has no class {class_name}; its nn.Module classes"
            f" are: {', '.join(there) or 'none'}"
        )
    if not _is_network(backend):
        raise ConfigError(f"{where}={path}: {class_name} must be a subclass of torch.nn.Module")
    _check_signature(backend, f"{where}={path}")
    found: type[nn.Module] = backend
    return found


def sources(config: AttentionConfig) -> str:
    """Return path and sha256 of the file of every user's own backend; empty where there is none.

    Args:
        config: A backend, with those inside it.
    """
    parts = [] if config.path is None else [f"{config.path}, sha256 {_file_hash(config.path)}"]
    inner = "" if config.inner is None else sources(config.inner)
    return "; ".join([*parts, inner] if inner else parts)


def _file_hash(path: str) -> str:
    file = inspect.getsourcefile(load(path, "attention.path"))
    assert file is not None, path
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def _is_network(value: Any) -> bool:
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
    except NameError as error:
        raise ConfigError(f"{where}: the types of __init__ cannot be read: {error}") from error
