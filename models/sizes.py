"""Sizes and choices of the encoder, checked without torch so that a command line is quick."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

POOLING = ("cls", "first", "mean", "mean_padded", "mean_all")
POSITIONS = ("learned", "sinusoidal")
PAIR_FEATURES = ("concat", "nli")
GELU = {"exact": "none", "tanh": "tanh"}
INITIALISATIONS = ("torch", "flax")


@dataclass(kw_only=True)
class ModelConfig:
    """Sizes and choices of the encoder; lengths in tokens, widths in floats.

    Args:
        layers: Number of blocks.
        dim: Model width D.
        heads: Attention heads.
        head_dim: Width of one head.
        mlp_dim: Hidden width of a block's MLP.
        max_length: The padded length, and the number of positions.
        vocab_size: Rows of the token table.
        classifier_dims: Widths of the classifier's hidden layers.
        dropout: Probability of dropping an activation.
        attention_dropout: Probability of dropping an attention weight.
        attention_bias: Whether the attention projections have biases.
        embedding_std: Standard deviation of the token table at the start.
        position_std: The same of learned positions.
        positions: `learned` or `sinusoidal`.
        pooling: `cls` (a learned token in front), `first` (the state at the first token), `mean`
            over real tokens, `mean_padded` (the sum over real tokens divided by
            `max_length`), or `mean_all` (over every position, padding too).
        pair_features: What a pair of encodings is classified by: `concat` [a, b], or `nli`
            [a, b, a b, a - b].
        zero_is_padding: Batches mask tokens of id 0 wherever they are, as published code does
            with black pixels.
        mlp_norm: Whether a LayerNorm comes before a block's MLP. WavSpA's blocks have a dropout
            there instead, and none after the attention.
        clear_padding: Set padding to zero at the input of every block, as WavSpA's blocks do.
        norm_epsilon: Epsilon of every LayerNorm.
        gelu: `exact`, or its `tanh` approximation.
        initialisation: Of linear layers: `torch`'s default, or that of the `flax` codes: attention
            and MLP Xavier-uniform with biases of standard deviation 1e-6, classifier LeCun-normal
            with biases 0.

    Raises:
        ValueError: A value is out of range; the message names the key.
    """

    layers: int
    dim: int
    heads: int
    head_dim: int
    mlp_dim: int
    max_length: int
    vocab_size: int
    classifier_dims: list[int] = field(default_factory=lambda: [128])
    dropout: float = 0.1
    attention_dropout: float = 0.1
    attention_bias: bool = True
    embedding_std: float = 0.02
    position_std: float = 0.02
    positions: str = "learned"
    pooling: str = "mean_padded"
    pair_features: str = "nli"
    zero_is_padding: bool = False
    mlp_norm: bool = True
    clear_padding: bool = False
    norm_epsilon: float = 1e-5
    gelu: str = "exact"
    initialisation: str = "torch"

    def __post_init__(self) -> None:
        for key in ("layers", "dim", "heads", "head_dim", "mlp_dim", "max_length", "vocab_size"):
            if (value := getattr(self, key)) < 1:
                raise ValueError(f"model.{key}={value}: must be at least 1")
        if any(width < 1 for width in self.classifier_dims):
            raise ValueError(f"model.classifier_dims={self.classifier_dims}: widths start at 1")
        for key in ("dropout", "attention_dropout"):
            if not 0 <= (value := getattr(self, key)) < 1:
                raise ValueError(f"model.{key}={value}: must be a probability in [0, 1)")
        for key in ("embedding_std", "position_std"):
            if not 0 <= (value := getattr(self, key)) < math.inf:
                raise ValueError(f"model.{key}={value}: must be a finite number, at least 0")
        if not 0 < self.norm_epsilon < 1:
            raise ValueError(f"model.norm_epsilon={self.norm_epsilon}: must be in (0, 1)")
        choices: dict[str, Iterable[str]] = {
            "positions": POSITIONS,
            "pooling": POOLING,
            "pair_features": PAIR_FEATURES,
            "gelu": GELU,
            "initialisation": INITIALISATIONS,
        }
        for key, known in choices.items():
            if (value := getattr(self, key)) not in known:
                raise ValueError(f"model.{key}={value}: must be one of {', '.join(known)}")
        if self.positions == "sinusoidal" and self.dim % 2:
            raise ValueError(f"model.dim={self.dim}: sinusoidal positions need an even width")

    @property
    def num_positions(self) -> int:
        """Rows of the position table: the classification token takes one more."""
        return self.max_length + (self.pooling == "cls")
