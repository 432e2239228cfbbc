"""Whether a plain value, as JSON or YAML hold it, fits a type hint."""

import types
from typing import Any, Literal, Union, get_args, get_origin


def fits(value: Any, kind: Any) -> bool:
    """Tell whether `value` is of `kind`.

    An int serves as a float, a list as a tuple, but a bool is no number.

    Args:
        value: A value.
        kind: A class, `Any`, `Literal`, a union, or a list, tuple or dict of such.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(fits(value, choice) for choice in arguments)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            return False
        kinds = arguments
        if origin is list or Ellipsis in arguments:
            kinds = arguments[:1] * len(value)
        return len(kinds) == len(value) and all(map(fits, value, kinds))
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, origin or kind)


def describe(kind: Any) -> str:
    """Return a type as people read it, such as `ok | failed` for a literal."""
    if get_origin(kind) is Literal:
        return " | ".join(str(choice) for choice in get_args(kind))
    return getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else str(kind)
