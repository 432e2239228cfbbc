"""Performer: attention by random features (Choromanski et al. 2021, arXiv 2009.14794).

FAVOR+ writes the softmax kernel as an expectation over Gaussian w (lemma 1):

    exp(q . k) = E[exp(w . q - |q|^2 / 2) exp(w . k - |k|^2 / 2)]

and takes its mean over M directions, orthogonal in groups of K (section 2.4), so that keys and
values are summed once. What the Long Range Arena and WavSpA released as Performer has no random
features (the "generalised attention" of section 2.2): phi(x) = relu(x) + 0.001.

Axes: B batch, H heads, N length, M features, K head width, D model width.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from models.heads import AttentionShape, HeadProjections
from models.kernel import kernel_attention, kernel_attention_reference
from models.options import a_seed, at_least, one_of
from models.precision import full_precision, without_autocast

Features = Literal["favor", "relu", "relu_plain"]


def orthogonal_features(num_features: int, width: int, seed: int) -> Tensor:
    """Draw Gaussian directions `(M, K)` that are orthogonal within each group of K rows.

    The lengths are those of independent Gaussian vectors, so that each row by itself is one.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = -(-num_features // width)

    # A device that is the default, meta for instance, must not reach the generator's draws.
    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")

    basis, upper = torch.linalg.qr(draw(groups, width, width))
    # Without these signs the basis would not be uniform.
    basis = basis * upper.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    directions = basis.mT.reshape(-1, width)[:num_features]
    features: Tensor = directions * draw(num_features, width).norm(dim=-1, keepdim=True)
    return features.to(torch.get_default_dtype())


def favor_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, directions: Tensor
) -> Tensor:
    """Attend with the `(N, N)` weights materialised and no stabiliser: the plain form."""
    root = q.shape[-1] ** 0.25
    q, k = q / root, k / root
    of_queries = (q @ directions.T - q.square().sum(-1, keepdim=True) / 2).exp()
    of_keys = (k @ directions.T - k.square().sum(-1, keepdim=True) / 2).exp()
    weights = of_queries @ of_keys.mT / len(directions)  # (B, H, N, N), about exp(q . k)
    if mask is not None:
        weights = weights.masked_fill(~mask[:, None, None, :], 0.0)
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1.0) @ v


def favor_features(
    q: Tensor, k: Tensor, mask: Tensor | None, directions: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the features of queries and keys `(B, H, N, K)`, each `(B, H, N, M)`.

    Both are scaled so that no exponential overflows and no normaliser is below 1: a key's feature
    by that feature's largest over the keys, which the query's takes back, and a query's by its own
    largest. The scales cancel in the attention, hence they need no gradient, and no epsilon.
    """
    root = q.shape[-1] ** 0.25
    q, k = q / root, k / root
    of_keys = k @ directions.T - k.square().sum(-1, keepdim=True) / 2
    floor = torch.finfo(of_keys.dtype).min
    if mask is not None:
        of_keys = of_keys.masked_fill(~mask[:, None, :, None], floor)
    top = of_keys.detach().amax(-2, keepdim=True)  # (B, H, 1, M)
    top = top.masked_fill(top == floor, 0.0)
    # The factor exp(-|q|^2 / 2) is one of those that cancel.
    of_queries = q @ directions.T + top
    of_queries = of_queries - of_queries.detach().amax(-1, keepdim=True)
    return of_queries.exp(), (of_keys - top).exp()


def relu_features(x: Tensor) -> Tensor:
    """Compute phi(x) = relu(x) + 0.001, that of the Long Range Arena and WavSpA."""
    return x.relu() + 1e-3


class Performer(nn.Module):
    """Multi-head attention by random features.

    The weights are never formed, so there are none to drop: `shape.dropout` has no effect. FAVOR+
    features are float32, or float64 for float64 inputs, also under autocast.

    Args:
        shape: Sizes and biases.
        features: `favor`; `relu` as WavSpA's release has it: a LayerNorm over the head width of
            queries, keys and values, each one shared by the heads, and no random features; or
            `relu_plain` as the Long Range Arena's release has it: the same without the LayerNorms.
        num_features: Random directions M, of `favor` only. They are drawn once and kept.
        seed: Of those draws. All heads and layers have the same directions.

    Raises:
        ValueError: If `num_features` is below 1.
    """

    pad_invariant = True
    memory_growth = 1

    def __init__(
        self,
        shape: AttentionShape,
        *,
        features: Features = "favor",
        num_features: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        one_of(get_args(Features), features=features)
        at_least(1, num_features=num_features)
        a_seed(seed)
        self.projections = HeadProjections(shape)
        self.features: Features = features
        self.directions: Tensor
        if features == "favor":
            directions = orthogonal_features(num_features, shape.head_dim, seed)
            self.register_buffer("directions", directions)
        elif features == "relu":
            self.norms = nn.ModuleList(nn.LayerNorm(shape.head_dim) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend over the real positions of `x` `(B, N, D)`; `mask` `(B, N)` bool or None."""
        q, k, v = self.projections.split(x, mask)
        if self.features == "favor":
            with without_autocast(x):
                q, k = full_precision(q), full_precision(k)
                q, k = favor_features(q, k, mask, self.directions)
        else:
            q, k, v = self._relu_features(q, k, v)
        return self.projections.merge(kernel_attention(q, k, v, mask))

    def _relu_features(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.features == "relu":
            q, k, v = (norm(t) for norm, t in zip(self.norms, (q, k, v), strict=True))
        return relu_features(q), relu_features(k), v

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` by the plain form, in the precision of `x`."""
        q, k, v = self.projections.split(x, mask)
        if self.features == "favor":
            heads = favor_attention_reference(q, k, v, mask, self.directions)
        else:
            heads = kernel_attention_reference(*self._relu_features(q, k, v), mask)
        return self.projections.merge(heads)
