"""Attention in Fourier space: the control for learning in a wavelet space."""

import pytest
import torch
from torch import Tensor, nn

from models.fourier_space import FourierSpace
from models.heads import AttentionShape
from models.softmax import Softmax


class Select(nn.Module):
    """A stand-in for attention: a factor per token."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.factor = torch.ones(shape.max_length, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is None
        return x * self.factor.to(x.dtype)


def sequence(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def build(inner=Softmax, length: int = 37) -> FourierSpace:
    torch.manual_seed(0)
    shape = AttentionShape(dim=6, heads=2, head_dim=4, max_length=length)
    return FourierSpace(shape, inner=inner)


@pytest.mark.parametrize("length", [1, 2, 36, 37])
def test_without_attention_the_sequence_comes_back(length):
    x = sequence(2, length, 6)
    torch.testing.assert_close(build(Select, length)(x), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [36, 37])
def test_real_and_imaginary_parts_are_the_even_and_odd_halves_of_the_sequence(length):
    x, layer = sequence(2, length, 6), build(Select, length)
    mirrored = x.flip(1).roll(1, dims=1)
    count = length // 2 + 1
    layer.attention.factor[count:] = 0
    torch.testing.assert_close(layer(x), (x + mirrored) / 2, atol=1e-5, rtol=0)
    layer.attention.factor[:] = 1
    layer.attention.factor[:count] = 0
    torch.testing.assert_close(layer(x), (x - mirrored) / 2, atol=1e-5, rtol=0)


def test_the_attention_sees_the_coefficients_of_the_plain_transform():
    x, layer = sequence(2, 37, 6), build()
    spectrum = torch.fft.fft(x, dim=1, norm="ortho")[:, :19]
    out = layer.attention(torch.cat([spectrum.real, spectrum.imag], 1), None)
    half = torch.complex(out[:, :19], out[:, 19:])
    half[:, 0] = half[:, 0].real
    whole = torch.cat([half, half[:, 1:].flip(1).conj()], 1)
    expected = torch.fft.ifft(whole, dim=1, norm="ortho").real
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


def test_content_under_the_mask_never_changes_the_output():
    layer, x = build(), sequence(2, 19, 6)
    mask = torch.ones(2, 19, dtype=torch.bool)
    mask[0, 15:] = mask[1, 3:5] = False
    hidden = x.masked_fill(~mask[..., None], float("nan"))
    assert torch.equal(layer(hidden, mask), layer(x, mask))
    assert not layer.pad_invariant


def test_every_parameter_and_the_input_receive_a_gradient():
    layer, x = build(), sequence(2, 37, 6).requires_grad_()
    layer(x).square().sum().backward()
    for name, tensor in (("x", x), *layer.named_parameters()):
        assert tensor.grad.isfinite().all() and (tensor.grad != 0).any(), name


def test_the_transform_stays_in_float32_under_autocast():
    layer, x = build(), sequence(2, 37, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.bfloat16())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, layer(x.bfloat16().float()), atol=0.02, rtol=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_result_as_the_cpu():
    layer, x = build(), sequence(2, 37, 6)
    expected = layer(x)
    torch.testing.assert_close(layer.cuda()(x.cuda()).cpu(), expected, atol=1e-4, rtol=1e-3)
