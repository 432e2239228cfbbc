"""The Linear Recurrent Unit and S5: recurrences, initial values and the effect of padding."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.heads import AttentionShape
from models.legs import legs_spectrum
from models.lru import LRU
from models.s5 import S5

SHAPE = AttentionShape(dim=6, heads=2, head_dim=3, max_length=64)
LAYERS = {"lru": LRU, "s5": S5}
every_layer = pytest.mark.parametrize("name", LAYERS)


def build(name: str, dim: int = 6, **options) -> LRU | S5:
    torch.manual_seed(0)
    sizes = {"states": 8} | ({"blocks": 2} if name == "s5" else {})
    return LAYERS[name](replace(SHAPE, dim=dim), **sizes | options).eval()


def sequence(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@every_layer
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("length", [1, 2, 37, 1000])
def test_the_form_in_blocks_equals_the_recurrence_in_value_and_gradient(
    name, bidirectional, length
):
    layer = build(name, bidirectional=bidirectional).double()
    x = sequence(2, length, 6)
    outputs = [form(x) for form in (layer, layer.reference)]
    torch.testing.assert_close(*outputs, atol=1e-10, rtol=0)
    parameters = list(layer.parameters())
    found = [torch.autograd.grad(y.square().sum(), parameters) for y in outputs]
    for ours, plain in zip(*found, strict=True):
        scale = plain.abs().max().clamp(min=1)
        torch.testing.assert_close(ours / scale, plain / scale, atol=1e-8, rtol=0)


def test_lru_follows_its_published_recurrence_without_the_factor_2():
    layer, u = build("lru").double(), sequence(1, 9, 6)
    modulus, phase = torch.exp(-layer.nu.exp()), layer.theta.exp()
    factors = modulus * torch.exp(1j * phase)
    b, c = torch.view_as_complex(layer.b), torch.view_as_complex(layer.c)[0]
    state, expected = torch.zeros(8, dtype=torch.complex128), []
    for t in range(9):
        state = factors * state + layer.gamma.exp() * (b @ u[0, t].cdouble())
        expected.append((c @ state).real + layer.d * u[0, t])
    torch.testing.assert_close(layer(u)[0], torch.stack(expected))


def test_s5_follows_its_published_recurrence_with_the_factor_2():
    layer, u = build("s5", bidirectional=False).double(), sequence(1, 9, 6)
    eigenvalues, step = torch.complex(layer.real, layer.imag), layer.step.exp()
    factors = torch.exp(eigenvalues * step)
    b = ((factors - 1) / eigenvalues)[:, None] * torch.view_as_complex(layer.b)
    c = torch.view_as_complex(layer.c)[0]
    state, expected = torch.zeros(4, dtype=torch.complex128), []
    for t in range(9):
        state = factors * state + b @ u[0, t].cdouble()
        expected.append(2 * (c @ state).real + layer.d * u[0, t])
    torch.testing.assert_close(layer(u)[0], torch.stack(expected))


@every_layer
def test_both_directions_see_the_present(name):
    layer = build(name, bidirectional=True).double()
    impulse = torch.zeros(1, 9, 6, dtype=torch.float64)
    impulse[0, 4, 2] = 1
    whole = layer(impulse)
    with torch.no_grad():
        c, layer.d.data = layer.c.clone(), torch.zeros_like(layer.d)
        parts = []
        for direction in (0, 1):
            layer.c.zero_()
            layer.c[direction] = c[direction]
            parts.append(layer(impulse))
    past, future = parts
    assert past[0, 4].abs().min() > 0 and not past[0, :4].any()
    assert future[0, 4].abs().min() > 0 and not future[0, 5:].any()
    skip = whole - past - future
    assert skip[0, 4, 2].abs() > 1e-3 and (skip.abs() > 1e-12).sum() == 1


@every_layer
def test_in_one_direction_no_later_position_is_seen(name):
    layer, x = build(name, bidirectional=False).double(), sequence(1, 7, 6).requires_grad_()
    for t in range(7):
        (gradient,) = torch.autograd.grad(layer(x)[0, t].sum(), x)
        assert not gradient[0, t + 1 :].any() and gradient[0, : t + 1].any(-1).all()


@every_layer
@pytest.mark.parametrize("hidden", [math.nan, math.inf])
def test_not_even_nan_or_infinity_leaks_from_under_the_mask(name, hidden):
    layer, x = build(name, bidirectional=True).double(), sequence(2, 19, 6)
    mask = torch.ones(2, 19, dtype=torch.bool)
    mask[0, 15:] = mask[1, 3:5] = False
    assert torch.equal(layer(x.masked_fill(~mask[..., None], hidden), mask), layer(x, mask))


@every_layer
def test_as_released_padding_reaches_the_real_positions_before_it(name):
    x = sequence(1, 19, 6)
    mask = torch.arange(19)[None] < 12
    ours, released = (
        build(name, bidirectional=True, as_released=flag).double() for flag in (False, True)
    )
    assert ours.pad_invariant and not released.pad_invariant
    torch.testing.assert_close(ours(x, mask)[:, :12], ours(x[:, :12]))
    assert (released(x, mask)[:, :12] - released(x[:, :12])).abs().max() > 1e-4
    torch.testing.assert_close(released(x, mask), ours(x))
    # In one direction, padding at the end comes too late to matter.
    causal = build(name, bidirectional=False, as_released=True).double()
    assert causal.pad_invariant
    torch.testing.assert_close(causal(x, mask)[:, :12], causal(x[:, :12]))


@pytest.mark.parametrize(("name", "options"), [("lru", {}), ("s5", {"clip": True})])
def test_it_stays_stable_under_a_thousand_random_updates(name, options):
    layer = build(name, **options)
    for _ in range(1000):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    factors = layer.factors() if name == "lru" else layer.discrete()[0]
    assert (factors.abs() < 1).all()


def test_a_repeated_input_with_smaller_steps_gives_the_same_output_for_s5():
    """Zero-order hold is exact for inputs that are constant between samples."""
    layer, x = build("s5", bidirectional=False).double(), sequence(1, 37, 6)
    coarse = layer(x)
    with torch.no_grad():
        layer.step -= math.log(4)
    fine = layer(x.repeat_interleave(4, 1))[:, 3::4]
    torch.testing.assert_close(fine, coarse, atol=1e-9, rtol=0)


def test_lru_starts_uniform_in_area_on_its_ring():
    layer = build("lru", states=20_000, r_min=0.5, r_max=0.9, max_phase=math.pi / 10, dim=2)
    factors = layer.factors()
    modulus = factors.abs()
    assert modulus.min() >= 0.5 and modulus.max() <= 0.9 + 1e-6
    assert modulus.square().mean().item() == pytest.approx((0.25 + 0.81) / 2, rel=0.01)
    assert factors.angle().min() >= 0 and factors.angle().max() <= math.pi / 10 + 1e-6
    assert factors.angle().mean().item() == pytest.approx(math.pi / 20, rel=0.02)
    torch.testing.assert_close(layer.gamma.exp(), (1 - modulus.square()).sqrt())


@pytest.mark.parametrize("ring", [(0.0, 0.0), (1.0, 1.0), (0.9999999, 1.0), (0.0, 1.0)])
def test_lru_starts_with_finite_gradients_that_are_not_zero_even_at_the_ends_of_its_ring(ring):
    layer = build("lru", states=8, r_min=ring[0], r_max=ring[1], dim=4)
    layer(torch.randn(2, 9, 4)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.isfinite().all() and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_states_of_lru_are_about_as_large_as_its_inputs():
    layer = build("lru", states=64, r_max=0.95, dim=256)
    b = torch.view_as_complex(layer.b)
    assert b.abs().square().sum(1).mean().item() == pytest.approx(1, rel=0.05)
    factors, gamma = layer.factors(), layer.gamma.exp()
    steps = torch.arange(400)
    # White noise of variance 1 in every channel: the stationary power of each state.
    power = (
        gamma.square() * b.abs().square().sum(1) * (factors.abs()[:, None] ** (2 * steps)).sum(1)
    )
    torch.testing.assert_close(power, b.abs().square().sum(1), rtol=1e-3, atol=0)
    assert torch.view_as_complex(layer.c).abs().square().mean().item() == pytest.approx(
        2 / 64, rel=0.05
    )


def test_s5_starts_from_blocks_of_the_legs_spectrum():
    layer = build("s5", states=48, blocks=3, dim=4000)
    frequency, vectors = (torch.tensor(each) for each in legs_spectrum(16))
    assert (layer.real == -0.5).all()
    torch.testing.assert_close(layer.imag, -frequency.float().repeat(3))
    assert math.log(1e-3) <= layer.step.min() and layer.step.max() <= math.log(0.1)
    # B of every block is V^-1 times real columns of variance 1 / N, cut at two standard deviations.
    b = torch.view_as_complex(layer.b)[:8].cdouble()
    conjugate = vectors.conj()
    columns = (conjugate @ b + (conjugate @ b).conj()).real
    assert columns.std().item() == pytest.approx(48**-0.5, rel=0.02)
    assert columns.abs().max().item() <= 2 * 48**-0.5 / 0.87962 + 1e-6


@pytest.mark.parametrize(
    ("c_init", "deviation"),
    [
        # Each part of C is drawn for all N states and turned to P of them by unit vectors.
        ("lecun_normal", (48 * 300) ** -0.5),
        ("trunc_standard_normal", 48**-0.5),
        ("complex_normal", 0.5**0.5),
    ],
)
def test_c_of_s5_has_the_standard_deviation_of_its_named_initialisation(c_init, deviation):
    layer = build("s5", states=48, blocks=3, dim=300, c_init=c_init)
    assert layer.c.shape == (2, 300, 24, 2)
    assert layer.c.std().item() == pytest.approx(deviation, rel=0.03)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # nu, theta, gamma; B; C for two directions; D.
        ("lru", 3 * 8 + 2 * 8 * 6 + 2 * 2 * 8 * 6 + 6),
        # Lambda, dt; B; C for two directions; D; for 4 modes.
        ("s5", 3 * 4 + 2 * 4 * 6 + 2 * 2 * 4 * 6 + 6),
    ],
)
def test_the_number_of_parameters_follows_the_formula(name, expected):
    layer = build(name, bidirectional=True)
    assert sum(p.numel() for p in layer.parameters()) == expected


@every_layer
def test_it_runs_in_float32_under_autocast(name):
    layer, x = build(name), sequence(2, 64, 6).float()
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), exact)
