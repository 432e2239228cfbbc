"""Norms of a sequence against those of torch and the formulas."""

import math

import pytest
import torch
from torch import Tensor, nn

from models.norms import BatchNorm, build_norm
from models.sizes import NORMS


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    x = 2 + 3 * torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(seed)).double()
    mask = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    return x, mask


def norm(kind: str, **options) -> nn.Module:
    layer = build_norm(kind, 5, 1e-3, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(2)
            )
    return layer


def test_batch_norm_over_real_positions_equals_torchs_on_those_alone() -> None:
    x, mask = batch()
    ours, plain = norm("batch"), nn.BatchNorm1d(5, 1e-3).double()
    plain.load_state_dict(ours.state_dict())
    for seed in (1, 2, 3):
        x = batch(seed)[0].requires_grad_()
        found = ours(x, mask)[mask], plain(x[mask])
        torch.testing.assert_close(*found)
        both = [torch.autograd.grad(y.pow(3).sum(), x)[0] for y in found]
        torch.testing.assert_close(*both)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, msg=key)
    torch.testing.assert_close(ours.eval()(x, mask)[mask], plain.eval()(x[mask]))


def test_batch_norm_as_released_counts_padding() -> None:
    x, mask = batch()
    released, plain = norm("batch", padding=True), nn.BatchNorm1d(5, 1e-3).double()
    plain.load_state_dict(released.state_dict())
    torch.testing.assert_close(released(x, mask), plain(x.flatten(0, 1)).view(x.shape))
    assert (released(x, mask) - norm("batch")(x, mask))[mask].abs().max() > 1e-2


def test_batch_norm_is_the_same_without_a_mask_and_with_one_that_hides_nothing() -> None:
    x, mask = batch()
    torch.testing.assert_close(norm("batch")(x, torch.ones_like(mask)), norm("batch")(x))


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("hidden", [math.nan, math.inf])
def test_masked_values_change_no_real_position(kind: str, hidden: float) -> None:
    x, mask = batch()
    spoilt = x.masked_fill(~mask[..., None], hidden).requires_grad_()
    layers = norm(kind), norm(kind)
    for _ in range(2):
        outputs = layers[0](spoilt, mask)[mask], layers[1](x, mask)[mask]
        assert torch.equal(*outputs)
    if kind == "batch":
        assert torch.equal(layers[0].running_var, layers[1].running_var)
        (gradient,) = torch.autograd.grad(outputs[0].pow(3).sum(), spoilt)
        assert gradient.isfinite().all() and not gradient[~mask].any()


def test_a_batch_of_padding_alone_stays_finite() -> None:
    x, mask = batch()
    layer = norm("batch")
    assert layer(x, torch.zeros_like(mask)).isfinite().all()
    assert layer.running_var.isfinite().all()


def test_momentum_is_the_weight_of_the_batch() -> None:
    x, mask = batch()
    layer = BatchNorm(5, 1e-5, momentum=0.05).double()
    layer(x, mask)
    torch.testing.assert_close(layer.running_mean, 0.05 * x[mask].mean(0))
    torch.testing.assert_close(layer.running_var, 0.95 + 0.05 * x[mask].var(0))


def test_scale_norm_divides_by_the_root_mean_square_and_multiplies_by_one_scalar() -> None:
    x, _ = batch()
    layer = norm("scale")
    assert [p.shape for p in layer.parameters()] == [()]
    expected = layer.weight * x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_keeps_the_type_of_its_input(kind: str) -> None:
    x = batch()[0].bfloat16()
    mask = batch()[1]
    layer = build_norm(kind, 5, 1e-3)
    if kind != "layer":
        assert layer(x, mask).dtype == torch.bfloat16
    assert layer(x.float(), mask).dtype == torch.float32
