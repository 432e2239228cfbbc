"""Nystromformer (Xiong et al. 2021, arXiv 2102.03902): softmax attention through landmarks.

    softmax(Q K') V ~ softmax(Q Kl') pinv(softmax(Ql Kl')) (softmax(Ql K') V)

(equation 13), with the landmarks Ql and Kl the means of Q and K over segments of the sequence, and
the pseudo-inverse by an iteration of matrix products (equation 14). A convolution of the values
along the length may be added to that (figure 2).

Segments have the size that cuts `max_length` in as many as there are landmarks. A trimmed sequence
has fewer, so padding changes nothing. Arithmetic is float32, or float64 for float64 inputs, also
under autocast: the pseudo-inverse amplifies rounding.

Axes: B batch, H heads, N length, L landmarks, s tokens a segment, K head width, D model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import AttentionShape, HeadProjections, masked_softmax
from models.options import at_least, odd
from models.precision import full_precision, without_autocast


def nystrom_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, segment: int, iterations: int
) -> Tensor:
    """Approximate the `(N, N)` attention matrix and apply it: the plain form.

    Landmarks are taken one segment at a time, and only those with a real token, so that a
    sequence is as long as it has such segments.
    """
    length = q.shape[-2]
    outputs = []
    for b in range(len(q)):
        real = torch.ones_like(q[b, 0, :, 0]).bool() if mask is None else mask[b]
        members = [real[start : start + segment] for start in range(0, length, segment)]
        means = torch.zeros(len(members), length).to(q)
        for row, tokens in enumerate(members):
            start = row * segment
            means[row, start : start + segment] = tokens.to(q) / tokens.sum().clamp(min=1)
        means = means[means.sum(-1) > 0]
        scaled = q[b] / q.shape[-1] ** 0.5
        from_queries = (scaled @ (means @ k[b]).mT).softmax(-1)  # (H, N, L)
        between = (means @ scaled @ (means @ k[b]).mT).softmax(-1)
        to_keys = (means @ scaled @ k[b].mT)[..., real].softmax(-1)
        weights = from_queries @ pseudo_inverse(between, iterations) @ to_keys
        outputs.append(weights @ v[b][..., real, :])
    return torch.stack(outputs)


def pseudo_inverse(matrix: Tensor, iterations: int) -> Tensor:
    """Approximate the inverse of `matrix` `(..., L, L)`, whose rows sum to 1, by equation 14.

    The iteration starts from the transpose over the largest column sum of each matrix, where the
    published code takes the largest of the whole batch: one sequence depends on no other.
    """
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    largest = matrix.sum(-2).amax(-1)[..., None, None]
    inverse = matrix.mT / largest.masked_fill(largest == 0, 1.0)
    for _ in range(iterations):
        product = matrix @ inverse
        inverse = 0.25 * inverse @ (13 * eye - product @ (15 * eye - product @ (7 * eye - product)))
    return inverse


def _segment_means(x: Tensor, real: Tensor, segment: int) -> tuple[Tensor, Tensor]:
    """Average `x` `(B, H, N, K)` over the real tokens of each segment; 0 where there is none.

    Returns:
        The means `(B, H, L, K)`, and which segments have a real token `(B or 1, L)`.
    """
    batch, heads, length, width = x.shape
    fill = -length % segment
    real = F.pad(real, (0, fill)).view(len(real), -1, segment)  # (B, L, s)
    count = real.sum(-1)
    x = F.pad(x, (0, 0, 0, fill)).reshape(batch, heads, -1, segment, width)
    total = x.masked_fill(~real[:, None, ..., None], 0.0).sum(-2)
    return total / count.clamp(min=1)[:, None, :, None], count > 0


def nystrom_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, segment: int, iterations: int = 6
) -> Tensor:
    """Approximate softmax attention through the means of segments.

    Args:
        q: Queries `(B, H, N, K)`.
        k: Keys `(B, H, N, K)`.
        v: Values `(B, H, N, K)`.
        mask: `(B, N)` bool, True for real tokens; None when all are. The output is 0 for a
            sequence without any.
        segment: Tokens a landmark; the last segment may be shorter.
        iterations: Steps of the pseudo-inverse.

    Returns:
        `(B, H, N, K)`, equation 13 of arXiv 2102.03902.
    """
    real = torch.ones(1, q.shape[-2], dtype=torch.bool, device=q.device) if mask is None else mask
    q = q / q.shape[-1] ** 0.5
    q_means, alive = _segment_means(q, real, segment)
    k_means, _ = _segment_means(k, real, segment)
    landmarks = alive[:, None, None]
    from_queries = masked_softmax(q @ k_means.mT, landmarks)  # (B, H, N, L)
    between = masked_softmax(q_means @ k_means.mT, landmarks)  # (B, H, L, L)
    # With their rows and columns zero, landmarks of padding stay zero through the inverse.
    between = between.masked_fill(~alive[:, None, :, None], 0.0)
    to_keys = masked_softmax(q_means @ k.mT, real[:, None, None])  # (B, H, L, N)
    return from_queries @ (pseudo_inverse(between, iterations) @ (to_keys @ v))


class Nystromformer(nn.Module):
    """Multi-head Nystrom attention.

    The weights are never formed, so there are none to drop: `shape.dropout` has no effect.

    Args:
        shape: Sizes and biases; `shape.max_length` fixes the size of a segment.
        landmarks: Segments of a sequence of `max_length`.
        iterations: Steps of the pseudo-inverse.
        conv: Taps of the convolution of the values, one filter per head, odd; None for none.

    Raises:
        ValueError: If an option is out of range.
    """

    pad_invariant = True
    memory_growth = 1

    def __init__(
        self,
        shape: AttentionShape,
        *,
        landmarks: int = 64,
        iterations: int = 6,
        conv: int | None = 35,
    ) -> None:
        super().__init__()
        at_least(1, landmarks=landmarks)
        at_least(0, iterations=iterations)
        if conv is not None:
            odd(conv=conv)
        self.projections = HeadProjections(shape)
        self.segment = -(-shape.max_length // landmarks)
        self.iterations = iterations
        self.conv: nn.Conv2d | None = None
        if conv is not None:
            self.conv = nn.Conv2d(
                shape.heads,
                shape.heads,
                (conv, 1),
                padding=(conv // 2, 0),
                bias=False,
                groups=shape.heads,
            )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend over the real positions of `x` `(B, N, D)`; `mask` `(B, N)` bool or None."""
        q, k, v = self.projections.split(x, mask)
        with without_autocast(x):
            q, k, v = full_precision(q), full_precision(k), full_precision(v)
            heads = nystrom_attention(q, k, v, mask, self.segment, self.iterations)
            heads = self._add_conv(heads, v, mask)
        return self.projections.merge(heads)

    def _add_conv(self, heads: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if self.conv is None:
            return heads
        values = v if mask is None else v.masked_fill(~mask[:, None, :, None], 0.0)
        added: Tensor = heads + self.conv(values)
        return added

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` by the plain form, in the precision of `x`."""
        q, k, v = self.projections.split(x, mask)
        heads = nystrom_attention_reference(q, k, v, mask, self.segment, self.iterations)
        return self.projections.merge(self._add_conv(heads, v, mask))
