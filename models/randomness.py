"""Seeds for dropout, drawn from torch's generator or from a stream of a thread's own.

All threads share torch's generator. Code whose results must not depend on which thread comes first
draws its seeds within `seeded`.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass
class _Stream:
    """SplitMix64 (Steele, Lea and Flood 2014), as in `models.compiled.row_key`."""

    state: int

    def draw(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        bits = self.state
        bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
        bits ^= bits >> 31
        return bits - 2**64 if bits >= 2**63 else bits


class _Own(threading.local):
    stream: _Stream | None = None


_own = _Own()


def draw_seed() -> int:
    """Draw 64 bits on the CPU, as a signed number: from `seeded`, or else from torch's generator.

    Raises:
        RuntimeError: It is called in a backward pass within `seeded`: what `torch.utils.checkpoint`
            recomputes there would drop different elements than the first time.
    """
    if _own.stream is None:
        return int(torch.empty((), dtype=torch.int64, device="cpu").random_(-(2**63), None))
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "dropout within torch.utils.checkpoint: a backend that uses it must not declare"
            " thread_safe = True"
        )
    return _own.stream.draw()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let this thread draw seeds from a stream of its own.

    Args:
        seed: Seed of the stream, 64 bits as a signed number.
    """
    before, _own.stream = _own.stream, _Stream(seed % 2**64)
    try:
        yield
    finally:
        _own.stream = before
