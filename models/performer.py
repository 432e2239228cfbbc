"""Performer: attention by random features (Choromanski et al. 2021, arXiv 2009.14794).

FAVOR+ writes the softmax kernel as an expectation over Gaussian w (lemma 1):

    exp(q . k) = E[exp(w . q - |q|^2 / 2) exp(w . k - |k|^2 / 2)]

and takes its mean over M directions, which are orthogonal in groups of K (section 2.4), so that
keys and values are summed only once. The code that the Long Range Arena and WavSpA released as
Performer has no random features (the "generalised attention" of section 2.2): phi(x) = relu(x) +
0.001.

Axes: B batch, H heads, N length, M features, K head width, D model width.
"""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from models.feature_attention import feature_attention, feature_attention_reference
from models.heads import AttentionShape, HeadProjections
from models.options import above, at_least, check_seed, one_of
from models.precision import full_precision, without_autocast

Features = Literal["favor", "relu", "relu_plain"]
# Added to the features of the Long Range Arena and WavSpA.
RELU_EPSILON = 1e-3


def orthogonal_features(num_features: int, width: int, seed: int) -> Tensor:
    """Draw Gaussian directions `(M, K)` that are orthogonal within each group of K rows.

    The lengths are those of independent Gaussian vectors, so that each row alone is such a vector.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = -(-num_features // width)

    # The default device, meta for instance, must not affect the draws.
    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")

    basis, upper = torch.linalg.qr(draw(groups, width, width))
    # Without these signs the basis would not be uniform.
    basis = basis * upper.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    directions = basis.mT.reshape(-1, width)[:num_features]
    features: Tensor = directions * draw(num_features, width).norm(dim=-1, keepdim=True)
    return features.to(torch.get_default_dtype())


def favor_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    directions: Tensor,
    epsilon: float = 0.0,
) -> Tensor:
    """Attend with the `(N, N)` weights materialised and no stabiliser: the plain form.

    `epsilon` is relative to the largest feature of a query, or to that of all keys.
    """
    root = q.shape[-1] ** 0.25
    q, k = q / root, k / root
    of_queries = (q @ directions.T - q.square().sum(-1, keepdim=True) / 2).exp()
    of_keys = (k @ directions.T - k.square().sum(-1, keepdim=True) / 2).exp()
    if epsilon:
        real = of_keys if mask is None else of_keys.masked_fill(~mask[:, None, :, None], 0.0)
        of_keys = of_keys + epsilon * real.amax((-1, -2), keepdim=True)
        of_queries = of_queries + epsilon * of_queries.amax(-1, keepdim=True)
    weights = of_queries @ of_keys.mT / len(directions)  # (B, H, N, N), about exp(q . k)
    if mask is not None:
        weights = weights.masked_fill(~mask[:, None, None, :], 0.0)
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1.0) @ v


def favor_features(
    q: Tensor, k: Tensor, mask: Tensor | None, directions: Tensor, epsilon: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Compute the features of queries and keys `(B, H, N, K)`, each `(B, H, N, M)`.

    Both are scaled so that no exponential overflows and no normaliser is below 1. Each feature of
    the keys is divided by its maximum over the keys, by which the same feature of the queries is
    multiplied; the features of a query are then divided by their maximum. The scales cancel in the
    attention, so they need no gradient and no epsilon.

    With an epsilon, all keys share one scale, as in published code, which adds the epsilon to
    features relative to the largest one of a query, or of all keys. These scales do have a
    gradient.
    """
    root = q.shape[-1] ** 0.25
    q, k = q / root, k / root
    of_keys = k @ directions.T - k.square().sum(-1, keepdim=True) / 2
    floor = torch.finfo(of_keys.dtype).min
    if mask is not None:
        of_keys = of_keys.masked_fill(~mask[:, None, :, None], floor)
    # (B, H, 1, M), or (B, H, 1, 1) with an epsilon.
    top = of_keys.amax((-1, -2), True) if epsilon else of_keys.detach().amax(-2, True)
    top = top.masked_fill(top == floor, 0.0)
    # The factor exp(-|q|^2 / 2) is one of those that cancel.
    of_queries = q @ directions.T + top
    largest = of_queries if epsilon else of_queries.detach()
    of_queries = of_queries - largest.amax(-1, keepdim=True)
    of_queries, of_keys = of_queries.exp(), (of_keys - top).exp()
    return (of_queries + epsilon, of_keys + epsilon) if epsilon else (of_queries, of_keys)


def relu_features(x: Tensor, epsilon: float = RELU_EPSILON) -> Tensor:
    """Compute phi(x) = relu(x) + epsilon, as in the Long Range Arena and WavSpA."""
    return x.relu() + epsilon


