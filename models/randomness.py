"""Seeds for what is dropped, drawn from torch's generator or from one that a thread has to itself.

The default generator is one for all threads. What must not depend on which of them comes first
draws its seeds within `seeded`.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_own = threading.local()


def draw_seed() -> int:
    """Draw 64 bits on the CPU, as a signed number: of `seeded`, else of torch's generator."""
    generator: torch.Generator | None = getattr(_own, "generator", None)
    drawn = torch.empty((), dtype=torch.int64, device="cpu")
    return int(drawn.random_(-(2**63), None, generator=generator))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let this thread draw seeds from a generator of its own.

    Args:
        seed: Of the generator, 64 bits as a signed number.
    """
    before = getattr(_own, "generator", None)
    _own.generator = torch.Generator("cpu").manual_seed(seed)
    try:
        yield
    finally:
        _own.generator = before
