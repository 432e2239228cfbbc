"""Networks of the suite: one attention backend per file, and the encoder that takes any of them.

A backend is built as `ATTENTION[name](shape, **options)` and called as `backend(x, mask)`, with
`x` `(B, N, D)` and `mask` `(B, N)` bool (True = real token) or None when every token is real;
it returns `(B, N, D)`. What is under the mask, be it NaN, never changes the output at real
positions, nor gradients; `HeadProjections.split` takes the mask to see to that.
`backend.pad_invariant` says whether the *amount* of padding leaves it unchanged too,
`backend.memory_growth` the power of N that memory grows with, and `backend.reference(x, mask)` is
its plain form. `lra/contract.py` checks all of it.

There is no causal mask: the benchmark classifies sequences that are there whole, so a position may
attend to all others.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.registry import ATTENTION

__all__ = ["ATTENTION"]


def __getattr__(name: str) -> Any:
    """Import the backends, and with them torch, when they are first asked for."""
    if name != "ATTENTION":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from models.registry import ATTENTION

    return ATTENTION
