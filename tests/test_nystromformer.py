import pytest
import torch
from torch import Tensor

from models.heads import AttentionShape
from models.nystromformer import (
    Nystromformer,
    nystrom_attention,
    nystrom_attention_reference,
    pseudo_inverse,
)
from models.softmax import softmax_attention


def tokens(length: int) -> list[Tensor]:
    return [torch.randn(3, 2, length, 5, dtype=torch.float64).requires_grad_() for _ in range(3)]


def mask_with_holes(length: int) -> Tensor:
    mask = torch.rand(3, length) < 0.6
    # Whole segments without a real token, at the end and in between.
    mask[1, 4:12] = False
    mask[2, length // 2 :] = False
    mask[:, 0] = True
    return mask


@pytest.mark.parametrize(("length", "segment"), [(1, 4), (7, 2), (45, 4), (31, 7), (12, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_fast_and_plain_forms_agree_in_values_and_all_gradients(
    length: int, segment: int, masked: bool
) -> None:
    mask = mask_with_holes(length) if masked else None
    inputs = tokens(length)
    results = [
        form(*inputs, mask, segment, 6) for form in (nystrom_attention, nystrom_attention_reference)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(result.square().sum(), inputs) for result in results]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_iteration_converges_to_the_inverse() -> None:
    matrix = (torch.randn(2, 3, 9, 9, dtype=torch.float64) * 3).softmax(-1)
    torch.testing.assert_close(pseudo_inverse(matrix, 40), torch.linalg.inv(matrix))


def test_a_landmark_a_token_is_softmax_attention() -> None:
    # Where tokens attend most to themselves, the matrix is far from singular.
    q, v, noise = torch.randn(3, 2, 2, 13, 13, dtype=torch.float64)
    k = q + 0.1 * noise
    mask = torch.rand(2, 13) < 0.7
    torch.testing.assert_close(
        nystrom_attention(q, k, v, mask, 1, 60), softmax_attention(q, k, v, mask)
    )


def test_convolution_is_the_published_one_over_values_without_padding() -> None:
    shape = AttentionShape(dim=6, heads=2, head_dim=3, max_length=40)
    attention = Nystromformer(shape, landmarks=5, conv=3).double()
    plain = Nystromformer(shape, landmarks=5, conv=None).double()
    plain.load_state_dict({k: v for k, v in attention.state_dict().items() if k != "conv.weight"})
    x = torch.randn(2, 21, 6, dtype=torch.float64)
    mask = torch.rand(2, 21) < 0.7
    values = plain.projections.split(x)[2] * mask[:, None, :, None]
    taps = attention.conv.weight[:, 0, :, 0]
    added = torch.zeros_like(values)
    for offset in (-1, 0, 1):
        moved = torch.zeros_like(values)
        for n in range(21):
            if 0 <= n + offset < 21:
                moved[:, :, n] = values[:, :, n + offset]
        added += taps[:, offset + 1, None, None] * moved
    expected = plain(x, mask) + plain.projections.merge(added) - plain.projections.out.bias
    torch.testing.assert_close(attention(x, mask), expected)


def test_segments_are_those_of_the_padded_length() -> None:
    assert Nystromformer(AttentionShape(dim=4, heads=1, head_dim=4, max_length=4096)).segment == 64
    assert Nystromformer(AttentionShape(dim=4, heads=1, head_dim=4, max_length=50)).segment == 1
