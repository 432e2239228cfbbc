"""What all backends with heads share: the shape, and the projections to queries, keys and values.

Axes: B batch, N length, D model width, H heads, K head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.options import at_least

# The norm from which a masked token is cleared.
HUGE = 1e6


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """The sizes a backend is built for.

    Args:
        dim: Model width D.
        heads: Number of heads H.
        head_dim: Width K of one head; H K may differ from D.
        max_length: The protocol's padded length; no sequence is longer.
        dropout: Probability of dropping an attention weight, in [0, 1).
        bias: Whether the q, k, v and output projections have biases.
        norm_epsilon: Epsilon of norms inside the backend, the same as in the model's own.
        norm_momentum: Weight of a batch in the running statistics of its batch norms.
        norm_padding: Whether these statistics include padding.

    Raises:
        ValueError: A size is below 1, or `dropout` is not in [0, 1).
    """

    dim: int
    heads: int
    head_dim: int
    max_length: int
    dropout: float = 0.0
    bias: bool = True
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.1
    norm_padding: bool = False

    def __post_init__(self) -> None:
        sizes = ("dim", "heads", "head_dim", "max_length")
        at_least(1, **{key: getattr(self, key) for key in sizes})
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must be a probability in [0, 1)")


class HeadProjections(nn.Module):
    """Project a sequence to queries, keys and values per head, and the heads' outputs back.

    The three input projections are one matrix product; their weights are the `num_inputs` blocks
    of rows of `qkv.weight`.

    Args:
        shape: Sizes and biases.
        shared_qk: Whether queries and keys share a projection, so that three blocks become two.
    """

    def __init__(self, shape: AttentionShape, *, shared_qk: bool = False) -> None:
        super().__init__()
        self.heads, self.head_dim = shape.heads, shape.head_dim
        self.num_inputs = 2 if shared_qk else 3
        inner = shape.heads * shape.head_dim
        self.qkv = nn.Linear(shape.dim, self.num_inputs * inner, bias=shape.bias)
        self.out = nn.Linear(inner, shape.dim, bias=shape.bias)

    def split(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Project a sequence to queries, keys and values.

        Args:
            x: `(B, N, D)`.
            mask: `(B, N)` bool, True for real tokens; other tokens become 0 if they are huge or not
                finite.

        Returns:
            q, k and v, each `(B, H, N, K)` (a view, not contiguous).
        """
        x = x if mask is None else small_padding(x, mask)
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, self.num_inputs, self.heads, self.head_dim)
        q, *k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k[0] if k else q, v

    def merge(self, heads: Tensor) -> Tensor:
        """Join `heads` `(B, H, N, K)` and project them to `(B, N, D)`."""
        merged: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return merged


class HeadAttention(nn.Module):
    """Attention, with dropout of its weights, that depends on queries, keys, values and mask alone.

    A backend implements this function in two forms, `attend` and `attend_reference`.

    Args:
        shape: Sizes, attention dropout and biases.
    """

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.projections = HeadProjections(shape)
        self.dropout = shape.dropout

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
    ) -> Tensor:
        """Attend from q to k and v, each `(B, H, N, K)`; `mask` `(B, N)` bool or None."""
        raise NotImplementedError

    def attend_reference(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Compute `attend` in its plain form, without dropout."""
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend over the real positions of `x` `(B, N, D)`; `mask` `(B, N)` bool or None."""
        dropout = self.dropout if self.training else 0.0
        heads = self.attend(*self.projections.split(x, mask), mask, dropout)
        return self.projections.merge(heads)

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` in its plain form, without dropout."""
        return self.projections.merge(self.attend_reference(*self.projections.split(x, mask), mask))


def share(backend: nn.Module, first: nn.Module) -> None:
    """Let the backend of a later layer share with that of the first layer, if it shares anything.

    Args:
        backend: Backend of a later layer. One that shares has a method `share_with(first)`.
        first: The corresponding backend of the first layer.
    """
    take = getattr(backend, "share_with", None)
    if take is not None:
        take(first)


def small_padding(x: Tensor, mask: Tensor) -> Tensor:
    """Set huge tokens of `x` `(B, N, D)` and those with NaN to 0 where `mask` `(B, N)` is False.

    A weight of 0 times NaN is NaN, both in sums over keys and in the gradients of projections, and
    the fused gradient of softmax attention becomes NaN for logits beyond some 1e17. Other padding
    stays, so no result changes. Nothing here waits for the device.
    """
    # One pass without a copy; comparisons with NaN are false.
    size = torch.linalg.vector_norm(x.detach(), dim=-1)
    return x.masked_fill((~(mask | (size < HUGE)))[..., None], 0.0)


def masked_softmax(logits: Tensor, allowed: Tensor) -> Tensor:
    """Take the softmax of the `allowed` logits over the last axis; 0 elsewhere or without any."""
    weights = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min).softmax(-1)
    return weights.masked_fill(~allowed, 0.0)
