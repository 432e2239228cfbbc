"""S4D against its recurrence, its published initial values and its properties."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lra.memory import peak_of
from models.geometric_sums import geometric_sums_reference
from models.heads import AttentionShape
from models.legs import legs_spectrum
from models.s4d import S4D, initial_modes

SHAPE = AttentionShape(dim=6, heads=2, head_dim=3, max_length=64)


def build(seed: int = 0, dim: int = 6, **options) -> S4D:
    torch.manual_seed(seed)
    return S4D(replace(SHAPE, dim=dim), **options).eval()


def sequence(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("discretisation", ["zoh", "bilinear"])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("length", [1, 2, 37, 1000])
def test_the_convolution_equals_the_recurrence(discretisation, bidirectional, length):
    layer = build(discretisation=discretisation, bidirectional=bidirectional, init="legs").double()
    x = sequence(1, length, 6)
    torch.testing.assert_close(layer(x), layer.reference(x), atol=1e-10, rtol=0)


@pytest.mark.parametrize("init", ["lin", "inv", "legs"])
@pytest.mark.parametrize("discretisation", ["zoh", "bilinear"])
@pytest.mark.parametrize("transform", ["exp", "softplus"])
def test_gradients_of_all_parameters_are_those_of_the_recurrence(init, discretisation, transform):
    options = {"discretisation": discretisation, "step_transform": transform}
    layer = build(init=init, copies=2, **options).double()
    x = sequence(2, 37, 6)
    found = [
        torch.autograd.grad(form(x).square().sum(), list(layer.parameters()))
        for form in (layer, layer.reference)
    ]
    for (name, _), ours, plain in zip(layer.named_parameters(), *found, strict=True):
        scale = plain.abs().max().clamp(min=1)
        torch.testing.assert_close(ours / scale, plain / scale, atol=1e-8, rtol=0, msg=name)


@pytest.mark.parametrize("discretisation", ["zoh", "bilinear"])
def test_the_kernel_equals_the_dense_sum_in_complex_numbers(discretisation):
    layer = build(discretisation=discretisation, init="inv").double()
    a = torch.complex(-layer.decay.exp(), layer.frequency)
    step = torch.nn.functional.softplus(layer.step)[:, None]
    b, c = torch.view_as_complex(layer.b), torch.view_as_complex(layer.c)
    z = step * a
    if discretisation == "zoh":
        a_bar, b_bar = z.exp(), b * (z.exp() - 1) / a
    else:
        a_bar, b_bar = (1 + z / 2) / (1 - z / 2), step * b / (1 - z / 2)
    powers = a_bar[..., None] ** torch.arange(53)
    expected = 2 * torch.einsum("chn,hn,hnl->chl", c, b_bar, powers).real
    torch.testing.assert_close(layer.kernels(53), expected, atol=1e-12, rtol=1e-10)


def test_lag_0_is_in_the_kernel_of_the_past_alone():
    layer = build().double()
    kernels, impulse = layer.kernels(9), torch.zeros(1, 9, 6, dtype=torch.float64)
    impulse[0, 4] = 1
    response = layer(impulse)[0] - layer.d * impulse[0]
    torch.testing.assert_close(response[4:], kernels[0, :, :5].T)
    torch.testing.assert_close(response[:4], kernels[1, :, :4].T.flip(0))


def test_the_kernel_of_a_shorter_sequence_is_the_start_of_a_longer_ones():
    layer = build(init="legs").double()
    long = layer.kernels(500)
    for length in (1, 2, 37, 256, 499):
        torch.testing.assert_close(layer.kernels(length), long[..., :length], atol=1e-11, rtol=0)


def test_the_amount_of_padding_changes_nothing_once_it_is_masked():
    layer, x = build().double(), sequence(2, 60, 6)
    mask = torch.arange(60).expand(2, -1) < 37
    torch.testing.assert_close(layer(x, mask)[:, :37], layer(x[:, :37]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("hidden", [math.nan, math.inf])
def test_not_even_nan_or_infinity_leaks_from_under_the_mask(hidden):
    layer, x = build().double(), sequence(2, 19, 6)
    mask = torch.ones(2, 19, dtype=torch.bool)
    mask[0, 15:] = mask[1, 3:5] = False
    spoilt = x.masked_fill(~mask[..., None], hidden).requires_grad_()
    assert torch.equal(layer(spoilt, mask), layer(x, mask))
    (gradient,) = torch.autograd.grad(layer(spoilt, mask).square().sum(), spoilt)
    assert gradient.isfinite().all() and not gradient[~mask].any()


def test_in_one_direction_no_later_position_is_seen():
    layer, x = build(bidirectional=False).double(), sequence(1, 11, 6).requires_grad_()
    for t in range(11):
        (gradient,) = torch.autograd.grad(layer(x)[0, t].sum(), x)
        assert gradient[0, t + 1 :].abs().max() < 1e-12 if t < 10 else True
        assert gradient[0, : t + 1].abs().min() > 1e-6


@pytest.mark.parametrize("discretisation", ["zoh", "bilinear"])
def test_it_stays_stable_under_a_thousand_random_updates(discretisation):
    layer = build(discretisation=discretisation)
    for _ in range(1000):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    log_a, _ = layer.discrete()
    assert (log_a.real < 0).all()
    assert layer(torch.randn(2, 64, 6)).isfinite().all()


def test_the_initial_modes_have_the_published_values():
    for init, largest, smallest in (
        ("lin", [97.39, 94.25, 91.11], 0.0),
        ("inv", [1283.4, 414.2, 240.4], 0.323),
        ("legs", [1303.3, 433.0, 258.2], 0.264),
    ):
        frequency, b = initial_modes(64, init)
        found = frequency.sort(descending=True).values
        assert found[:3].tolist() == pytest.approx(largest, rel=3e-4)
        assert found[-1].item() == pytest.approx(smallest, rel=4e-3)
        assert b.imag.abs().max() <= 2
        assert init == "legs" or (b == 1).all()
    layer = build()
    torch.testing.assert_close(-layer.decay.exp(), torch.full_like(layer.decay, -0.5))


def test_the_spectrum_of_legs_diagonalises_its_normal_part():
    frequency, vectors = (torch.tensor(each) for each in legs_spectrum(16))
    root = (2 * torch.arange(16.0, dtype=torch.float64) + 1).sqrt()
    legs = torch.zeros(16, 16, dtype=torch.float64)
    for k in range(16):
        for j in range(k):
            legs[k, j] = -root[k] * root[j]
        legs[k, k] = -(k + 1)
    normal = (legs + torch.outer(root, root) / 2).to(torch.complex128)
    eigenvalues = torch.complex(torch.full_like(frequency, -0.5), frequency)
    torch.testing.assert_close(normal @ vectors, vectors * eigenvalues, atol=1e-12, rtol=0)
    assert (frequency > 0).all()


@pytest.mark.parametrize("transform", ["exp", "softplus"])
def test_steps_start_log_uniform_between_their_bounds(transform):
    layer = build(dim=4000, step_transform=transform, step_min=1e-5, copies=1)
    # Steps below 1e-4 are raised to that value, as published.
    step = layer.step.exp() if transform == "exp" else torch.nn.functional.softplus(layer.step)
    assert step.min().item() == pytest.approx(1e-4, rel=1e-3) and step.max() <= 0.1 * (1 + 1e-4)
    assert (step < 1.01e-4).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert step.log10().median().item() == pytest.approx(-3, abs=0.1)
    assert torch.view_as_complex(layer.c).std().item() == pytest.approx(1, rel=0.01)
    assert layer.d.std().item() == pytest.approx(1, rel=0.05)


def test_channels_share_modes_in_turn():
    layer = build(copies=2).double()
    with torch.no_grad():
        layer.frequency += sequence(2, 32)
    log_a, _ = layer.discrete()
    step = torch.nn.functional.softplus(layer.step)
    torch.testing.assert_close(log_a.imag / step[:, None], layer.frequency[[0, 1, 0, 1, 0, 1]])


def test_a_repeated_input_with_smaller_steps_gives_nearly_the_same_output():
    """A layer samples a system in continuous time: halving dt reads a signal twice as finely."""
    layer = build(bidirectional=False, step_transform="exp", step_min=0.01).double()
    x = sequence(1, 64, 6).cumsum(1) / 8
    coarse = layer(x) - layer.d * x
    with torch.no_grad():
        layer.step -= math.log(4)
    x = x.repeat_interleave(4, 1)
    fine = (layer(x) - layer.d * x)[:, 3::4]
    # Exactly, as zero-order hold is exact for inputs that are constant between samples.
    torch.testing.assert_close(fine, coarse, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("width", "states", "copies", "directions"), [(128, 64, None, 2), (512, 64, 2, 1)]
)
def test_the_layer_has_the_published_number_of_parameters(width, states, copies, directions):
    layer = build(dim=width, states=states, copies=copies, bidirectional=directions == 2)
    modes = states // 2
    expected = 2 * width + 4 * (copies or width) * modes + 2 * directions * width * modes
    assert sum(p.numel() for p in layer.parameters()) == expected


def test_the_kernel_stays_float32_under_autocast():
    layer, x = build(), sequence(2, 64, 6).float()
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.kernels(64), layer.kernels(64).float())
        torch.testing.assert_close(layer(x), exact, atol=1e-6, rtol=0)


def test_the_float32_kernel_agrees_with_the_float64_one_at_the_length_of_path_x():
    layer = build(init="legs", step_min=1e-4)
    ours = layer.kernels(16_384)
    log_a, b = layer.double().discrete()
    weights = 2 * torch.view_as_complex(layer.c) * b
    exact = geometric_sums_reference(weights, log_a, 16_384)
    assert (ours - exact).abs().max() < 2e-5 * exact.abs().max()


@pytest.mark.slow
def test_forward_and_backward_at_path_x_take_less_than_300_megabytes_more():
    layer = S4D(AttentionShape(dim=256, heads=4, head_dim=64, max_length=16_384), states=64)
    x = torch.randn(1, 16_384, 256, requires_grad=True)

    def forward_backward():
        layer(x).sum().backward()

    # Allocate the gradients of parameters beforehand.
    forward_backward()
    assert peak_of(forward_backward, torch.device("cpu")) < 300e6


def test_dropout_zeroes_single_outputs_in_training():
    torch.manual_seed(0)
    layer = S4D(replace(SHAPE, dropout=0.25)).train()
    share = (layer(sequence(4, 500, 6).float()) == 0).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.02)
