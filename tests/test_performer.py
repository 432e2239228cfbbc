import pytest
import torch
from torch import Tensor

from lra.build import build_model
from lra.compose import load
from models.feature_attention import feature_attention, feature_attention_reference
from models.heads import AttentionShape
from models.performer import (
    Performer,
    favor_attention_reference,
    favor_features,
    orthogonal_features,
    relu_features,
)
from models.softmax import softmax_attention


def favor_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, directions: Tensor
) -> Tensor:
    return feature_attention(*favor_features(q, k, mask, directions), v, mask)


def mask_with_holes(length: int) -> Tensor:
    mask = torch.rand(3, length) < 0.6
    mask[2] = False
    return mask


@pytest.mark.parametrize("length", [1, 7, 45])
@pytest.mark.parametrize("masked", [False, True])
def test_stable_and_plain_forms_agree_in_values_and_all_gradients(
    length: int, masked: bool
) -> None:
    inputs = [torch.randn(3, 2, length, 5, dtype=torch.float64).requires_grad_() for _ in range(3)]
    mask = mask_with_holes(length) if masked else None
    directions = orthogonal_features(13, 5, seed=3).double()
    results = [
        form(*inputs, mask, directions) for form in (favor_attention, favor_attention_reference)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(result.square().sum(), inputs) for result in results]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


@pytest.mark.parametrize("length", [1, 7, 45])
def test_relu_features_agree_with_the_dense_form_in_values_and_all_gradients(length: int) -> None:
    inputs = [torch.randn(3, 2, length, 5, dtype=torch.float64).requires_grad_() for _ in range(3)]
    q, k, v = inputs
    mask = mask_with_holes(length)
    results = [
        form(relu_features(q), relu_features(k), v, mask)
        for form in (feature_attention, feature_attention_reference)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(result.square().sum(), inputs) for result in results]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-11)


def test_the_error_against_softmax_falls_with_the_root_of_the_number_of_features() -> None:
    q, k, v = torch.randn(3, 2, 2, 33, 8, dtype=torch.float64)
    # The features of long vectors have heavy tails, for which 16 features are not yet many.
    q, k = 0.3 * q, 0.3 * k
    mask = torch.rand(2, 33) < 0.8
    exact = softmax_attention(q, k, v, mask)

    def error(num_features: int) -> float:
        draws = [orthogonal_features(num_features, 8, seed).double() for seed in range(20)]
        errors = [(favor_attention(q, k, v, mask, draw) - exact).square().mean() for draw in draws]
        return float(torch.stack(errors).mean().sqrt() / exact.square().mean().sqrt())

    few, some, many = error(16), error(256), error(4096)
    assert 3 < few / some < 5 and 3 < some / many < 5
    assert many < 0.02


def test_directions_are_orthogonal_in_groups_and_individually_gaussian() -> None:
    directions = orthogonal_features(4096, 8, seed=0).double()
    groups = directions.view(-1, 8, 8)
    products = groups @ groups.mT
    off = products - torch.diag_embed(products.diagonal(dim1=-2, dim2=-1))
    assert off.abs().max() < 1e-5
    # Twelve standard errors: each moment is a mean over 32,768 entries.
    assert abs(directions.mean()) < 12 / 32_768**0.5
    assert abs(directions.square().mean() - 1) < 12 * (2 / 32_768) ** 0.5
    assert abs(directions.pow(4).mean() - 3) < 12 * (96 / 32_768) ** 0.5
    lengths = directions.square().sum(-1)
    assert abs(lengths.mean() - 8) < 0.5 and abs(lengths.var() - 16) < 4


def test_the_seed_determines_the_directions_and_the_state_dict_keeps_them() -> None:
    shape = AttentionShape(dim=8, heads=2, head_dim=4, max_length=16)
    first, again, other = Performer(shape), Performer(shape), Performer(shape, seed=1)
    assert torch.equal(first.directions, again.directions)
    assert not torch.equal(first.directions, other.directions)
    other.load_state_dict(first.state_dict())
    x = torch.randn(1, 9, 8)
    assert torch.equal(first(x), other(x))


def test_large_queries_and_keys_stay_finite_in_float32() -> None:
    q, k, v = torch.randn(3, 2, 2, 33, 16)
    q, k = (100 * q).requires_grad_(), (100 * k).requires_grad_()
    mask = torch.rand(2, 33) < 0.6
    output = favor_attention(q, k, v, mask, orthogonal_features(64, 16, seed=0))
    output.sum().backward()
    assert output.isfinite().all() and q.grad.isfinite().all() and k.grad.isfinite().all()
    assert output.abs().max() > 0


