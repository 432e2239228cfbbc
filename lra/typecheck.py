"""Whether a plain value, as JSON or YAML holds it, fits a type hint."""

import types
from typing import Any, Literal, Union, get_args, get_origin


def fits(value: Any, kind: Any) -> bool:
    """Return whether `value` is of type `kind`.

    An int counts as a float and a list as a tuple, but a bool is not a number.

    Args:
        value: A value.
        kind: A class, `Any`, `Literal`, a union, or a list, tuple or dict of these.
    """
    # A NewType is checked as what it is made of.
    kind = getattr(kind, "__supertype__", kind)
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
    """Return a readable name of a type, such as `ok | failed` for a literal."""
    if get_origin(kind) is Literal:
        return " | ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return " | ".join(map(describe, get_args(kind)))
    if kind is type(None):
        return "null"
    return getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else str(kind)
