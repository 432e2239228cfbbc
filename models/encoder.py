"""The encoder in which all attention backends are compared, and the two classifiers on top of it.

Pre-norm blocks as in the Nystromformer family (github.com/mlpen/Nystromformer, LRA code): tokens
and positions are embedded, each block adds attention(norm(x)) and mlp(norm(x)), a last norm
follows, positions are pooled, and an MLP with ReLU classifies. Other protocols put the norm after
the residual sum, use a different norm, or have an activation and a gate instead of the MLP.

Axes: B batch, N length, D model width.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from models.dropout import Dropout, TiedDropout
from models.gated_output import GatedOutput
from models.heads import AttentionShape, HeadProjections, share
from models.initialisation import lecun_, normal_, xavier_
from models.norms import NoNorm, Norm, build_norm
from models.precision import without_autocast
from models.sizes import GELU, ModelConfig

Attention = Callable[[AttentionShape], nn.Module]


def attention_shape(config: ModelConfig) -> AttentionShape:
    """Return the shape that the attention backends of a model are built for."""
    return AttentionShape(
        dim=config.dim,
        heads=config.heads,
        head_dim=config.head_dim,
        max_length=config.num_positions,
        dropout=config.attention_dropout,
        bias=config.attention_bias,
        norm_epsilon=config.norm_epsilon,
        norm_momentum=config.norm_momentum,
        norm_padding=config.norm_padding,
    )


def sinusoidal_positions(length: int, dim: int) -> Tensor:
    """Return the `(length, dim)` table of arXiv 1706.03762, section 3.5; `dim` is even."""
    steps = torch.arange(0, dim, 2, dtype=torch.float64)
    angles = torch.arange(length)[:, None] * torch.exp(steps * (-math.log(10_000.0) / dim))
    table = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
    return table.to(torch.get_default_dtype())


class Values(nn.Linear):
    """Embed each grey value as (value / 255 - mean) / std, times a learned vector w, plus b."""

    def __init__(self, dim: int, mean: float, std: float) -> None:
        super().__init__(1, dim)
        self.mean, self.std = mean, std

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed `tokens`, integers from 0 to 255, of shape `(B, N)` as `(B, N, D)`."""
        values = (tokens.to(self.weight.dtype) / 255 - self.mean) / self.std
        return super().forward(values[..., None])


class Embedding(nn.Module):
    """Embed tokens and positions, with a learned classification token first for `cls` pooling."""

    parameter_roles = {"positions": "embedding", "cls": "embedding"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dim = config.dim
        self.tokens: nn.Module
        if config.inputs == "values":
            self.tokens = Values(config.dim, config.value_mean, config.value_std)
        else:
            self.tokens = nn.Embedding(config.vocab_size, config.dim)
            nn.init.normal_(self.tokens.weight, std=config.embedding_std)
        self.positions: Tensor | None = None
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.empty(config.num_positions, config.dim))
            nn.init.normal_(self.positions, std=config.position_std)
        elif config.positions == "sinusoidal":
            table = sinusoidal_positions(config.num_positions, config.dim)
            del self.positions
            self.register_buffer("positions", table, persistent=False)
        self.cls = nn.Parameter(torch.zeros(config.dim)) if config.pooling == "cls" else None
        self.dropout = Dropout(_either(config.input_dropout, config.dropout))

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed `tokens` `(B, N)` as `(B, N, D)`; `(B, N + 1, D)` with a classification token."""
        return self.placed(self.tokens(tokens))

    def placed(self, x: Tensor) -> Tensor:
        """Add positions and any classification token to `x` `(B, N, D)`: `(B, N or N + 1, D)`."""
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), 1, -1), x], 1)
        if self.positions is not None:
            x = x + self.positions[: x.shape[1]]
        embedded: Tensor = self.dropout(x)
        return embedded


def _either(probability: float | None, default: float) -> float:
    return default if probability is None else probability


def _float16_autocast(x: Tensor) -> bool:
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind):
        return False
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16


def pad_invariant(backend: nn.Module) -> bool:
    """Return whether the amount of padding leaves a backend's output at real positions unchanged.

    Raises:
        ValueError: The backend does not declare it.
    """
    claim = getattr(backend, "pad_invariant", None)
    # A backend around another one may declare what that one does; then that one is named.
    while (
        claim is None
        and isinstance(inner := getattr(backend, "inner", None), nn.Module)
        and getattr(inner, "pad_invariant", None) is None
    ):
        backend = inner
    if not isinstance(claim, bool):
        raise ValueError(
            f"{type(backend).__name__} must declare pad_invariant = True or False: whether more"
            " padding leaves its output at real positions unchanged (False is always safe)"
        )
    return claim


class BackendError(ValueError):
    """A backend returned something that a block cannot use; the message says what."""


def _checked(attended: object, x: Tensor, backend: nn.Module) -> Tensor:
    """Return the output of a backend for `x` if it is a tensor like `x`.

    A block adds the output to its input, so a wrong shape might fit by broadcasting, and train.
    The check never waits for the device.

    Raises:
        BackendError: The output is not such a tensor.
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
            f"{name} returns {kind}, not {str(x.dtype).removeprefix('torch.')} like its input"
        )
    return attended


