"""What attention with a gate per head and token needs besides queries, keys and values.

Axes: B batch, L length, D model width, H heads, K head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import AttentionShape, HeadProjections
from models.options import at_least
from models.precision import full_precision, without_autocast

Qkv = tuple[Tensor, Tensor, Tensor]


class GatedHeads(nn.Module):
    """Projections, decay and gated norm of heads that keep a state, as in Gated DeltaNet.

    A step dt = softplus(w x + b) and a rate A per head give the decay exp(-A dt) of each token. The
    output of a head is divided by its root mean square and multiplied by silu(W x). Initially, A is
    uniform in [0, 16] but at least .01, and dt is log-uniform in [.001, .1] (arXiv 2412.06464,
    whose code follows Mamba-2's; there the range of A begins at 1, and the gate comes before a norm
    over all heads together).

    Args:
        shape: Sizes and biases, and what is added to the mean square.
    """

    parameter_roles = {"log_rate": "A", "step_bias": "dt", "norm": "norm"}

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        heads, width = shape.heads, shape.head_dim
        self.projections = HeadProjections(shape)
        self.epsilon = shape.norm_epsilon
        rate = torch.empty(heads).uniform_(0, 16).clamp(min=1e-2)
        step = torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.log_rate = nn.Parameter(rate.log())
        # The inverse of softplus.
        self.step_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        bound = 1 / math.sqrt(shape.dim)
        self.step_weight = nn.Parameter(torch.empty(heads, shape.dim).uniform_(-bound, bound))
        self.gate = nn.Parameter(torch.empty(heads, width, shape.dim).uniform_(-bound, bound))
        self.norm = nn.Parameter(torch.ones(heads, width))

    def split(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values `(B, H, L, K)` of `x` `(B, L, D)` in float32 or wider."""
        q, k, v = map(full_precision, self.projections.split(x, mask))
        return q, k, v

    def steps(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return dt and the logarithm of the decay, at most 0, each `(B, H, L)`.

        Both are 0 where `mask` `(B, L)` is False, so that a state passes padding unchanged.
        """
        raw = torch.einsum("bld,hd->bhl", full_precision(x), full_precision(self.step_weight))
        step = F.softplus(raw + self.step_bias[:, None])
        if mask is not None:
            step = step.masked_fill(~mask[:, None], 0.0)
        return step, -self.log_rate.exp()[:, None] * step

    def merge(self, heads: Tensor, x: Tensor) -> Tensor:
        """Normalise and gate `heads` `(B, H, L, K)`, and project them to `(B, L, D)` like `x`."""
        size = torch.rsqrt(heads.square().mean(-1, keepdim=True) + self.epsilon)
        gate = F.silu(full_precision(torch.einsum("bld,hkd->bhlk", x, self.gate)))
        merged = heads * size * self.norm[:, None] * gate
        return self.projections.merge(merged.to(self.gate.dtype)).to(x.dtype)


class GatedAttention(nn.Module):
    """Base class for gated heads: masked positions enter as zeros; only projections are rounded.

    A backend implements `attend` in both of its forms.

    Args:
        shape: Sizes and biases.
        chunk: Tokens per chunk; affects results only by rounding.
        bidirectional: Whether a token also sees the tokens after it.

    Raises:
        ValueError: `chunk` is below 1.
    """

    pad_invariant = True
    memory_growth = 1

    def __init__(self, shape: AttentionShape, chunk: int, bidirectional: bool) -> None:
        super().__init__()
        at_least(1, chunk=chunk)
        self.chunk, self.bidirectional = chunk, bidirectional
        self.heads = GatedHeads(shape)

    def attend(self, x: Tensor, mask: Tensor | None, qkv: Qkv, plainly: bool) -> Tensor:
        """Return the outputs of the heads `(B, H, L, K)`, computed token by token if `plainly`."""
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend over the real positions of `x` `(B, L, D)`; `mask` `(B, L)` bool or None."""
        return self._run(x, mask, plainly=False)

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` token by token."""
        return self._run(x, mask, plainly=True)

    def _run(self, x: Tensor, mask: Tensor | None, plainly: bool) -> Tensor:
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        qkv = self.heads.split(x, mask)
        with without_autocast(x):
            heads = self.attend(x, mask, qkv, plainly)
        return self.heads.merge(heads, x)


def in_chunks(x: Tensor, chunk: int) -> Tensor:
    """Divide `x` `(B, H, L, ...)`, padded with zeros, into `(B, H, M, chunk, ...)`."""
    short = -x.shape[2] % chunk
    padded = F.pad(x, (0, 0) * (x.dim() - 3) + (0, short)) if short else x
    return padded.view(*x.shape[:2], -1, chunk, *x.shape[3:])
