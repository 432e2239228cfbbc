"""Nystromformer (Xiong et al. 2021, arXiv 2102.03902): softmax attention through landmarks.

    softmax(Q K') V ~ softmax(Q Kl') pinv(softmax(Ql Kl')) (softmax(Ql K') V)

(equation 13), where the landmarks Ql and Kl are the means of Q and K over segments of the sequence,
and the pseudo-inverse is computed by an iteration of matrix products (equation 14). A convolution
of the values along the length may be added to the result (figure 2).

The size of a segment is chosen so that it cuts `max_length` into as many segments as there are
landmarks. A trimmed sequence has fewer, so padding changes nothing. Arithmetic is in float32, or in
float64 for float64 inputs, even under autocast: the pseudo-inverse amplifies rounding.

Axes: B batch, H heads, N length, L landmarks, s tokens per segment, K head width, D model width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import AttentionShape, HeadProjections, masked_softmax
from models.options import at_least, odd
from models.precision import full_precision, unrounded, without_autocast


@dataclass(frozen=True, kw_only=True)
class Segments:
    """How a sequence is cut, with one landmark for each segment.

    Args:
        length: Tokens of the longest sequence.
        number: Number of segments that it is cut into.
        exact_count: Whether to cut it into exactly that many, whose sizes differ by at most one.
            Otherwise all segments have one size, the last may be shorter, and there may be fewer.
        over_padding: Whether a landmark is the sum of its real tokens divided by the size of its
            segment, and one without real tokens is a landmark like any other, as in the published
            code.
    """

    length: int
    number: int
    exact_count: bool = False
    over_padding: bool = False

    @property
    def size(self) -> int:
        """Tokens of the largest segment."""
        return -(-self.length // self.number)

    def within(self, length: int) -> list[range]:
        """Return the tokens of each segment that begins within the first `length` tokens."""
        if self.exact_count:
            cuts = [-(-i * self.length // self.number) for i in range(self.number + 1)]
        else:
            cuts = [*range(0, self.length, self.size), self.length]
        pairs = zip(cuts, cuts[1:], strict=False)
        return [range(start, min(end, length)) for start, end in pairs if start < length]

    def bounds(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the starts and ends of the segments of `within`, `(L,)` int64, on the device."""
        number = torch.arange(len(self.within(length)) + 1, device=device)
        if self.exact_count:
            cuts = (number * self.length + self.number - 1) // self.number
        else:
            cuts = number * self.size
        cuts = cuts.clamp(max=length)
        return cuts[:-1], cuts[1:]


def nystrom_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, segments: Segments, iterations: int
) -> Tensor:
    """Approximate the `(N, N)` attention matrix and apply it: the plain form.

    Landmarks are computed one segment at a time. Unless `over_padding`, segments without a real
    token have none, so that sequences differ in their number of landmarks.
    """
    length = q.shape[-2]
    outputs = []
    for b in range(len(q)):
        real = torch.ones_like(q[b, 0, :, 0]).bool() if mask is None else mask[b]
        if not real.any():
            outputs.append(torch.zeros_like(v[b]))
            continue
        means = torch.zeros(len(segments.within(length)), length).to(q)
        for row, some in enumerate(segments.within(length)):
            tokens = real[some.start : some.stop]
            count = len(some) if segments.over_padding else tokens.sum().clamp(min=1)
            means[row, some.start : some.stop] = tokens.to(q) / count
        if not segments.over_padding:
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

    The iteration starts from the transpose divided by the largest column sum of each matrix. The
    published code takes the largest of the whole batch; here, no sequence depends on another.
    """
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    largest = matrix.sum(-2).amax(-1)[..., None, None]
    inverse = matrix.mT / largest.masked_fill(largest == 0, 1.0)
    for _ in range(iterations):
        product = matrix @ inverse
        inverse = 0.25 * inverse @ (13 * eye - product @ (15 * eye - product @ (7 * eye - product)))
    return inverse


def _cut(x: Tensor, segments: Segments) -> Tensor:
    """Cut `(B, H, N, C)` into segments `(B, H, L, s, C)`, padding shorter ones with zeros."""
    batch, heads, length, width = x.shape
    fill = -length % segments.size
    if not segments.exact_count:
        return F.pad(x, (0, 0, 0, fill)).reshape(batch, heads, -1, segments.size, width)
    # One more row, of zeros, with which shorter segments are filled up.
    starts, ends = segments.bounds(length, x.device)
    index = starts[:, None] + torch.arange(segments.size, device=x.device)  # (L, s)
    index = index.where(index < ends[:, None], length)
    rows = F.pad(x, (0, 0, 0, 1)).index_select(2, index.flatten())
    return rows.view(batch, heads, *index.shape, width)


def _segment_means(x: Tensor, real: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Average `x` `(B, H, N, K)` over the real tokens of each segment; 0 if there are none.

    Returns:
        The means `(B, H, L, K)`, and which segments count as landmarks `(B or 1, L)`.
    """
    length = x.shape[-2]
    real = _cut(real[:, None, :, None], segments)[:, 0, ..., 0]  # (B or 1, L, s)
    total = _cut(x, segments).masked_fill(~real[:, None, ..., None], 0.0).sum(-2)
    count = real.sum(-1)
    if segments.over_padding:
        starts, ends = segments.bounds(length, x.device)
        count = (ends - starts).expand_as(count)
    return total / count.clamp(min=1)[:, None, :, None], count > 0


