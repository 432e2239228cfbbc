"""The encoder every attention backend is compared in, and the two classifiers on top of it.

Pre-norm blocks as in the Nystromformer family (github.com/mlpen/Nystromformer, LRA code): tokens
and positions are embedded, each block adds attention(norm(x)) and mlp(norm(x)), a last norm
follows, positions are pooled and an MLP with ReLU classifies.

Axes: B batch, N length, D model width.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.dropout import Dropout
from models.heads import AttentionShape, HeadProjections
from models.precision import without_autocast

Attention = Callable[[AttentionShape], nn.Module]

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

    @property
    def attention_shape(self) -> AttentionShape:
        """The shape the attention backends of this model are built for."""
        return AttentionShape(
            dim=self.dim,
            heads=self.heads,
            head_dim=self.head_dim,
            max_length=self.num_positions,
            dropout=self.attention_dropout,
            bias=self.attention_bias,
        )


def sinusoidal_positions(length: int, dim: int) -> Tensor:
    """Return the `(length, dim)` table of arXiv 1706.03762, section 3.5; `dim` is even."""
    steps = torch.arange(0, dim, 2, dtype=torch.float64)
    angles = torch.arange(length)[:, None] * torch.exp(steps * (-math.log(10_000.0) / dim))
    table = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
    return table.to(torch.get_default_dtype())


class Embedding(nn.Module):
    """Tokens plus positions, with a learned classification token in front where pooling asks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.dim)
        nn.init.normal_(self.tokens.weight, std=config.embedding_std)
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.empty(config.num_positions, config.dim))
            nn.init.normal_(self.positions, std=config.position_std)
        else:
            table = sinusoidal_positions(config.num_positions, config.dim)
            self.register_buffer("positions", table, persistent=False)
        self.cls = nn.Parameter(torch.zeros(config.dim)) if config.pooling == "cls" else None
        self.dropout = Dropout(config.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed `tokens` `(B, N)` as `(B, N, D)`; `(B, N + 1, D)` with a classification token."""
        x = self.tokens(tokens)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), 1, -1), x], 1)
        embedded: Tensor = self.dropout(x + self.positions[: x.shape[1]])
        return embedded


def _float16_autocast(x: Tensor) -> bool:
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind):
        return False
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16


def pad_invariant(backend: nn.Module) -> bool:
    """Return whether the amount of padding leaves a backend's output at real positions as it is.

    Raises:
        ValueError: The backend does not say.
    """
    claim = getattr(backend, "pad_invariant", None)
    if not isinstance(claim, bool):
        raise ValueError(
            f"{type(backend).__name__} must say pad_invariant = True or False: whether more padding"
            " leaves its output at real positions as it is (False is always safe)"
        )
    return claim


class BackendError(ValueError):
    """A backend returned what a block cannot take; the message says what."""


def _checked(attended: object, x: Tensor, backend: nn.Module) -> Tensor:
    """Return what a backend made of `x`, if it is a tensor like `x`.

    A block adds it to its input, so another shape may fit by broadcasting, and train.

    Raises:
        BackendError: It is not; nothing here waits for a device.
    """
    name, wanted = type(backend).__name__, f"a tensor {tuple(x.shape)}"
    if not isinstance(attended, Tensor):
        raise BackendError(f"{name} returns a {type(attended).__name__}, not {wanted}")
    if attended.shape != x.shape:
        raise BackendError(f"{name} returns a tensor {tuple(attended.shape)}, not {wanted}")
    wider = torch.promote_types(attended.dtype, torch.promote_types(x.dtype, torch.float32))
    if not attended.is_floating_point() or wider.itemsize > max(x.dtype.itemsize, 4):
        kind = str(attended.dtype).removeprefix("torch.")
        raise BackendError(
            f"{name} returns {kind}, not {str(x.dtype).removeprefix('torch.')} as its input"
        )
    return attended


class Block(nn.Module):
    """One pre-norm block: attention, then the MLP, each on a residual path.

    Under float16 autocast the attention runs in float32, as in github.com/mlpen: sums over
    thousands of tokens leave float16's range. There the projections are float16 still.
    """

    def __init__(self, config: ModelConfig, attention: Attention) -> None:
        super().__init__()
        self.clear_padding = config.clear_padding
        self.attention_norm = nn.LayerNorm(config.dim, config.norm_epsilon)
        self.attention = attention(config.attention_shape)
        if config.mlp_norm:
            self.dropout: nn.Module = Dropout(config.dropout)
            self.mlp_norm: nn.Module = nn.LayerNorm(config.dim, config.norm_epsilon)
        else:
            self.dropout, self.mlp_norm = nn.Identity(), Dropout(config.dropout)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, config.mlp_dim),
            nn.GELU(GELU[config.gelu]),
            Dropout(config.dropout),
            nn.Linear(config.mlp_dim, config.dim),
            Dropout(config.dropout),
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Transform `x` `(B, N, D)`; `mask` `(B, N)` bool or None.

        Raises:
            BackendError: The attention returns anything but a floating tensor of this shape.
        """
        if self.clear_padding and mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        normed = self.attention_norm(x)
        if _float16_autocast(x):
            with without_autocast(x):
                attended = self.attention(normed.float(), mask)
        else:
            attended = self.attention(normed, mask)
        x = x + self.dropout(_checked(attended, normed, self.attention))
        mixed: Tensor = x + self.mlp(self.mlp_norm(x))
        return mixed


class Encoder(nn.Module):
    """Embed, run the blocks, and pool to one vector per sequence."""

    def __init__(self, config: ModelConfig, attention: Attention) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.padded_length = config.max_length
        self.embedding = Embedding(config)
        blocks = [Block(config, attention) for _ in range(config.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.dim, config.norm_epsilon)
        # Whether the amount of padding leaves the encoding as it is.
        self.pad_invariant = config.pooling != "mean_all" and all(
            pad_invariant(block.attention) for block in blocks
        )

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode token ids.

        Args:
            tokens: `(B, N)` int64.
            mask: `(B, N)` bool, True for real tokens; None when all are.

        Returns:
            `(B, D)`.
        """
        x = self.states(self.embedding(tokens), mask)
        return self._pool(x, mask)

    def states(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Run the blocks and the last norm.

        Args:
            x: What the embedding gives: `(B, N, D)`, with a classification token `(B, N + 1, D)`.
            mask: `(B, N)` bool, True for real tokens; None when all are.

        Returns:
            Of the shape of `x`.
        """
        if mask is not None and self.pooling == "cls":
            mask = torch.cat([mask.new_ones(len(mask), 1), mask], 1)
        for block in self.blocks:
            x = block(x, mask)
        normed: Tensor = self.norm(x)
        return normed

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.pooling in ("cls", "first"):
            return x[:, 0]
        if self.pooling == "mean_all":
            return x.mean(1)
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        if self.pooling == "mean_padded":
            return x.sum(1) / self.padded_length
        return x.mean(1) if mask is None else x.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _classifier(in_dim: int, hidden_dims: list[int], num_classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden_dims:
        layers += [nn.Linear(in_dim, width), nn.ReLU()]
        in_dim = width
    return nn.Sequential(*layers, nn.Linear(in_dim, num_classes))


def initialise_as_flax(encoder: Encoder, head: nn.Sequential) -> None:
    """Draw the linear layers anew as the flax codes of Long Range Arena and WavSpA do.

    Kernels of attention and MLP are Xavier-uniform, q, k and v each by its own width; their
    biases have standard deviation 1e-6. The classifier's kernels are LeCun-normal (a normal cut at
    two standard deviations, of variance 1 / inputs) and its biases 0.
    """
    for module in encoder.modules():
        if isinstance(module, HeadProjections):
            for kernel in (*module.qkv.weight.chunk(module.num_inputs), module.out.weight):
                nn.init.xavier_uniform_(kernel)
            for bias in (module.qkv.bias, module.out.bias):
                if bias is not None:
                    nn.init.normal_(bias, std=1e-6)
        elif isinstance(module, Block):
            for layer in module.mlp:
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.normal_(layer.bias, std=1e-6)
    # Cutting at two standard deviations narrows a normal by this factor, which is made up for.
    narrowed = 0.87962566103423978
    for layer in head:
        if isinstance(layer, nn.Linear):
            std = layer.in_features**-0.5 / narrowed
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(layer.bias)


class Classifier(nn.Module):
    """One sequence to class logits.

    Args:
        config: Sizes.
        attention: Builds a block's attention from its shape.
        num_classes: Number of logits.
    """

    def __init__(self, config: ModelConfig, attention: Attention, num_classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(config, attention)
        self.head = _classifier(config.dim, config.classifier_dims, num_classes)
        if config.initialisation == "flax":
            initialise_as_flax(self.encoder, self.head)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Classify `tokens` `(B, N)` with `mask` `(B, N)` or None: logits `(B, classes)`."""
        logits: Tensor = self.head(self.encoder(tokens, mask))
        return logits


class PairClassifier(nn.Module):
    """Two sequences, encoded by the same encoder in one pass, to class logits.

    Args:
        config: Sizes; `pair_features` says what the two encodings are classified by.
        attention: Builds a block's attention from its shape.
        num_classes: Number of logits.
    """

    def __init__(self, config: ModelConfig, attention: Attention, num_classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(config, attention)
        self.pair_features = config.pair_features
        width = config.dim * (4 if config.pair_features == "nli" else 2)
        self.head = _classifier(width, config.classifier_dims, num_classes)
        if config.initialisation == "flax":
            initialise_as_flax(self.encoder, self.head)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Classify `tokens` `(B, 2, N)` with `mask` `(B, 2, N)` or None: logits `(B, classes)`."""
        flat_mask = None if mask is None else mask.flatten(0, 1)
        encoded = self.encoder(tokens.flatten(0, 1), flat_mask)
        a, b = encoded.unflatten(0, (-1, 2)).unbind(1)
        features = [a, b, a * b, a - b] if self.pair_features == "nli" else [a, b]
        logits: Tensor = self.head(torch.cat(features, -1))
        return logits
