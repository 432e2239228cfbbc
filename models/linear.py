"""Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236, equations 4 to 7).

The weight of a key is phi(q) . phi(k) with phi = elu + 1, so keys and values are summed once, into
a `(K, K)` matrix per head, and every query reads that sum: time and memory grow linearly with N.

Axes: B batch, H heads, N length, M features, K head width, D model width.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.feature_attention import feature_attention, feature_attention_reference
from models.heads import AttentionShape, HeadProjections
from models.options import one_of

FeatureMap = Literal["elu", "relu", "square"]


def elu_features(x: Tensor) -> Tensor:
    """Compute phi(x) = elu(x) + 1, equation 7 of arXiv 2006.16236."""
    return F.elu(x) + 1


FEATURE_MAPS: dict[FeatureMap, Callable[[Tensor], Tensor]] = {
    "elu": elu_features,
    "relu": torch.relu,
    "square": torch.square,
}


class Linear(nn.Module):
    """Multi-head linear attention.

    The weights are never formed, so there are none to drop: `shape.dropout` has no effect.

    Args:
        shape: Sizes and biases.
        feature_map: phi of queries and keys: `elu` (elu + 1, as published), `relu` or `square`.
        as_released: Whether padding is attended to like real tokens, as in the code of the Long
            Range Arena, which passes no mask on.

    Raises:
        ValueError: `feature_map` is none of these.
    """

    memory_growth = 1

    @property
    def pad_invariant(self) -> bool:
        """Whether the amount of padding changes nothing: not so if padding is attended to."""
        return not self.as_released

    def __init__(
        self,
        shape: AttentionShape,
        *,
        feature_map: FeatureMap = "elu",
        as_released: bool = False,
    ) -> None:
        super().__init__()
        one_of(get_args(FeatureMap), feature_map=feature_map)
        self.projections = HeadProjections(shape)
        self.feature_map: FeatureMap = feature_map
        self.as_released = as_released

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend over the real positions of `x` `(B, N, D)`; `mask` `(B, N)` bool or None."""
        return self.projections.merge(feature_attention(*self._features(x, mask)))

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` in its plain form."""
        return self.projections.merge(feature_attention_reference(*self._features(x, mask)))

    def _features(
        self, x: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        q, k, v = self.projections.split(x, mask)
        features = FEATURE_MAPS[self.feature_map]
        return features(q), features(k), v, None if self.as_released else mask