def nystrom_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, segments: Segments, iterations: int = 6
) -> Tensor:
    """Approximate softmax attention through the means of segments.

    Args:
        q: Queries `(B, H, N, K)`.
        k: Keys `(B, H, N, K)`.
        v: Values `(B, H, N, K)`.
        mask: `(B, N)` bool, True for real tokens; None when all are. The output is 0 for a
            sequence without real tokens.
        segments: The segments whose means are the landmarks.
        iterations: Steps of the pseudo-inverse.

    Returns:
        `(B, H, N, K)`, equation 13 of arXiv 2102.03902.
    """
    real = torch.ones(1, q.shape[-2], dtype=torch.bool, device=q.device) if mask is None else mask
    q = q / q.shape[-1] ** 0.5
    q_means, alive = _segment_means(q, real, segments)
    k_means, _ = _segment_means(k, real, segments)
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
        landmarks: Number of segments of a sequence of `max_length`, all of one size. If their
            number does not divide `max_length`, there may be fewer: with 64 landmarks and 65 tokens
            there are 33 segments, of two tokens or one.
        iterations: Steps of the pseudo-inverse.
        conv: Odd number of taps of the convolution of the values, with one filter per head; None
            for no convolution.
        exact_count: Cut `max_length` into exactly that many segments, whose sizes differ by at most
            one. With at least as many landmarks as tokens, attend by softmax, as published.
        landmarks_over_padding: Average padding into the landmarks as zeros, and let segments that
            are all padding be landmarks, as in the published code.

    Raises:
        ValueError: An option is out of range.
    """

    memory_growth = 1

    @property
    def pad_invariant(self) -> bool:
        """Whether the amount of padding changes nothing: not so if landmarks average it in."""
        return self.exact or not self.segments.over_padding

    def __init__(
        self,
        shape: AttentionShape,
        *,
        landmarks: int = 64,
        iterations: int = 6,
        conv: int | None = 35,
        exact_count: bool = False,
        landmarks_over_padding: bool = False,
    ) -> None:
        super().__init__()
        at_least(1, landmarks=landmarks)
        at_least(0, iterations=iterations)
        if conv is not None:
            odd(conv=conv)
        self.projections = HeadProjections(shape)
        self.exact = exact_count and landmarks >= shape.max_length
        self.segments = Segments(
            length=shape.max_length,
            number=min(landmarks, shape.max_length),
            exact_count=exact_count,
            over_padding=landmarks_over_padding,
        )
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
            if self.exact:
                keys = None if mask is None else mask[:, None, None, :]
                heads = F.scaled_dot_product_attention(q, k, v, keys)
            else:
                heads = nystrom_attention(q, k, v, mask, self.segments, self.iterations)
            heads = self._add_conv(heads, v, mask)
        return self.projections.merge(heads)

    def _add_conv(self, heads: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if self.conv is None:
            return heads
        values = v if mask is None else v.masked_fill(~mask[:, None, :, None], 0.0)
        with unrounded(values):
            added: Tensor = heads + self.conv(values)
        return added

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` in its plain form, in the precision of `x`."""
        q, k, v = self.projections.split(x, mask)
        if self.exact:
            real = torch.ones_like(x[..., 0], dtype=torch.bool) if mask is None else mask
            heads = masked_softmax(q @ k.mT / q.shape[-1] ** 0.5, real[:, None, None]) @ v
        else:
            heads = nystrom_attention_reference(q, k, v, mask, self.segments, self.iterations)
        return self.projections.merge(self._add_conv(heads, v, mask))
