"""The Long Range Arena benchmark: data, training, records and tables.

From Python, as in `docs/python.md`:

    config = lra.load("task=listops", "attention=fourier", "scale=mini")
    splits = lra.dataset(config)
    model = lra.model(config)
    record = lra.train(config)
    table = lra.records()

What these need, torch among it, is imported when they are first used.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from lra import networks

if TYPE_CHECKING:
    from lra.compose import load
    from lra.interface import dataset, model
    from lra.record import records

__all__ = ["dataset", "load", "model", "records", "train"]
__version__ = "0.1.0"

networks.claim()
# Read when torch is imported, which must not be before. Threads that wait for each other at the end
# of an operation spin for some microseconds and then sleep: where a neighbour has one of the
# processor's cores, spinning on makes two threads ten times as slow as one, and to sleep at once
# costs a quiet machine a quarter. No number depends on it; what is set already holds.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def __getattr__(name: str) -> Any:
    if name == "train":
        # A module that can be called, so that it may be imported before or after.
        return importlib.import_module("lra.train")
    if name in __all__:
        module = {"load": "lra.compose", "records": "lra.record"}.get(name, "lra.interface")
        return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'lra' has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
