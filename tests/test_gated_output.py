"""Encoder options that the protocols of state-space layers set, against the formulas."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dropout import Dropout, TiedDropout
from models.encoder import Block, Classifier, Encoder, ModelConfig
from models.gated_output import GatedOutput
from models.norms import BatchNorm, LayerNorm, ScaleNorm
from models.s4d import S4D
from models.softmax import Softmax

CONFIG = ModelConfig(
    layers=2,
    dim=8,
    heads=2,
    head_dim=4,
    mlp_dim=12,
    max_length=20,
    vocab_size=256,
    classifier_dims=[7],
    embedding_std=1.0,
    dropout=0.0,
    attention_dropout=0.0,
)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 256, (3, 13), generator=generator)
    return tokens, torch.arange(13) < torch.tensor([13, 9, 4])[:, None]


def states() -> Tensor:
    return torch.randn(3, 13, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", ["glu", "half_glu1", "half_glu2"])
@pytest.mark.parametrize("gelu", ["none", "tanh"])
def test_a_gate_follows_the_published_formula(kind: str, gelu: str) -> None:
    layer, x = GatedOutput(8, kind, gelu, lambda: Dropout(0.0)), states()
    g = F.gelu(x, approximate=gelu)
    if kind == "glu":
        first, second = layer.linear.weight.chunk(2)
        bias = layer.linear.bias.chunk(2)
        expected = (g @ first.T + bias[0]) * torch.sigmoid(g @ second.T + bias[1])
    else:
        gate = torch.sigmoid(g @ layer.linear.weight.T + layer.linear.bias)
        expected = (g if kind == "half_glu1" else x) * gate
    torch.testing.assert_close(layer(x), expected)


def test_dropout_is_applied_before_and_after_the_gate() -> None:
    layer = GatedOutput(8, "half_glu1", "none", lambda: Dropout(0.5)).train()
    seen: list[Tensor] = []
    layer.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    y = layer(torch.ones(4, 50, 8))
    for x in (seen[0], y):
        assert 0.4 < (x == 0).float().mean().item() < 0.8


def test_tied_dropout_drops_channels_for_a_whole_sequence() -> None:
    layer = TiedDropout(0.25).train()
    x = torch.ones(200, 5, 30)
    y = layer(x)
    assert (y == y[:, :1]).all()
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(layer.eval()(x), x)
    block = Block(replace(CONFIG, tied_dropout=True, channel_mixing="glu", dropout=0.1), Softmax)
    assert sum(isinstance(module, TiedDropout) for module in block.modules()) == 2


def test_a_block_with_a_gate_has_one_norm_and_one_residual() -> None:
    config, x = replace(CONFIG, channel_mixing="glu"), states()
    block = Block(config, S4D).eval()
    attended = block.attention(block.attention_norm(x))
    torch.testing.assert_close(block(x, None), x + block.output(attended))
    assert block.mlp is None and not hasattr(block, "mlp_norm")
    after = Block(replace(config, norm_place="after"), S4D).eval()
    expected = after.attention_norm(x + after.output(after.attention(x, None)))
    torch.testing.assert_close(after(x, None), expected)


def test_norms_after_the_residual_follow_the_original_transformer() -> None:
    block, x = Block(replace(CONFIG, norm_place="after"), Softmax).eval(), states()
    middle = block.attention_norm(x + block.attention(x, None))
    torch.testing.assert_close(block(x, None), block.mlp_norm(middle + block.mlp(middle)))


@pytest.mark.parametrize(
    ("norm", "kind"), [("layer", LayerNorm), ("batch", BatchNorm), ("scale", ScaleNorm)]
)
def test_all_norms_of_an_encoder_are_of_the_requested_kind(norm: str, kind: type) -> None:
    encoder = Encoder(replace(CONFIG, norm=norm, norm_epsilon=1e-3, norm_momentum=0.05), Softmax)
    norms = [m for m in encoder.modules() if isinstance(m, (LayerNorm, BatchNorm, ScaleNorm))]
    assert [type(m) for m in norms] == [kind] * 5
    if norm == "batch":
        assert {(m.eps, m.momentum, m.padding) for m in norms} == {(1e-3, 0.05, False)}
    fewer = Encoder(replace(CONFIG, norm=norm, attention_norm=False, last_norm=False), Softmax)
    assert sum(isinstance(m, kind) for m in fewer.modules()) == 2


def test_batch_norm_over_padding_depends_on_it_and_the_encoder_says_so() -> None:
    tokens, mask = batch()
    other = torch.where(mask, tokens, 200)
    for padding in (False, True):
        torch.manual_seed(0)
        config = replace(CONFIG, norm="batch", norm_padding=padding, pooling="mean")
        encoder = Encoder(config, S4D).train()
        difference = (encoder(tokens, mask) - encoder(other, mask)).abs().max()
        assert (difference > 1e-3) == padding
        assert encoder.pad_invariant == (not padding)


def test_grey_values_are_normalised_and_multiplied_by_a_learned_vector() -> None:
    config = replace(CONFIG, inputs="values", value_mean=0.48, value_std=0.24, positions="none")
    encoder = Encoder(config, Softmax).eval()
    values = encoder.embedding.tokens
    tokens = torch.tensor([[0, 128, 255]])
    grey = torch.tensor([0, 128 / 255, 1])
    expected = ((grey - 0.48) / 0.24)[:, None] * values.weight[:, 0] + values.bias
    torch.testing.assert_close(encoder.embedding(tokens)[0], expected)
    assert sum(p.numel() for p in encoder.embedding.parameters()) == 2 * 8


def test_positions_can_be_left_out() -> None:
    embedding = Encoder(replace(CONFIG, positions="none"), Softmax).eval().embedding
    tokens, _ = batch()
    assert torch.equal(embedding(tokens), embedding.tokens(tokens))
    assert embedding.positions is None and len(list(embedding.parameters())) == 1


def probabilities(module: nn.Module) -> list[float]:
    return [m.p for m in module.modules() if isinstance(m, Dropout)]


def test_each_dropout_can_have_its_own_probability() -> None:
    config = replace(CONFIG, dropout=0.1, attention_dropout=0.0)
    assert probabilities(Encoder(config, S4D)) == [0.1] + 2 * [0.0, 0.1, 0.1, 0.1]
    config = replace(config, input_dropout=0.0, output_dropout=0.2, hidden_dropout=0.3)
    found = probabilities(Encoder(config, S4D))
    assert sorted(found[:1] + found[1:5]) == [0.0, 0.0, 0.1, 0.2, 0.3] and found[0] == 0.0


def test_the_mlp_and_the_classifier_have_the_requested_activations() -> None:
    config = replace(
        CONFIG,
        activation="silu",
        classifier_activation="gelu",
        classifier_dropout=0.1,
        classifier_bias=False,
    )
    model = Classifier(config, Softmax, 3)
    block = model.encoder.blocks[0]
    assert isinstance(block.mlp[1], nn.SiLU)
    kinds = [type(layer) for layer in model.head]
    assert kinds == [nn.Linear, Dropout, nn.GELU, nn.Linear]
    assert model.head[0].bias is not None and model.head[-1].bias is None


def spread(kind: str, **options) -> tuple[Classifier, Callable[[Tensor], float]]:
    torch.manual_seed(0)
    config = replace(
        CONFIG, dim=64, mlp_dim=96, classifier_dims=[300], initialisation=kind, inputs="values"
    )
    return Classifier(replace(config, **options), Softmax, 40), lambda t: t.std().item()


def test_s5_initialises_everything_lecun_normal() -> None:
    model, std = spread("lecun", channel_mixing="glu")
    linear = model.encoder.blocks[0].output.linear
    for layer in (linear, model.head[0], model.head[-1]):
        assert std(layer.weight) == pytest.approx(layer.in_features**-0.5, rel=0.03)
        assert not layer.bias.any()
        assert layer.weight.abs().max() <= 2 * layer.in_features**-0.5 / 0.87962 + 1e-6
    assert std(model.encoder.embedding.tokens.weight) == pytest.approx(1, rel=0.2)


def test_mega_initialises_its_mlp_narrowly_and_its_head_xavier_uniform() -> None:
    model, std = spread("mega")
    for layer in model.encoder.blocks[0].mlp:
        if isinstance(layer, nn.Linear):
            assert std(layer.weight) == pytest.approx(0.02, rel=0.03) and not layer.bias.any()
    head = model.head[0]
    assert head.weight.abs().max().item() == pytest.approx(math.sqrt(6 / 364), rel=0.01)
    assert not head.bias.any()
    values = model.encoder.embedding.tokens
    assert std(values.weight) == pytest.approx(1, rel=0.2)
    assert std(values.bias) == pytest.approx(0.1, rel=0.2)
