"""SSD and the gated delta rule: the forms in parallel, in chunks and token by token agree."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import ssd
from models.gated_delta import GatedDelta, gated_delta, gated_delta_reference
from models.heads import AttentionShape
from models.ssd import SSD, decayed_attention, decayed_attention_reference

SHAPE = AttentionShape(dim=12, heads=3, head_dim=5, max_length=64)


def inputs(length: int, scale: float = 1.0) -> list[Tensor]:
    """Return q, k, v, g and beta of two sequences and three heads, in float64."""
    generator = torch.Generator().manual_seed(length)
    q, k, v = torch.randn(3, 2, 3, length, 5, generator=generator, dtype=torch.float64)
    g, beta = torch.rand(2, 2, 3, length, generator=generator, dtype=torch.float64)
    k = torch.nn.functional.normalize(k, dim=-1)
    return [each.requires_grad_() for each in (q, k, v, -scale * g, beta)]


def gradients(output: Tensor, given: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    found = torch.autograd.grad((weights * output).sum(), given, materialize_grads=True)
    return list(found)


def assert_same(ours: Tensor, plain: Tensor, given: list[Tensor]) -> None:
    torch.testing.assert_close(ours, plain, atol=1e-10, rtol=0)
    for one, other in zip(gradients(ours, given), gradients(plain, given), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def gated_output(layer: SSD | GatedDelta, x: Tensor, values: Tensor) -> Tensor:
    """Return what a layer makes of the outputs of its heads: norm, gate, projection."""
    heads = layer.heads
    root = (values.square().mean(-1, keepdim=True) + heads.epsilon).rsqrt()
    gate = F.silu(torch.einsum("bld,hkd->bhlk", x, heads.gate))
    output: Tensor = heads.projections.merge(values * root * heads.norm[:, None] * gate)
    return output


def test_the_gated_delta_layer_follows_its_formula() -> None:
    layer, x = GatedDelta(SHAPE).double(), torch.randn(2, 9, 12, dtype=torch.float64)
    with torch.no_grad():
        layer.beta_bias.uniform_(-1, 1)
    heads = layer.heads
    q, k, v = heads.projections.split(x)
    step = F.softplus(x @ heads.step_weight.T + heads.step_bias).mT
    beta = torch.sigmoid(x @ layer.beta_weight.T + layer.beta_bias).mT
    g = -heads.log_rate.exp()[:, None] * step
    given = [q / 5**0.5, F.normalize(k, dim=-1), v, g, beta]
    ahead = gated_delta_reference(*given)
    back = gated_delta_reference(*(each.flip(2) for each in given)).flip(2)
    torch.testing.assert_close(layer(x), gated_output(layer, x, ahead + back))


@pytest.mark.parametrize("length", [1, 2, 37, 101])
@pytest.mark.parametrize("chunk", [1, 16, 101])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_ssd_in_chunks_is_the_recurrence(length: int, chunk: int, bidirectional: bool) -> None:
    given = inputs(length)[:4]
    ours = decayed_attention(*given, chunk, bidirectional)
    assert_same(ours, decayed_attention_reference(*given, bidirectional), given)


def test_groups_of_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(101)[:4]
    for group in (2, 5):
        monkeypatch.setattr(ssd, "GROUP", group)
        assert_same(decayed_attention(*given, 3), decayed_attention_reference(*given), given)


def test_ssd_is_a_sum_over_pairs_weighted_by_the_decay_between_them() -> None:
    q, k, v, g, _ = inputs(9)
    weights = q @ k.mT
    for i in range(9):
        for j in range(9):
            between = g[..., j + 1 : i + 1] if j <= i else g[..., i:j]
            weights[..., i, j] = weights[..., i, j] * between.sum(-1).exp()
    torch.testing.assert_close(decayed_attention(q, k, v, g, 4), weights @ v)


def test_outputs_and_gradients_stay_finite_under_extreme_decays() -> None:
    given = inputs(70, scale=1e4)
    for output in (decayed_attention(*given[:4], 16), gated_delta(*given, 16)):
        assert output.isfinite().all()
        assert all(grad.isfinite().all() for grad in gradients(output, given))


@pytest.mark.parametrize("length", [1, 2, 37, 101])
@pytest.mark.parametrize("chunk", [1, 16, 101])
def test_the_gated_delta_rule_in_chunks_is_the_recurrence(length: int, chunk: int) -> None:
    given = inputs(length)
    assert_same(gated_delta(*given, chunk), gated_delta_reference(*given), given)


@pytest.mark.parametrize("attention", [SSD, GatedDelta])
def test_no_decay_exceeds_1_after_a_thousand_random_updates(
    attention: type[SSD] | type[GatedDelta],
) -> None:
    layer, x = attention(SHAPE), torch.randn(2, 64, 12)
    for _ in range(1000):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    step, g = layer.heads.steps(x, None)
    assert (step >= 0).all() and (g <= 0).all()
    assert layer(x).isfinite().all()


def test_the_delta_rule_replaces_the_value_stored_under_a_key() -> None:
    k = torch.eye(5, dtype=torch.float64)[[0, 1, 0]].expand(1, 1, 3, 5)
    v = torch.randn(1, 1, 3, 5, dtype=torch.float64)
    g, beta = torch.zeros(2, 1, 1, 3, dtype=torch.float64)
    output = gated_delta(k, k, v, g, beta + 1, 2)
    torch.testing.assert_close(output, v)
    # Without beta nothing is written.
    assert not gated_delta(k, k, v, g, beta, 2).any()


@pytest.mark.parametrize("attention", [SSD, GatedDelta])
def test_padding_in_the_middle_changes_nothing(attention: type[SSD] | type[GatedDelta]) -> None:
    layer = attention(SHAPE, chunk=4).double()
    x = torch.randn(1, 11, 12, dtype=torch.float64)
    real = torch.ones(1, 11, dtype=torch.bool)
    real[0, 3:6] = False
    torch.testing.assert_close(layer(x, real)[real], layer(x[:, real[0]])[0])


@pytest.mark.parametrize("attention", [SSD, GatedDelta])
def test_in_one_direction_no_later_position_is_seen(
    attention: type[SSD] | type[GatedDelta],
) -> None:
    layer = attention(SHAPE, chunk=4, bidirectional=False)
    x = torch.randn(1, 11, 12, requires_grad=True)
    [grad] = torch.autograd.grad(layer(x)[0, 6].sum(), x)
    assert grad[0, :7].any(-1).all() and not grad[0, 7:].any()


def test_rates_and_steps_start_as_in_the_released_code() -> None:
    torch.manual_seed(0)
    heads = SSD(AttentionShape(dim=4, heads=4_000, head_dim=1, max_length=8)).heads
    rate = heads.log_rate.detach().exp()
    assert rate.min() > 0 and rate.max() <= 16
    assert abs(float(rate.mean()) - 8) < 0.3
    step = torch.nn.functional.softplus(heads.step_bias.detach())
    assert step.min() * 1.001 >= 1e-3 and step.max() <= 0.1 * 1.001
    assert abs(float(step.log().mean()) - math.log(1e-2)) < 0.1


@pytest.mark.parametrize("backend", [SSD, GatedDelta])
def test_the_norm_of_the_heads_has_the_models_epsilon(backend: type[torch.nn.Module]) -> None:
    x = torch.randn(2, 7, 12) / 1e3
    outputs = []
    for epsilon in (1e-5, 1e-1):
        torch.manual_seed(0)
        shape = AttentionShape(
            dim=12, heads=3, head_dim=5, max_length=64, bias=False, norm_epsilon=epsilon
        )
        outputs.append(backend(shape)(x))
    # Small heads stay small if epsilon is large beside them.
    assert outputs[1].abs().max() < 0.1 * outputs[0].abs().max()
