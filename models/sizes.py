"""Sizes and choices of the encoder, checked without torch so that a command line responds fast."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

POOLING = ("cls", "first", "mean", "mean_padded", "mean_all", "last")
POSITIONS = ("learned", "sinusoidal", "none")
INITIALISATIONS = ("torch", "flax", "lecun", "mega")
NORMS = ("layer", "batch", "scale")
MIXINGS = ("mlp", "glu", "half_glu1", "half_glu2")
INPUTS = ("tokens", "values")
PLACES = ("before", "after")
PAIR_FEATURES = ("concat", "nli")
GELU = {"exact": "none", "tanh": "tanh"}
ACTIVATIONS = ("gelu", "silu")
HEAD_ACTIVATIONS = ("relu", "gelu")
DROPOUTS = (
    *("dropout", "attention_dropout", "input_dropout"),
    *("output_dropout", "hidden_dropout", "classifier_dropout"),
)
CHOICES: dict[str, Iterable[str]] = {
    "positions": POSITIONS,
    "pooling": POOLING,
    "pair_features": PAIR_FEATURES,
    "gelu": GELU,
    "initialisation": INITIALISATIONS,
    "inputs": INPUTS,
    "norm": NORMS,
    "norm_place": PLACES,
    "channel_mixing": MIXINGS,
    "activation": ACTIVATIONS,
    "classifier_activation": HEAD_ACTIVATIONS,
}


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
        embedding_std: Initial standard deviation of the token table.
        position_std: Initial standard deviation of learned positions.
        positions: `learned`, `sinusoidal` or `none`.
        pooling: `cls` (a learned token in front), `first` (the state at the first token), `mean`
            over real tokens, `mean_padded` (the sum over real tokens divided by
            `max_length`), `mean_all` (over every position, including padding), or `last` (the
            state at the last real token).
        pair_features: Features by which a pair of encodings is classified: `concat` [a, b], or
            `nli` [a, b, a b, a - b].
        zero_is_padding: Whether batches mask tokens with id 0 wherever they are, as published code
            does with black pixels.
        mlp_norm: Whether a block's MLP has a norm. WavSpA's blocks have a dropout there instead,
            and none after the attention.
        clear_padding: Whether padding is set to zero at the input of every block, as in WavSpA's
            blocks.
        norm_epsilon: Epsilon of every norm.
        gelu: `exact`, or its `tanh` approximation.
        initialisation: Initialisation of linear layers. `torch`: torch's default; `flax`, as in the
            published flax code: attention and MLP Xavier-uniform with biases of standard deviation
            1e-6, classifier LeCun-normal with biases 0; `lecun`: all LeCun-normal with biases 0
            (S5, LRU); `mega`: MLP normal with standard deviation .02, classifier Xavier-uniform,
            biases 0, and a vector for grey values with standard deviation 1 and biases of .1.
        inputs: `tokens`, or `values`: a grey value, normalised, times a learned vector.
        value_mean: Mean of grey values from 0 to 1, which `values` subtracts.
        value_std: Standard deviation of grey values from 0 to 1, by which `values` divides.
        norm: `layer`, `batch` over batch and length, or `scale`.
        norm_momentum: Weight of a batch in the running statistics of `batch`.
        norm_padding: Whether the statistics of `batch` include padding, as in released code; masked
            input then changes real positions in training.
        norm_place: `before` a layer, inside its residual path, or `after` the residual sum.
        attention_norm: Whether the attention has a norm; Mega has its own norm inside.
        last_norm: Whether a norm follows the last block.
        channel_mixing: `mlp`, or instead of it a gate on the attention's output and residual:
            `glu`, `half_glu1` or `half_glu2`, see `models.gated_output`.
        activation: Activation of the MLP: `gelu` or `silu`.
        input_dropout: Dropout of the embedded tokens; None uses `dropout`.
        output_dropout: Dropout of the attention's output, before an MLP with a norm; None uses
            `dropout`. Other blocks have no such dropout.
        hidden_dropout: Dropout of the MLP's hidden activations, if there is an MLP; None uses
            `dropout`.
        tied_dropout: Whether blocks drop channels of a whole sequence instead of single values.
        classifier_activation: Activation of the classifier: `relu` or `gelu`.
        classifier_dropout: Dropout before the classifier's activation, if it has hidden layers.
        classifier_bias: Whether the classifier's last layer has a bias.

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
    inputs: str = "tokens"
    value_mean: float = 0.5
    value_std: float = 0.5
    norm: str = "layer"
    norm_momentum: float = 0.1
    norm_padding: bool = False
    norm_place: str = "before"
    attention_norm: bool = True
    last_norm: bool = True
    channel_mixing: str = "mlp"
    activation: str = "gelu"
    input_dropout: float | None = None
    output_dropout: float | None = None
    hidden_dropout: float | None = None
    tied_dropout: bool = False
    classifier_activation: str = "relu"
    classifier_dropout: float = 0.0
    classifier_bias: bool = True

    def __post_init__(self) -> None:
        for key in ("layers", "dim", "heads", "head_dim", "mlp_dim", "max_length", "vocab_size"):
            if (value := getattr(self, key)) < 1:
                raise ValueError(f"model.{key}={value}: must be at least 1")
        if any(width < 1 for width in self.classifier_dims):
            raise ValueError(
                f"model.classifier_dims={self.classifier_dims}: every width must be at least 1"
            )
        for key in DROPOUTS:
            if (value := getattr(self, key)) is not None and not 0 <= value < 1:
                raise ValueError(f"model.{key}={value}: must be a probability in [0, 1)")
        for key in ("embedding_std", "position_std"):
            if not 0 <= (value := getattr(self, key)) < math.inf:
                raise ValueError(f"model.{key}={value}: must be a finite number, at least 0")
        if not 0 < self.norm_epsilon < 1:
            raise ValueError(f"model.norm_epsilon={self.norm_epsilon}: must be in (0, 1)")
        if not 0 < self.norm_momentum <= 1:
            raise ValueError(f"model.norm_momentum={self.norm_momentum}: must be in (0, 1]")
        if not -math.inf < self.value_mean < math.inf:
            raise ValueError(f"model.value_mean={self.value_mean}: must be a finite number")
        if not 0 < self.value_std < math.inf:
            raise ValueError(f"model.value_std={self.value_std}: must be a finite number above 0")
        for key, known in CHOICES.items():
            if (value := getattr(self, key)) not in known:
                raise ValueError(f"model.{key}={value}: must be one of {', '.join(known)}")
        if self.positions == "sinusoidal" and self.dim % 2:
            raise ValueError(f"model.dim={self.dim}: sinusoidal positions need an even width")

    @property
    def num_positions(self) -> int:
        """Rows of the position table: the classification token takes one more."""
        return self.max_length + (self.pooling == "cls")

    @property
    def drops(self) -> bool:
        """Whether there is any dropout."""
        return any(getattr(self, key) for key in DROPOUTS)
