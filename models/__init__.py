"""Networks of the suite: one attention backend per file, and the encoder that takes any of them.

A backend is built as `ATTENTION[name](shape, **options)` and called as `backend(x, mask)`, with
`x` `(B, N, D)` and `mask` `(B, N)` bool (True = real token) or None when every token is real;
it returns `(B, N, D)`. Masked input, even NaN, never changes the output at real positions or any
gradient; `HeadProjections.split` takes the mask to ensure this. `backend.pad_invariant` says
whether the *amount* of padding leaves the output unchanged too, `backend.memory_growth` is the
power of N with which memory grows, and `backend.reference(x, mask)` is the plain form of the
backend. `lra/contract.py` checks all of this.

There is no causal mask: the benchmark classifies complete sequences, so a position may attend to
all others.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.registry import ATTENTION

__all__ = ["ATTENTION"]


def __getattr__(name: str) -> Any:
    """Import the backends, and with them torch, on first use."""
    if name != "ATTENTION":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from models.registry import ATTENTION

    return ATTENTION