class Redraws(nn.Module):
    """Count calls, and redraw the directions every `every` calls; a resumed run draws the same.

    Args:
        every: Number of calls from one draw to the next.
        seed: Seed of the first directions; the seed of draw t is derived from it and t.
    """

    def __init__(self, every: int, seed: int) -> None:
        super().__init__()
        self.every, self.seed, self.calls = every, seed, 0

    def forward(self, directions: Tensor) -> Tensor:
        """Return the directions `(M, K)` of the next call, given those of the previous one."""
        if torch.compiler.is_compiling():
            # Outside the graph, which would otherwise be recompiled for every number of calls. Not
            # as a decorator, which would import the compiler: a second for every process.
            directions = torch.compiler.disable(self._next)(directions)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return directions
        return self._next(directions)

    def _next(self, directions: Tensor) -> Tensor:
        draw, step = divmod(self.calls, self.every)
        self.calls += 1
        if step or not draw:
            return directions
        seed = int(np.random.SeedSequence([self.seed, draw]).generate_state(1, np.uint64)[0]) >> 1
        num_features, width = directions.shape
        return orthogonal_features(num_features, width, seed).to(directions)

    def get_extra_state(self) -> Tensor:
        """Return the number of calls, for checkpoints."""
        # Not a buffer, because reading one on a GPU would wait for it at every call.
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        """Continue counting from a checkpoint's number of calls."""
        self.calls = int(state)


class Performer(nn.Module):
    """Multi-head attention by random features.

    The weights are never formed, so there are none to drop: `shape.dropout` has no effect. FAVOR+
    features are in float32, or in float64 for float64 inputs, even under autocast.

    Args:
        shape: Sizes and biases.
        features: `favor`; `relu` as in WavSpA's released code, with no random features and a
            LayerNorm over the head width of queries, keys and values, each shared by all heads; or
            `relu_plain` as in the Long Range Arena's released code, without the LayerNorms.
        num_features: Number of random directions M, for `favor` only.
        seed: Seed of these directions. All heads and layers have the same ones.
        redraw: Number of calls in training from one draw of the directions to the next; None keeps
            the first ones. Evaluation uses those of the last call in training.
        epsilon: Added to every feature. None means 0.001, or no epsilon with `favor`, for which
            Long Range Arena's released code has 1e-6.

    Raises:
        ValueError: An option is out of range.
    """

    pad_invariant = True
    memory_growth = 1

    @property
    def thread_safe(self) -> bool:
        """Whether threads may call it at once: not so if it counts calls to redraw directions."""
        return self.redraws is None

    def __init__(
        self,
        shape: AttentionShape,
        *,
        features: Features = "favor",
        num_features: int = 256,
        seed: int = 0,
        redraw: int | None = None,
        epsilon: float | None = None,
    ) -> None:
        super().__init__()
        one_of(get_args(Features), features=features)
        at_least(1, num_features=num_features)
        check_seed(seed)
        if redraw is not None:
            at_least(1, redraw=redraw)
        if epsilon is not None:
            above(0, epsilon=epsilon)
        self.projections = HeadProjections(shape)
        self.features: Features = features
        default = 0.0 if features == "favor" else RELU_EPSILON
        self.epsilon = default if epsilon is None else epsilon
        self.directions: Tensor
        self.redraws: Redraws | None = None
        if features == "favor":
            directions = orthogonal_features(num_features, shape.head_dim, seed)
            self.register_buffer("directions", directions)
            if redraw is not None:
                self.redraws = Redraws(redraw, seed)
        elif features == "relu":
            norms = (nn.LayerNorm(shape.head_dim, shape.norm_epsilon) for _ in range(3))
            self.norms = nn.ModuleList(norms)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend over the real positions of `x` `(B, N, D)`; `mask` `(B, N)` bool or None."""
        q, k, v = self.projections.split(x, mask)
        if self.features == "favor":
            if self.redraws is not None and self.training:
                self.directions = self.redraws(self.directions)
            with without_autocast(x):
                q, k = full_precision(q), full_precision(k)
                q, k = favor_features(q, k, mask, self.directions, self.epsilon)
        else:
            q, k, v = self._relu_features(q, k, v)
        return self.projections.merge(feature_attention(q, k, v, mask))

    def _relu_features(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.features == "relu":
            q, k, v = (norm(t) for norm, t in zip(self.norms, (q, k, v), strict=True))
        return relu_features(q, self.epsilon), relu_features(k, self.epsilon), v

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` in its plain form, in the precision of `x`."""
        q, k, v = self.projections.split(x, mask)
        if self.features == "favor":
            heads = favor_attention_reference(q, k, v, mask, self.directions, self.epsilon)
        else:
            heads = feature_attention_reference(*self._relu_features(q, k, v), mask)
        return self.projections.merge(heads)