def test_the_relu_variant_has_three_norms_and_keeps_the_contract_under_a_mask() -> None:
    shape = AttentionShape(dim=8, heads=2, head_dim=4, max_length=16)
    attention = Performer(shape, features="relu")
    names = {name for name, _ in attention.named_parameters() if name.startswith("norms")}
    assert names == {f"norms.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    x, mask = torch.randn(2, 13, 8), torch.rand(2, 13) < 0.6
    other = torch.where(mask[..., None], x, 100.0)
    torch.testing.assert_close(attention(x, mask)[mask], attention(other, mask)[mask])
    q, k, v = (
        norm(t) for norm, t in zip(attention.norms, attention.projections.split(x), strict=True)
    )
    plain = feature_attention_reference(q.clamp(min=0) + 1e-3, k.clamp(min=0) + 1e-3, v, mask)
    torch.testing.assert_close(attention(x, mask), attention.projections.merge(plain))


def test_the_plain_relu_variant_has_no_norms_and_no_parameters_of_its_own() -> None:
    shape = AttentionShape(dim=8, heads=2, head_dim=4, max_length=16)
    attention = Performer(shape, features="relu_plain")
    assert {name.split(".")[0] for name in attention.state_dict()} == {"projections"}
    x, mask = torch.randn(2, 13, 8), torch.rand(2, 13) < 0.6
    q, k, v = attention.projections.split(x)
    plain = feature_attention_reference(q.clamp(min=0) + 1e-3, k.clamp(min=0) + 1e-3, v, mask)
    torch.testing.assert_close(attention(x, mask), attention.projections.merge(plain))


def test_directions_are_redrawn_every_few_calls_but_only_in_training() -> None:
    shape = AttentionShape(dim=8, heads=2, head_dim=4, max_length=16)
    attention, x = Performer(shape, num_features=6, redraw=3, seed=5), torch.randn(1, 9, 8)

    def directions_of(calls: int) -> list[Tensor]:
        seen = []
        for _ in range(calls):
            attention(x)
            seen.append(attention.directions)
        return seen

    seen = directions_of(9)
    draws = [seen[0], seen[3], seen[6]]
    for i, directions in enumerate(seen):
        assert torch.equal(directions, draws[i // 3])
    assert torch.equal(draws[0], orthogonal_features(6, 4, seed=5))
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[1], draws[2])
    product = draws[1][:4] @ draws[1][:4].T
    torch.testing.assert_close(product, product.diagonal().diag(), atol=1e-5, rtol=0)
    attention.eval()
    assert all(torch.equal(directions, draws[2]) for directions in directions_of(4))


def test_a_resumed_run_draws_the_same_directions_as_an_uninterrupted_one() -> None:
    shape = AttentionShape(dim=8, heads=2, head_dim=4, max_length=16)
    first, other = (Performer(shape, num_features=6, redraw=2, seed=5) for _ in range(2))
    x = torch.randn(1, 9, 8)
    for _ in range(3):
        first(x)
    other.load_state_dict(first.state_dict())
    for _ in range(4):
        torch.testing.assert_close(other(x), first(x))
        assert torch.equal(other.directions, first.directions)


def test_epsilon_is_added_to_features_relative_to_the_largest_as_in_published_code() -> None:
    shape = AttentionShape(dim=8, heads=2, head_dim=4, max_length=16)
    attention = Performer(shape, num_features=6, epsilon=0.01).double()
    x, mask = torch.randn(2, 9, 8, dtype=torch.float64), torch.rand(2, 9) < 0.7
    q, k, v = attention.projections.split(x)

    def features(x: Tensor, axes: tuple[int, ...], real: Tensor) -> Tensor:
        x = x / 4**0.25
        exponent = x @ attention.directions.T - x.square().sum(-1, keepdim=True) / 2
        stabiliser = exponent.masked_fill(~real, -1e300).amax(axes, keepdim=True)
        return (exponent - stabiliser).exp() + 0.01

    of_queries = features(q, (-1,), torch.tensor(True))
    of_keys = features(k, (-1, -2), mask[:, None, :, None])
    weights = (of_queries @ of_keys.mT).masked_fill(~mask[:, None, None], 0.0)
    expected = attention.projections.merge(weights / weights.sum(-1, keepdim=True) @ v)
    torch.testing.assert_close(attention(x, mask), expected)
    assert not torch.allclose(expected, Performer(shape, num_features=6).double()(x, mask))


@pytest.mark.parametrize("features", ["relu", "relu_plain"])
def test_the_epsilon_of_the_relu_features_can_be_changed(features: str) -> None:
    shape = AttentionShape(dim=8, heads=2, head_dim=4, max_length=16, norm_epsilon=0.5)
    attention = Performer(shape, features=features, epsilon=0.25).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    q, k, v = attention.projections.split(x)
    if features == "relu":
        # The norms have the same epsilon as the model's own norms.
        q, k, v = (torch.nn.functional.layer_norm(t, (4,), eps=0.5) for t in (q, k, v))
    heads = feature_attention_reference(q.clamp(min=0) + 0.25, k.clamp(min=0) + 0.25, v, None)
    torch.testing.assert_close(attention(x), attention.projections.merge(heads))


def test_norms_of_the_relu_variant_have_the_epsilon_of_the_recipe() -> None:
    config = load("protocol=wavspa", "task=listops", "attention=performer", "model.layers=1")
    norms = build_model(config).encoder.blocks[0].attention.norms
    assert config.model.norm_epsilon == 1e-6
    assert [norm.eps for norm in norms] == [1e-6] * 3
