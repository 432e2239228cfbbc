from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from models.encoder import (
    BackendError,
    Block,
    Classifier,
    Embedding,
    Encoder,
    ModelConfig,
    PairClassifier,
    sinusoidal_positions,
)
from models.fourier import Fourier
from models.softmax import Softmax

SMALL = ModelConfig(
    layers=2,
    dim=8,
    heads=2,
    head_dim=3,
    mlp_dim=12,
    max_length=20,
    vocab_size=11,
    classifier_dims=[7],
    embedding_std=1.0,
)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(1, 11, (3, 13))
    mask = torch.arange(13) < torch.tensor([13, 9, 4])[:, None]
    return torch.where(mask, tokens, 0), mask


def test_a_norm_before_a_layer_leaves_the_residual_alone() -> None:
    block, x = Block(SMALL, Softmax).eval(), torch.randn(3, 13, SMALL.dim)
    middle = x + block.attention(block.attention_norm(x))
    expected = middle + block.mlp(block.mlp_norm(middle))
    torch.testing.assert_close(block(x, None), expected)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_positions_are_added_to_tokens(positions: str) -> None:
    embedding = Embedding(replace(SMALL, positions=positions)).eval()
    tokens, _ = batch()
    expected = embedding.tokens(tokens) + embedding.positions[:13]
    torch.testing.assert_close(embedding(tokens), expected)


