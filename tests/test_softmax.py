import pytest
import torch
from torch import Tensor

from models.heads import AttentionShape
from models.softmax import Softmax, softmax_attention


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(output.square().sum(), inputs))


@pytest.mark.parametrize("length", [1, 5, 33])
@pytest.mark.parametrize("masked", [False, True])
def test_fused_and_plain_forms_agree_in_values_and_all_gradients(length: int, masked: bool) -> None:
    shape = AttentionShape(dim=12, heads=3, head_dim=5, max_length=64)
    fused = Softmax(shape).double()
    plain = Softmax(shape, fused=False).double()
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(2, length, 12, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, length, dtype=torch.bool) if masked else None
    if mask is not None:
        mask[0, (length + 1) // 2 :] = False
        mask[1] = False
    results = [module(x, mask) for module in (fused, plain)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    all_gradients = [
        gradients(output, [x, *module.parameters()])
        for output, module in zip(results, (fused, plain), strict=True)
    ]
    torch.testing.assert_close(*all_gradients, rtol=0, atol=1e-11)


def test_plain_form_is_equation_1_written_out() -> None:
    q, k, v = torch.randn(3, 1, 1, 4, 3, dtype=torch.float64)
    output = softmax_attention(q, k, v, torch.tensor([[True, True, False, True]]))
    for row in range(4):
        weights = [
            0 if key == 2 else torch.exp((q[0, 0, row] * k[0, 0, key]).sum() / 3**0.5)
            for key in range(4)
        ]
        expected = sum(w * v[0, 0, key] for key, w in enumerate(weights)) / sum(weights)
        torch.testing.assert_close(output[0, 0, row], expected)


def test_dropout_drops_weights_in_training_only() -> None:
    shape = AttentionShape(dim=8, heads=2, head_dim=4, max_length=16, dropout=0.5)
    x = torch.randn(1, 9, 8)
    for fused in (True, False):
        attention = Softmax(shape, fused=fused)
        assert not torch.equal(attention(x), attention(x))
        attention.eval()
        assert torch.equal(attention(x), attention(x))
