"""Mega's moving average and gated attention: recurrence, lags, weights, initial values."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from models.ema import EMA
from models.encoder import pad_invariant
from models.fourier import Fourier
from models.heads import AttentionShape
from models.linear import Linear
from models.mega import Mega
from models.moving_average import MovingAverage
from models.norms import BatchNorm
from models.softmax import Softmax

SHAPE = AttentionShape(dim=6, heads=2, head_dim=3, max_length=64)


def average(**options) -> MovingAverage:
    torch.manual_seed(0)
    defaults = {"states": 4, "truncation": None, "bidirectional": True}
    return MovingAverage(6, **defaults | options).double()


def mega(**options) -> Mega:
    torch.manual_seed(0)
    return Mega(SHAPE, **options).double().eval()


def sequence(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("truncation", [None, 1, 7])
@pytest.mark.parametrize("length", [1, 2, 37, 1000])
def test_the_convolution_equals_the_recurrence_in_value_and_gradient(
    bidirectional, truncation, length
):
    layer = average(bidirectional=bidirectional, truncation=truncation)
    x = sequence(1, length, 6)
    outputs = [form(x) for form in (layer, layer.reference)]
    torch.testing.assert_close(*outputs, atol=1e-10, rtol=0)
    parameters = list(layer.parameters())
    found = [
        torch.autograd.grad(y.square().sum(), parameters, materialize_grads=True) for y in outputs
    ]
    for ours, plain in zip(*found, strict=True):
        scale = plain.abs().max().clamp(min=1)
        torch.testing.assert_close(ours / scale, plain / scale, atol=1e-8, rtol=0)


def test_the_kernel_follows_the_published_formula():
    layer = average()
    p, damping = torch.sigmoid(layer.delta), torch.sigmoid(layer.alpha)
    q = 1 - p * damping
    expected = [(p * layer.beta * layer.gamma * q**t).sum(-1) / math.sqrt(4) for t in range(53)]
    torch.testing.assert_close(layer.kernels(53), torch.stack(expected, -1))
    torch.testing.assert_close(layer.kernels(9), layer.kernels(53)[..., :9])


def test_lag_0_is_in_both_directions():
    layer = average()
    kernels, impulse = layer.kernels(9), torch.zeros(1, 9, 6, dtype=torch.float64)
    impulse[0, 4] = 1
    expected = torch.zeros(9, 6, dtype=torch.float64)
    expected[4:] += kernels[0, :, :5].T
    expected[:5] += kernels[1, :, :5].T.flip(0)
    expected[4] += layer.omega
    torch.testing.assert_close(layer(impulse)[0], expected * torch.sigmoid(expected))


def test_nothing_beyond_the_truncation_is_seen():
    layer, x = average(truncation=3), sequence(1, 11, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[0, 5].sum(), x)
    seen = gradient[0].abs().amax(-1) > 1e-12
    assert seen.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


def test_in_one_direction_no_later_position_is_seen():
    layer, x = average(bidirectional=False), sequence(1, 11, 6).requires_grad_()
    for t in range(11):
        (gradient,) = torch.autograd.grad(layer(x)[0, t].sum(), x)
        assert not (gradient[0, t + 1 :].abs() > 1e-12).any()
        assert (gradient[0, : t + 1].abs() > 1e-12).all()


def test_its_decay_stays_between_0_and_1_under_a_thousand_random_updates():
    layer = average().float()
    for _ in range(1000):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    p, q = torch.sigmoid(layer.delta), layer._series()[1].exp()
    assert (p > 0).all() and (p < 1).all() and (q > 0).all() and (q < 1).all()


def test_it_starts_as_published():
    torch.manual_seed(0)
    layer = MovingAverage(500, states=16, truncation=None, bidirectional=True)
    deviations = {"delta": 0.2, "alpha": 0.2, "gamma": 1.0, "omega": 1.0}
    for name, deviation in deviations.items():
        values = getattr(layer, name)
        assert values.std().item() == pytest.approx(deviation, rel=0.1), name
        assert values.mean().abs() < 0.2
    signs = torch.tensor([1.0, -1.0] * 8)
    assert (layer.beta - signs).std().item() == pytest.approx(0.02, rel=0.05)
    assert (layer.beta - signs).abs().max() < 0.15
    assert sum(p.numel() for p in layer.parameters()) == 4 * 2 * 500 * 16 + 500


def test_an_attention_after_it_sees_the_average():
    torch.manual_seed(0)
    layer = EMA(SHAPE, inner=Softmax).double().eval()
    x, mask = sequence(2, 19, 6), torch.arange(19).expand(2, -1) < 13
    torch.testing.assert_close(layer(x, mask), layer.inner(layer.average(x, mask), mask))


def test_the_attention_after_it_determines_padding_and_memory():
    found = []
    for inner in (Linear, partial(Softmax, fused=False), Fourier):
        layer = EMA(SHAPE, inner=inner)
        found.append((pad_invariant(layer), layer.memory_growth))
    assert found == [(True, 1), (True, 2), (False, 1)]
    with pytest.raises(ValueError, match="Identity must declare pad_invariant"):
        pad_invariant(EMA(SHAPE, inner=lambda shape: torch.nn.Identity()))


@pytest.mark.parametrize("hidden", [math.nan, math.inf])
@pytest.mark.parametrize("weighting", ["softmax", "laplace"])
def test_not_even_nan_or_infinity_leaks_from_under_the_mask(hidden, weighting):
    x, mask = sequence(2, 19, 6), torch.ones(2, 19, dtype=torch.bool)
    mask[0, 15:] = mask[1, 3:5] = False
    spoilt = x.masked_fill(~mask[..., None], hidden)
    for layer in (EMA(SHAPE, inner=Linear).double(), mega(weighting=weighting, chunk=4)):
        assert torch.equal(layer(spoilt, mask)[mask], layer(x, mask)[mask])


def published(layer: Mega, x: Tensor) -> Tensor:
    """Compute the unit a second time for one sequence `(N, D)`, by the released code's steps."""
    dim, z, v, _ = layer.widths
    moved = layer.average(x[None])[0]
    base = layer.mixed(moved)
    u, zr, hx = base[:, :dim], base[:, dim : dim + z + v], base[:, dim + z + v :]
    zr = zr * torch.sigmoid(zr)
    common, r = zr[:, :z], zr[:, z:]
    q, k = (common * layer.scale[i] + layer.shift[i] for i in (0, 1))
    values = layer.value(x)
    values = values * torch.sigmoid(values)
    n, middle = len(x), len(layer.distance_bias) // 2
    bias = torch.stack(
        [torch.stack([layer.distance_bias[middle + j - i] for j in range(n)]) for i in range(n)]
    )
    if layer.weighting == "softmax":
        weights = torch.softmax(q @ k.T / z**0.5 + bias, -1)
    else:
        standard = (q @ k.T / n + bias - 0.707107) / (0.282095 * 2**0.5)
        weights = 0.5 * (1 + torch.erf(standard))
    h = hx + layer.out(r * (weights @ values))
    h = h * torch.sigmoid(h)
    gate = torch.sigmoid(u)
    return gate * h + (1 - gate) * x - x


