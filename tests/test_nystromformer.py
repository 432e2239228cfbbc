import pytest
import torch
from torch import Tensor

from models.heads import AttentionShape
from models.nystromformer import (
    Nystromformer,
    Segments,
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
        form(*inputs, mask, Segments(length=50, number=-(-50 // segment)), 6)
        for form in (nystrom_attention, nystrom_attention_reference)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(result.square().sum(), inputs) for result in results]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_the_iteration_converges_to_the_inverse() -> None:
    matrix = (torch.randn(2, 3, 9, 9, dtype=torch.float64) * 3).softmax(-1)
    torch.testing.assert_close(pseudo_inverse(matrix, 40), torch.linalg.inv(matrix))


def test_one_landmark_per_token_gives_softmax_attention() -> None:
    # If tokens attend mostly to themselves, the matrix is far from singular.
    q, v, noise = torch.randn(3, 2, 2, 13, 13, dtype=torch.float64)
    k = q + 0.1 * noise
    mask = torch.rand(2, 13) < 0.7
    torch.testing.assert_close(
        nystrom_attention(q, k, v, mask, Segments(length=13, number=13), 60),
        softmax_attention(q, k, v, mask),
    )


def test_the_convolution_is_the_published_one_over_values_without_padding() -> None:
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


def test_the_size_of_segments_follows_from_the_padded_length() -> None:
    assert (
        Nystromformer(AttentionShape(dim=4, heads=1, head_dim=4, max_length=4096)).segments.size
        == 64
    )
    assert (
        Nystromformer(AttentionShape(dim=4, heads=1, head_dim=4, max_length=50)).segments.size == 1
    )


@pytest.mark.parametrize(("length", "number"), [(65, 64), (50, 7), (13, 13), (9, 2)])
def test_an_exact_count_gives_that_many_segments_of_nearly_equal_size(
    length: int, number: int
) -> None:
    exact = Segments(length=length, number=number, exact_count=True).within(length)
    assert len(exact) == number
    assert [n for some in exact for n in some] == [*range(length)]
    assert max(map(len, exact)) - min(map(len, exact)) <= 1
    equal = Segments(length=length, number=number).within(length)
    assert len({len(some) for some in equal[:-1]}) <= 1 and len(equal) <= number
    assert [n for some in equal for n in some] == [*range(length)]


def test_64_landmarks_for_65_tokens_become_33_unless_the_count_is_exact() -> None:
    assert len(Segments(length=65, number=64).within(65)) == 33
    assert len(Segments(length=65, number=64, exact_count=True).within(65)) == 64


@pytest.mark.parametrize("exact_count", [False, True])
@pytest.mark.parametrize("over_padding", [False, True])
@pytest.mark.parametrize("length", [1, 7, 31])
@pytest.mark.parametrize("masked", [False, True])
def test_every_kind_of_segmentation_agrees_with_the_plain_form(
    exact_count: bool, over_padding: bool, length: int, masked: bool
) -> None:
    mask = mask_with_holes(length) if masked else None
    inputs = tokens(length)
    segments = Segments(length=31, number=7, exact_count=exact_count, over_padding=over_padding)
    results = [
        form(*inputs, mask, segments, 6)
        for form in (nystrom_attention, nystrom_attention_reference)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(result.square().sum(), inputs) for result in results]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("landmarks", [20, 64])
def test_as_many_landmarks_as_tokens_give_softmax_attention_if_the_count_is_exact(
    landmarks: int,
) -> None:
    shape = AttentionShape(dim=6, heads=2, head_dim=3, max_length=20)
    attention = Nystromformer(shape, landmarks=landmarks, exact_count=True, conv=None).double()
    x, mask = torch.randn(2, 20, 6, dtype=torch.float64), torch.rand(2, 20) < 0.7
    expected = softmax_attention(*attention.projections.split(x), mask)
    torch.testing.assert_close(attention(x, mask), attention.projections.merge(expected))
