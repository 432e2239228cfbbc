import numpy as np
import pytest
import torch

from models.fourier import Fourier, fourier_mixing, fourier_mixing_reference
from models.heads import AttentionShape

SHAPES = [(1, 1), (1, 4), (2, 2), (3, 1), (7, 5), (8, 6), (13, 7), (30, 64), (31, 64), (101, 9)]


@pytest.mark.parametrize(("length", "width"), SHAPES)
@pytest.mark.parametrize("norm", ["backward", "ortho"])
@pytest.mark.parametrize("method", ["fft", "matrix"])
def test_values_and_gradients_equal_the_plain_form(
    length: int, width: int, norm: str, method: str
) -> None:
    x = torch.randn(2, length, width, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    fast, plain = fourier_mixing(x, norm, method), fourier_mixing_reference(x, norm)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-10)
    (fast_gradient,) = torch.autograd.grad((fast * weights).sum(), x)
    (plain_gradient,) = torch.autograd.grad((plain * weights).sum(), x)
    torch.testing.assert_close(fast_gradient, plain_gradient, rtol=0, atol=1e-10)


def test_plain_form_is_the_sum_of_cosines_of_equation_3() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3))
    n, d = np.arange(5), np.arange(3)
    angles = 2 * np.pi * (np.multiply.outer(n, n)[:, None, :, None] / 5)
    angles = angles + 2 * np.pi * (np.multiply.outer(d, d)[None, :, None, :] / 3)
    expected = (np.cos(angles) * x).sum((2, 3))
    actual = fourier_mixing_reference(torch.from_numpy(x)[None])[0]
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("method", ["fft", "matrix"])
def test_second_derivatives_exist(method: str) -> None:
    x = torch.randn(1, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: fourier_mixing(x, "ortho", method).pow(3), x)


def test_ortho_keeps_the_scale_and_backward_does_not() -> None:
    x = torch.randn(2, 40, 16)
    scaled = fourier_mixing(x, "ortho") * (40 * 16) ** 0.5
    torch.testing.assert_close(scaled, fourier_mixing(x), rtol=1e-5, atol=1e-4)


def test_the_module_has_no_parameters_and_zeroes_masked_positions() -> None:
    shape = AttentionShape(dim=6, heads=2, head_dim=3, max_length=16)
    module = Fourier(shape, norm="ortho", method="matrix")
    assert not list(module.parameters())
    x, mask = torch.randn(1, 9, 6), torch.arange(9)[None] < 4
    expected = fourier_mixing_reference(x * mask[..., None], "ortho")
    torch.testing.assert_close(module(x, mask), expected, rtol=1e-5, atol=1e-6)
