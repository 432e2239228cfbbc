import pytest
import torch
from torch import Tensor

from models.feature_attention import feature_attention, feature_attention_reference
from models.heads import AttentionShape
from models.linear import Linear, elu_features


def mask_with_holes(length: int) -> Tensor:
    mask = torch.rand(3, length) < 0.6
    mask[0, 0] = True
    mask[2] = False
    return mask


@pytest.mark.parametrize("length", [1, 7, 45])
@pytest.mark.parametrize("masked", [False, True])
def test_summed_and_plain_forms_agree_in_values_and_all_gradients(
    length: int, masked: bool
) -> None:
    mask = mask_with_holes(length) if masked else None
    inputs = [torch.randn(3, 2, length, 5, dtype=torch.float64).requires_grad_() for _ in range(3)]
    q, k, v = inputs
    results = [
        form(elu_features(q), elu_features(k), v, mask)
        for form in (feature_attention, feature_attention_reference)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=1e-13)
    gradients = [torch.autograd.grad(result.square().sum(), inputs) for result in results]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_the_plain_form_is_equation_4_written_out() -> None:
    q, k, v = torch.randn(3, 1, 1, 4, 3, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True]])
    output = feature_attention_reference(elu_features(q), elu_features(k), v, mask)

    def phi(x: Tensor) -> Tensor:
        return torch.where(x > 0, x + 1, x.exp())

    for row in range(4):
        weights = [
            0 if key == 2 else (phi(q[0, 0, row]) * phi(k[0, 0, key])).sum() for key in range(4)
        ]
        expected = sum(w * v[0, 0, key] for key, w in enumerate(weights)) / sum(weights)
        torch.testing.assert_close(output[0, 0, row], expected)


def test_equal_values_come_out_unchanged() -> None:
    attention = Linear(AttentionShape(dim=6, heads=2, head_dim=3, max_length=32)).double()
    x = torch.randn(1, 1, 6, dtype=torch.float64).expand(1, 9, 6).clone()
    mask = torch.rand(1, 9) < 0.5
    mask[0, 3] = True
    expected = attention(x[:, :1])
    torch.testing.assert_close(attention(x, mask), expected.expand(1, 9, 6))


@pytest.mark.parametrize(
    ("feature_map", "phi"), [("relu", lambda x: x.clamp(min=0)), ("square", lambda x: x * x)]
)
def test_the_feature_map_is_applied_to_queries_and_keys(feature_map: str, phi) -> None:
    shape = AttentionShape(dim=6, heads=2, head_dim=3, max_length=32)
    attention = Linear(shape, feature_map=feature_map).double()
    x, mask = torch.randn(2, 9, 6, dtype=torch.float64), torch.rand(2, 9) < 0.7
    q, k, v = attention.projections.split(x)
    weights = (phi(q) @ phi(k).mT).masked_fill(~mask[:, None, None], 0.0)
    heads = weights / weights.sum(-1, keepdim=True).clamp(min=1e-300) @ v
    torch.testing.assert_close(attention(x, mask), attention.projections.merge(heads))