@pytest.mark.parametrize("weighting", ["softmax", "laplace"])
def test_the_unit_is_the_published_one_without_its_residual(weighting):
    layer, x = mega(weighting=weighting), sequence(1, 13, 6)
    with torch.no_grad():
        # Make them larger than at the start, so that attention matters.
        layer.scale.mul_(100)
        layer.value.weight.mul_(50)
        layer.mixed.weight.mul_(50)
    torch.testing.assert_close(layer(x)[0], published(layer, x[0]), atol=1e-10, rtol=1e-10)


def test_with_a_norm_inside_the_residual_uses_the_unnormalised_input():
    plain, normed, x = mega(), mega(norm="layer"), sequence(2, 13, 6)
    inside = torch.nn.functional.layer_norm(x, (6,))
    gate = torch.sigmoid(plain.mixed(plain.average(inside))[..., :6])
    # phi * (h - norm x) + phi * (norm x - x)
    torch.testing.assert_close(normed(x), plain(inside) + gate * (inside - x))


@pytest.mark.parametrize("weighting", ["softmax", "laplace"])
def test_chunks_see_each_other_only_through_the_average(weighting):
    layer, x = mega(weighting=weighting, chunk=4), sequence(1, 11, 6)
    with torch.no_grad():
        layer.average.gamma.zero_()
        layer.scale.mul_(100)
    other = x.clone()
    other[:, 4:8] += 1
    changed = (layer(other) - layer(x)).abs().amax(-1)[0] > 1e-12
    assert changed.tolist() == [False] * 4 + [True] * 4 + [False] * 3
    assert layer.memory_growth == 1 and mega().memory_growth == 2


def test_laplace_divides_by_the_number_of_real_keys():
    layer, x = mega(weighting="laplace"), sequence(1, 13, 6)
    mask = torch.arange(13)[None] < 9
    torch.testing.assert_close(layer(x, mask)[:, :9], layer(x[:, :9]))


def test_the_unit_starts_as_published_and_has_the_published_number_of_parameters():
    torch.manual_seed(0)
    layer = Mega(replace(SHAPE, dim=160, max_length=1024), queries=96, weighting="laplace")
    for linear in (layer.value, layer.mixed, layer.out):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not linear.bias.any()
    assert layer.scale.std().item() == pytest.approx(0.02, rel=0.2) and not layer.shift.any()
    assert layer.distance_bias.std().item() == pytest.approx(0.02, rel=0.1)
    d, v, z, n = 160, 320, 96, 16
    expected = 8 * d * n + d + (d + 1) * v + (d + 1) * (2 * d + z + v) + (v + 1) * d
    expected += 4 * z + 2 * 1024 - 1
    assert sum(p.numel() for p in layer.parameters()) == expected


def test_the_average_stays_float32_under_autocast():
    layer, x = average().float(), sequence(2, 64, 6).float()
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x), exact, atol=1e-6, rtol=0)
        assert layer.kernels(64).dtype == torch.float32


def test_the_batch_norm_inside_is_the_models_own() -> None:
    shape = replace(SHAPE, norm_epsilon=1e-3, norm_momentum=0.01, norm_padding=True)
    norm = Mega(shape, norm="batch").norm
    assert isinstance(norm, BatchNorm)
    assert (norm.eps, norm.momentum, norm.padding) == (1e-3, 0.01, True)
    # Batches must not be trimmed if their padding counts.
    assert not Mega(shape, norm="batch").pad_invariant
    assert Mega(shape, norm="layer").pad_invariant and Mega(SHAPE, norm="batch").pad_invariant