class Block(nn.Module):
    """Attention, then the MLP, each on a residual path with a norm before or after it.

    Alternatively, attention alone, whose output passes through an activation and a gate. Under
    float16 autocast the attention runs in float32, as in github.com/mlpen: sums over thousands of
    tokens exceed float16's range. In that code, the projections are still in float16.
    """

    def __init__(self, config: ModelConfig, attention: Attention) -> None:
        super().__init__()
        self.clear_padding = config.clear_padding
        self.norm_first = config.norm_place == "before"
        self.attention_norm = _norm(config, config.attention_norm)
        self.attention = attention(attention_shape(config))
        kind = TiedDropout if config.tied_dropout else Dropout
        dropout = partial(kind, config.dropout)
        self.mlp: nn.Sequential | None = None
        self.output: nn.Module
        if config.channel_mixing != "mlp":
            gelu = GELU[config.gelu]
            self.output = GatedOutput(config.dim, config.channel_mixing, gelu, dropout)
            return
        # WavSpA has dropout before the MLP instead of after the attention.
        output = kind(_either(config.output_dropout, config.dropout))
        self.output = output if config.mlp_norm else nn.Identity()
        self.mlp_norm = _norm(config, config.mlp_norm)
        self.mlp_dropout = nn.Identity() if config.mlp_norm else dropout()
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, config.mlp_dim),
            nn.SiLU() if config.activation == "silu" else nn.GELU(GELU[config.gelu]),
            kind(_either(config.hidden_dropout, config.dropout)),
            nn.Linear(config.mlp_dim, config.dim),
            dropout(),
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Transform `x` `(B, N, D)`; `mask` `(B, N)` bool or None.

        Raises:
            BackendError: The attention returns anything but a floating-point tensor of this shape.
        """
        if self.clear_padding and mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        if self.norm_first:
            x = x + self.output(self._attend(self.attention_norm(x, mask), mask))
            return x if self.mlp is None else x + self.mlp(self.mlp_dropout(self.mlp_norm(x, mask)))
        x = self.attention_norm(x + self.output(self._attend(x, mask)), mask)
        return x if self.mlp is None else self.mlp_norm(x + self.mlp(self.mlp_dropout(x)), mask)

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if _float16_autocast(x):
            with without_autocast(x):
                attended = self.attention(x.float(), mask)
        else:
            attended = self.attention(x, mask)
        return _checked(attended, x, self.attention)


def _norm(config: ModelConfig, wanted: bool = True) -> Norm:
    if not wanted:
        return NoNorm()
    return build_norm(
        config.norm,
        config.dim,
        config.norm_epsilon,
        momentum=config.norm_momentum,
        padding=config.norm_padding,
    )


def _last(x: Tensor, mask: Tensor) -> Tensor:
    """Return the states `(B, D)` at the last real token, or at the first if there is none."""
    place = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    return x.gather(1, place[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]


class Encoder(nn.Module):
    """Embed, run the blocks, and pool to one vector per sequence."""

    def __init__(self, config: ModelConfig, attention: Attention) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.padded_length = config.max_length
        self.embedding = Embedding(config)
        blocks = [Block(config, attention) for _ in range(config.layers)]
        for block in blocks[1:]:
            share(block.attention, blocks[0].attention)
        self.blocks = nn.ModuleList(blocks)
        self.norm = _norm(config, config.last_norm)
        # Whether the amount of padding leaves the encoding unchanged.
        sees_padding = config.pooling == "mean_all" or (
            config.norm == "batch" and config.norm_padding
        )
        self.pad_invariant = not sees_padding and all(
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
            x: Output of the embedding: `(B, N, D)`, or `(B, N + 1, D)` with a classification token.
            mask: `(B, N)` bool, True for real tokens; None when all are.

        Returns:
            A tensor of the shape of `x`.
        """
        if mask is not None and self.pooling == "cls":
            mask = torch.cat([mask.new_ones(len(mask), 1), mask], 1)
        for block in self.blocks:
            x = block(x, mask)
        normed: Tensor = self.norm(x, mask)
        return normed

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.pooling in ("cls", "first"):
            return x[:, 0]
        if self.pooling == "mean_all":
            return x.mean(1)
        if self.pooling == "last":
            return x[:, -1] if mask is None else _last(x, mask)
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        if self.pooling == "mean_padded":
            return x.sum(1) / self.padded_length
        return x.mean(1) if mask is None else x.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _classifier(config: ModelConfig, in_dim: int, num_classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in config.classifier_dims:
        layers.append(nn.Linear(in_dim, width))
        if config.classifier_dropout:
            layers.append(Dropout(config.classifier_dropout))
        gelu = nn.GELU(GELU[config.gelu])
        layers.append(gelu if config.classifier_activation == "gelu" else nn.ReLU())
        in_dim = width
    last = nn.Linear(in_dim, num_classes, bias=config.classifier_bias)
    return nn.Sequential(*layers, last)


def initialise(kind: str, encoder: Encoder, head: nn.Sequential) -> None:
    """Redraw the linear layers as a family of published codes does.

    Within the attention, only the projections of heads are redrawn, and only by `flax`, with q, k
    and v each drawn according to its own width: other backends have initial values of their own.

    Args:
        kind: See `ModelConfig.initialisation`; `torch` leaves all layers unchanged.
        encoder: The encoder whose blocks are redrawn.
        head: The classifier.
    """
    if kind == "torch":
        return
    for module in encoder.modules():
        if isinstance(module, Block):
            _initialise_block(kind, module)
        elif kind == "flax" and isinstance(module, HeadProjections):
            _initialise_heads(module)
    if kind == "mega":
        xavier_(*head)
        normal_(encoder.embedding.tokens, std=1.0, bias_std=0.1)
        return
    lecun_(*head)
    if kind == "lecun":
        lecun_(encoder.embedding.tokens)


def _initialise_block(kind: str, block: Block) -> None:
    layers = (block.output if block.mlp is None else block.mlp).modules()
    if kind == "flax":
        xavier_(*layers, bias_std=1e-6)
    elif kind == "lecun":
        lecun_(*layers)
    else:
        normal_(*layers, std=0.02)


def _initialise_heads(projections: HeadProjections) -> None:
    for kernel in (*projections.qkv.weight.chunk(projections.num_inputs), projections.out.weight):
        nn.init.xavier_uniform_(kernel)
    for bias in (projections.qkv.bias, projections.out.bias):
        if bias is not None:
            nn.init.normal_(bias, std=1e-6)


class Classifier(nn.Module):
    """Map one sequence to class logits.

    Args:
        config: Sizes.
        attention: Builds a block's attention from its shape.
        num_classes: Number of logits.
    """

    def __init__(self, config: ModelConfig, attention: Attention, num_classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(config, attention)
        self.head = _classifier(config, config.dim, num_classes)
        initialise(config.initialisation, self.encoder, self.head)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Classify `tokens` `(B, N)` with `mask` `(B, N)` or None: logits `(B, classes)`."""
        logits: Tensor = self.head(self.encoder(tokens, mask))
        return logits


class PairClassifier(nn.Module):
    """Map two sequences, encoded by the same encoder in one pass, to class logits.

    Args:
        config: Sizes; `pair_features` says by which features the two encodings are classified.
        attention: Builds a block's attention from its shape.
        num_classes: Number of logits.
    """

    def __init__(self, config: ModelConfig, attention: Attention, num_classes: int) -> None:
        super().__init__()
        self.encoder = Encoder(config, attention)
        self.pair_features = config.pair_features
        width = config.dim * (4 if config.pair_features == "nli" else 2)
        self.head = _classifier(config, width, num_classes)
        initialise(config.initialisation, self.encoder, self.head)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Classify `tokens` `(B, 2, N)` with `mask` `(B, 2, N)` or None: logits `(B, classes)`."""
        flat_mask = None if mask is None else mask.flatten(0, 1)
        encoded = self.encoder(tokens.flatten(0, 1), flat_mask)
        a, b = encoded.unflatten(0, (-1, 2)).unbind(1)
        features = [a, b, a * b, a - b] if self.pair_features == "nli" else [a, b]
        logits: Tensor = self.head(torch.cat(features, -1))
        return logits
