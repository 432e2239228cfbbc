"""Operations of a step, counted without computing: FFTs too, and some for every backend."""

import math

import pytest
import torch
from tiny_cell import TINY

import lra.compose
from lra.build import build_attention, build_model
from lra.check import attention_config
from lra.flops import counter, inference_flops, training_flops
from models import ATTENTION
from models.heads import AttentionShape

SHAPE = AttentionShape(dim=16, heads=2, head_dim=8, max_length=64)


@pytest.mark.parametrize("name", ATTENTION)
def test_every_backend_counts_operations_forward_and_backward(name: str) -> None:
    backend = build_attention(attention_config(name))(SHAPE).to("meta")
    x = torch.empty(2, 64, 16, device="meta", requires_grad=True)
    with counter() as forward:
        output = backend(x, None)
    with counter() as backward:
        output.sum().backward()
    assert forward.get_total_flops() > 0 and backward.get_total_flops() > 0


def test_an_fft_counts_five_operations_per_number_and_halving() -> None:
    x = torch.empty(3, 64, device="meta")
    with counter() as counted:
        spectrum = torch.fft.rfft(x)
    assert counted.get_total_flops() == 2.5 * 3 * 64 * 6
    with counter() as counted:
        torch.fft.irfft(spectrum, 64)
    assert counted.get_total_flops() == 2.5 * 3 * 64 * 6
    with counter() as counted:
        torch.fft.fft2(x.to(torch.complex64))
    assert counted.get_total_flops() == round(5 * 3 * 64 * math.log2(3 * 64))


def test_the_count_of_a_step_of_linear_attention_agrees_with_the_formula() -> None:
    config = lra.compose.load(*TINY, "attention=linear", "model.layers=1")
    model = build_model(config)
    batch, length, sizes = 3, 40, config.model
    inner = sizes.heads * sizes.head_dim
    weights = sizes.dim * inner * 4 + 2 * sizes.dim * sizes.mlp_dim
    # Keys by values, and queries by the result, for each head.
    mixing = 2 * sizes.heads * sizes.head_dim**2
    counted = training_flops(model, (batch, length))
    # Two per multiplication, and twice that backward; the head and the normaliser are small.
    expected = 6 * batch * length * (weights + mixing)
    assert expected < counted < 1.1 * expected
    assert training_flops(model, (2 * batch, length)) == 2 * counted
    answer = inference_flops(model, (batch, length))
    assert expected / 3 < answer < 1.1 * expected / 3
    assert model.training
    assert next(model.parameters()).device.type == "cpu"


def test_softmax_counts_the_square_of_the_length_and_fourier_does_not() -> None:
    def growth(name: str) -> float:
        words = (f"attention={name}", "model.max_length=512", "task.truncate=512")
        model = build_model(lra.compose.load(*TINY, *words))
        return training_flops(model, (1, 512)) / training_flops(model, (1, 256))

    assert growth("softmax") > 2.5 and growth("fourier") < 2.2


def test_micro_batches_count_a_kernel_that_they_share_once() -> None:
    def counts(name: str) -> tuple[int, int]:
        model = build_model(lra.compose.load(*TINY, f"attention={name}", "model.max_length=96"))
        shapes = [(2, 96), (1, 64)]
        apart = sum(training_flops(model, shape) for shape in shapes)
        return training_flops(model, *shapes), apart

    together, apart = counts("s4d")
    assert together < apart
    together, apart = counts("softmax")
    assert together == apart
