import pytest
import torch
from torch import Tensor

from models.heads import AttentionShape
from models.longformer import Longformer, window_attention, window_attention_reference
from models.softmax import softmax_attention


def tokens(length: int) -> list[Tensor]:
    return [torch.randn(3, 2, length, 5, dtype=torch.float64).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("length", [1, 3, 8, 29])
@pytest.mark.parametrize(("window", "num_global"), [(2, 0), (4, 1), (6, 5), (10, 0), (64, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_blockwise_and_dense_forms_agree_in_values_and_all_gradients(
    length: int, window: int, num_global: int, masked: bool
) -> None:
    inputs = tokens(length)
    mask = torch.rand(3, length) < 0.5 if masked else None
    if mask is not None:
        mask[2] = False
    results = [
        form(*inputs, mask, window, range(num_global))
        for form in (window_attention, window_attention_reference)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(result.square().sum(), inputs) for result in results]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


def test_the_dense_form_is_softmax_over_the_window_written_out() -> None:
    q, k, v = torch.randn(3, 1, 1, 7, 3, dtype=torch.float64)
    output = window_attention_reference(q, k, v, None, window=2, places=[0])
    for row, keys in enumerate([range(7), [0, 1, 2], [0, 1, 2, 3], [0, 2, 3, 4], [0, 3, 4, 5]]):
        chosen = list(keys)
        weights = (k[0, 0, chosen] @ q[0, 0, row] / 3**0.5).softmax(0)
        torch.testing.assert_close(output[0, 0, row], weights @ v[0, 0, chosen])


def test_a_window_over_everything_is_softmax_attention() -> None:
    q, k, v = tokens(23)
    mask = torch.rand(3, 23) < 0.6
    torch.testing.assert_close(
        window_attention(q, k, v, mask, window=50, places=[]), softmax_attention(q, k, v, mask)
    )


@pytest.mark.parametrize("length", [1, 8, 29])
@pytest.mark.parametrize("dilation", [1, 2, 5])
@pytest.mark.parametrize("places", [[], [0], [0, 1, 7], [3, 28], [5]])
@pytest.mark.parametrize("masked", [False, True])
def test_dilated_windows_and_global_tokens_anywhere_agree_with_the_dense_form(
    length: int, dilation: int, places: list[int], masked: bool
) -> None:
    inputs = tokens(length)
    mask = torch.rand(3, length) < 0.5 if masked else None
    results = [
        form(*inputs, mask, 4, places, dilation)
        for form in (window_attention, window_attention_reference)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(result.square().sum(), inputs) for result in results]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


def test_the_dense_form_of_a_dilated_window_is_softmax_over_it_written_out() -> None:
    q, k, v = torch.randn(3, 1, 1, 8, 3, dtype=torch.float64)
    output = window_attention_reference(q, k, v, None, window=2, places=[6], dilation=3)
    rows = [[0, 3, 6], [1, 4, 6], [2, 5, 6], [0, 3, 6], [1, 4, 6, 7], [2, 5, 6], range(8)]
    for row, keys in enumerate([*map(list, rows), [4, 6, 7]]):
        weights = (k[0, 0, keys] @ q[0, 0, row] / 3**0.5).softmax(0)
        torch.testing.assert_close(output[0, 0, row], weights @ v[0, 0, keys])


def test_global_positions_join_those_at_the_start() -> None:
    shape = AttentionShape(dim=8, heads=2, head_dim=4, max_length=16)
    assert Longformer(shape, num_global=2, global_positions=(9, 1)).places == (0, 1, 9)
