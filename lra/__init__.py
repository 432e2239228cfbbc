"""The Long Range Arena benchmark: data, training, records and tables.

Use it from Python as in `docs/python.md`:

    config = lra.load("task=listops", "attention=fourier", "scale=mini")
    splits = lra.dataset(config)
    model = lra.model(config)
    record = lra.train(config)
    table = lra.records()

Their dependencies, torch among them, are imported on first use.
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
# torch reads this at import, so it must be set before that. Threads that wait for each other at the
# end of an operation then spin for some microseconds before they sleep. If another process occupies
# one of the processor's cores, spinning longer makes two threads ten times as slow as one; sleeping
# at once makes them slower on an idle machine (docs/speed.md). No number depends on it, and an
# existing setting is kept.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def __getattr__(name: str) -> Any:
    if name == "train":
        # The module itself is callable, so it may be imported before or after this.
        return importlib.import_module("lra.train")
    if name in __all__:
        module = {"load": "lra.compose", "records": "lra.record"}.get(name, "lra.interface")
        return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'lra' has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