@pytest.mark.parametrize("pooling", ["cls", "mean", "mean_padded", "last"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_trimming_a_batch_changes_no_logit_with_a_pad_invariant_backend(
    pooling: str, positions: str
) -> None:
    config = replace(SMALL, pooling=pooling, positions=positions)
    model = Classifier(config, Softmax, 4).eval()
    tokens, mask = batch()
    wide = torch.cat([tokens, torch.zeros(3, 7, dtype=torch.long)], 1)
    wide_mask = torch.cat([mask, torch.zeros(3, 7, dtype=torch.bool)], 1)
    torch.testing.assert_close(model(tokens, mask), model(wide, wide_mask))


def test_mean_padded_divides_the_sum_over_real_tokens_by_the_models_length() -> None:
    tokens, mask = batch()
    torch.manual_seed(0)
    padded = Encoder(replace(SMALL, pooling="mean_padded"), Softmax).eval()
    torch.manual_seed(0)
    real = Encoder(replace(SMALL, pooling="mean"), Softmax).eval()
    lengths = mask.sum(1, keepdim=True)
    total = padded(tokens, mask) * SMALL.max_length
    torch.testing.assert_close(total, real(tokens, mask) * lengths)


def test_padding_is_cleared_at_the_input_of_every_block_if_requested() -> None:
    tokens, mask = batch()
    encoder = Encoder(replace(SMALL, clear_padding=True), partial(Fourier, norm="ortho")).eval()
    seen = []
    for block in encoder.blocks:
        block.attention_norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder(tokens, mask)
    assert len(seen) == 2
    assert all(x[~mask].abs().max() == 0 and x[mask].abs().min() > 0 for x in seen)


def test_blocks_without_a_norm_before_the_mlp_have_two_fewer_vectors() -> None:
    sizes = [
        sum(p.numel() for p in Encoder(replace(SMALL, mlp_norm=norm), Softmax).parameters())
        for norm in (True, False)
    ]
    assert sizes[0] - sizes[1] == 2 * 2 * SMALL.dim


def test_sinusoids_follow_the_formula() -> None:
    table = sinusoidal_positions(7, 6)
    for position in range(7):
        for pair in range(3):
            angle = torch.tensor(position / 10_000 ** (2 * pair / 6))
            torch.testing.assert_close(table[position, 2 * pair], angle.sin())
            torch.testing.assert_close(table[position, 2 * pair + 1], angle.cos())


def test_initial_tables_have_the_configured_spread() -> None:
    config = replace(SMALL, vocab_size=400, max_length=400, dim=64, embedding_std=0.5)
    embedding = Encoder(config, Softmax).embedding
    assert embedding.tokens.weight.std().item() == pytest.approx(0.5, rel=0.02)
    assert embedding.positions.std().item() == pytest.approx(0.02, rel=0.02)


def test_flax_initialisation_has_the_spreads_of_flax() -> None:
    sizes = {"dim": 64, "heads": 2, "head_dim": 8, "mlp_dim": 96, "classifier_dims": [300]}
    model = Classifier(replace(SMALL, **sizes, initialisation="flax"), Softmax, 40)
    block = model.encoder.blocks[0]
    # Xavier: a uniform of variance 2 / (inputs + outputs); q, k and v each have 16 outputs.
    for kernel in block.attention.projections.qkv.weight.chunk(3):
        assert kernel.std().item() == pytest.approx((2 / 80) ** 0.5, rel=0.05)
        assert kernel.abs().max().item() <= (6 / 80) ** 0.5
    assert block.mlp[0].weight.std().item() == pytest.approx((2 / 160) ** 0.5, rel=0.03)
    assert 0 < block.mlp[0].bias.std().item() < 2e-6
    # LeCun: a normal of variance 1 / inputs, truncated at two standard deviations.
    weight = model.head[0].weight
    assert weight.std().item() == pytest.approx(64**-0.5, rel=0.02)
    assert weight.abs().max().item() <= 2 * 64**-0.5 / 0.8796 + 1e-6
    assert model.head[0].bias.abs().max() == 0


def test_first_last_and_mean_all_pool_what_their_names_say() -> None:
    tokens, mask = batch()
    outputs = {}
    for pooling in ("first", "last", "mean_all"):
        torch.manual_seed(0)
        encoder = Encoder(replace(SMALL, pooling=pooling), Softmax).eval()
        seen = []
        encoder.norm.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
        outputs[pooling] = encoder(tokens, mask), seen[0]
    pooled, states = outputs["first"]
    assert torch.equal(pooled, states[:, 0])
    pooled, states = outputs["last"]
    assert torch.equal(pooled, states[torch.arange(3), mask.sum(1) - 1])
    encoder = Encoder(replace(SMALL, pooling="last"), Softmax).eval()
    whole = encoder(tokens[:, :4])
    assert torch.equal(whole, encoder(tokens[:, :4], torch.ones(3, 4, dtype=torch.bool)))
    # Even without a real token it is a finite state.
    assert encoder(tokens, torch.zeros_like(mask)).isfinite().all()
    pooled, states = outputs["mean_all"]
    torch.testing.assert_close(pooled, states.sum(1) / 13)
    assert not Encoder(replace(SMALL, pooling="mean_all"), Softmax).pad_invariant


@pytest.mark.parametrize(("features", "width"), [("nli", 32), ("concat", 16)])
def test_a_pair_is_classified_by_its_features_from_one_shared_encoder(
    features: str, width: int
) -> None:
    model = PairClassifier(replace(SMALL, pair_features=features), Softmax, 2).eval()
    assert model.head[0].in_features == width
    tokens = torch.randint(1, 11, (3, 2, 13))
    a, b = (model.encoder(tokens[:, side], None) for side in (0, 1))
    parts = [a, b, a * b, a - b] if features == "nli" else [a, b]
    torch.testing.assert_close(model(tokens, None), model.head(torch.cat(parts, 1)))


def test_the_encoder_is_pad_invariant_when_its_backend_is() -> None:
    assert Encoder(SMALL, Softmax).pad_invariant
    assert not Encoder(SMALL, partial(Fourier, norm="ortho")).pad_invariant


@pytest.mark.parametrize(
    ("key", "value"),
    [("layers", 0), ("dropout", 1.0), ("embedding_std", -1), ("pooling", "max"), ("dim", -4)],
)
def test_a_value_out_of_range_is_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"model.{key}={value}"):
        replace(SMALL, **{key: value})


class Returning(nn.Module):
    """A backend that returns what the given function makes of its input."""

    pad_invariant = True

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor, mask: Tensor | None = None) -> object:
        return self.make(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x[:, :1], r"a tensor \(2, 1, 8\), not a tensor \(2, 5, 8\)"),
        (lambda x: x[0, 0], r"a tensor \(8,\), not a tensor \(2, 5, 8\)"),
        (lambda x: x.mean(), r"a tensor \(\), not a tensor \(2, 5, 8\)"),
        (lambda x: (x, None), r"a tuple, not a tensor \(2, 5, 8\)"),
        (lambda x: x.detach().numpy(), "a ndarray, not a tensor"),
        (lambda x: None, "a NoneType, not a tensor"),
        (lambda x: x.double(), "float64, not float32 like its input"),
        (lambda x: torch.fft.fft(x), "complex64, not float32 like its input"),
        (lambda x: x.long(), "int64, not float32 like its input"),
        (lambda x: x > 0, "bool, not float32 like its input"),
    ],
)
def test_a_block_refuses_an_output_of_another_shape_or_type(make, message) -> None:
    block = Block(SMALL, lambda shape: Returning(make))
    with pytest.raises(BackendError, match=f"Returning returns {message}"):
        block(torch.randn(2, 5, 8), None)


def test_a_block_accepts_the_shorter_floats_that_autocast_gives() -> None:
    block = Block(SMALL, lambda shape: Returning(lambda x: x.bfloat16()))
    assert block(torch.randn(2, 5, 8), None).dtype == torch.float32
