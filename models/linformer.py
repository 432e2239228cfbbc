"""Linformer (Wang et al. 2020, arXiv 2006.04768, equation 7): a fixed number of keys and values.

    softmax(Q (E K)' / sqrt(K)) (F V)

where E and F are learned `(rank, N)` matrices, one per head or shared by all heads, so that time
and memory grow linearly with N. Masked positions are zeroed before the projection, and a shorter
sequence uses the first columns of E, so padding changes nothing.

Axes: B batch, H heads, N length, R rank, K head width, D model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dropped_attention import dropped_attention, is_supported
from models.heads import AttentionShape, HeadAttention
from models.options import above, at_least


def linformer_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, to_keys: Tensor, to_values: Tensor
) -> Tensor:
    """Attend with the weights materialised, projecting token by token: the plain form."""
    batch, _, length, width = q.shape
    keys = q.new_zeros(batch, *to_keys.shape[:2], width)
    values = q.new_zeros(batch, *to_keys.shape[:2], width)
    for n in range(length):
        real = q.new_ones(batch, 1) if mask is None else mask[:, n, None].to(q)
        keys = keys + real[..., None, None] * to_keys[:, :, n, None] * k[:, :, None, n]
        values = values + real[..., None, None] * to_values[:, :, n, None] * v[:, :, None, n]
    weights: Tensor = (q @ keys.mT / width**0.5).softmax(-1)  # (B, H, N, R)
    return weights @ values


def linformer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    to_keys: Tensor,
    to_values: Tensor,
    dropout: float = 0.0,
) -> Tensor:
    """Attend to learned mixtures of the keys and values.

    Args:
        q: Queries `(B, H, N, K)`.
        k: Keys `(B, H, N, K)`.
        v: Values `(B, H, N, K)`.
        mask: `(B, N)` bool, True for real tokens; None when all are. The output is 0 for a
            sequence without real tokens.
        to_keys: E `(H, R, n)`, or `(1, R, n)` shared by all heads, with n at least N; the first N
            columns are used.
        to_values: F, of the same shape.
        dropout: Probability of dropping an attention weight.

    Returns:
        `(B, H, N, K)`, equation 7 of arXiv 2006.04768.
    """
    length = q.shape[-2]
    assert length <= to_keys.shape[-1], f"{length} tokens, built for at most {to_keys.shape[-1]}"
    if mask is not None:
        padding = ~mask[:, None, :, None]
        k, v = k.masked_fill(padding, 0.0), v.masked_fill(padding, 0.0)
    k = to_keys[..., :length] @ k  # (B, H, R, K)
    v = to_values[..., :length] @ v
    if is_supported(q, dropout):
        return dropped_attention(q, k, v, None, dropout)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)


class Linformer(HeadAttention):
    """Multi-head Linformer attention.

    Args:
        shape: Sizes, attention dropout and biases; `shape.max_length` is the width of E.
        rank: Number of keys and values after the projection.
        shared: Whether keys and values share one projection.
        per_head: Whether each head has its own projection; the Long Range Arena and WavSpA have
            one for all heads.
        share_layers: Whether all layers use the projections of the first one, as in Nystromformer's
            and MRA's code.
        spread: Initial standard deviation of the projections along the length: 0.02 as in
            Nystromformer's code; None for 1 / sqrt(rank) as in MRA's.

    Raises:
        ValueError: `rank` is below 1, or `spread` is not above 0.
    """

    pad_invariant = True
    memory_growth = 1

    def __init__(
        self,
        shape: AttentionShape,
        *,
        rank: int = 256,
        shared: bool = True,
        per_head: bool = True,
        share_layers: bool = False,
        spread: float | None = 0.02,
    ) -> None:
        at_least(1, rank=rank)
        if spread is not None:
            above(0, spread=spread)
        super().__init__(shape)
        self.share_layers = share_layers
        std = rank**-0.5 if spread is None else spread
        heads = shape.heads if per_head else 1
        self.to_keys = nn.Parameter(torch.empty(heads, rank, shape.max_length))
        nn.init.normal_(self.to_keys, std=std)
        self.to_values: nn.Parameter | None = None
        if not shared:
            self.to_values = nn.Parameter(torch.empty_like(self.to_keys))
            nn.init.normal_(self.to_values, std=std)

    def share_with(self, first: nn.Module) -> None:
        """Use the first layer's projections along the length, if layers share them."""
        if self.share_layers:
            assert isinstance(first, Linformer)
            self.to_keys, self.to_values = first.to_keys, first.to_values

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
    ) -> Tensor:
        """Attend to learned mixtures of the keys and values."""
        return linformer_attention(q, k, v, mask, *self._mixtures(), dropout)

    def attend_reference(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Compute `attend` in its plain form, without dropout."""
        return linformer_attention_reference(q, k, v, mask, *self._mixtures())

    def _mixtures(self) -> tuple[Tensor, Tensor]:
        return self.to_keys, self.to_keys if self.to_values is None else self.to_values
