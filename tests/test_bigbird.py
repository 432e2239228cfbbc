import pytest
import torch
from torch import Tensor

from models.bigbird import (
    BigBird,
    Pattern,
    attended_blocks,
    block_attention,
    block_attention_reference,
)
from models.heads import AttentionShape
from models.softmax import softmax_attention


def tokens(length: int) -> list[Tensor]:
    return [torch.randn(3, 2, length, 5, dtype=torch.float64).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("length", [1, 3, 14, 29])
@pytest.mark.parametrize(("size", "random_blocks"), [(3, 2), (4, 0), (2, 40), (32, 2)])
@pytest.mark.parametrize("max_length", [29, 41])
@pytest.mark.parametrize("masked", [False, True])
def test_blockwise_and_dense_forms_agree_in_values_and_all_gradients(
    length: int, size: int, random_blocks: int, max_length: int, masked: bool
) -> None:
    inputs = tokens(length)
    num_blocks = -(-max_length // size)
    pattern = Pattern(*attended_blocks(2, num_blocks, random_blocks, seed=5), size)
    mask = torch.rand(3, length) < 0.5 if masked else None
    if mask is not None:
        mask[2] = False
    results = [
        form(*inputs, mask, pattern) for form in (block_attention, block_attention_reference)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(result.square().sum(), inputs) for result in results]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("random_blocks", [0, 3])
def test_every_row_has_window_ends_and_distinct_random_blocks_as_far_as_they_go(
    num_blocks: int, random_blocks: int
) -> None:
    blocks, counts = attended_blocks(3, num_blocks, random_blocks, seed=0)
    for head in range(3):
        for row in range(num_blocks):
            attended = blocks[head, row, counts[head, row]].tolist()
            always = {row - 1, row, row + 1, 0, num_blocks - 1} & set(range(num_blocks))
            assert len(attended) == len(set(attended))
            assert always <= set(attended) <= set(range(num_blocks))
            left = num_blocks - len(always)
            assert len(attended) - len(always) == min(random_blocks, left)


def test_random_blocks_differ_by_head_and_seed_and_reach_all_blocks_equally() -> None:
    blocks, _ = attended_blocks(200, 20, 3, seed=0)
    assert torch.equal(blocks, attended_blocks(200, 20, 3, seed=0)[0])
    assert not torch.equal(blocks, attended_blocks(200, 20, 3, seed=1)[0])
    assert not torch.equal(blocks[0], blocks[1])
    # Row 10 draws 3 of the 15 blocks outside its window and the ends: each in 40 of 200 heads.
    drawn = blocks[:, 10, 5:].flatten().bincount(minlength=20)
    assert set(drawn.nonzero().flatten().tolist()) == set(range(1, 19)) - {9, 10, 11}
    assert (drawn[drawn > 0] - 40).abs().max() < 5 * (200 * 0.2 * 0.8) ** 0.5


def test_attending_to_all_blocks_is_softmax_attention() -> None:
    q, k, v = tokens(23)
    mask = torch.rand(3, 23) < 0.6
    pattern = Pattern(*attended_blocks(2, 8, 8, seed=0), 3)
    torch.testing.assert_close(
        block_attention(q, k, v, mask, pattern), softmax_attention(q, k, v, mask)
    )


@pytest.mark.parametrize("length", [1, 14, 29])
@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize("ends", [0, 2, 20])
@pytest.mark.parametrize("random_below", [None, 0, 4])
def test_forms_agree_for_every_number_of_window_and_global_blocks(
    length: int, window: int, ends: int, random_below: int | None
) -> None:
    inputs = tokens(length)
    options = {"window": window, "ends": ends, "random_below": random_below}
    pattern = Pattern(*attended_blocks(2, 11, 2, seed=5, **options), 3, ends)
    mask = torch.rand(3, length) < 0.6
    results = [
        form(*inputs, mask, pattern) for form in (block_attention, block_attention_reference)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(result.square().sum(), inputs) for result in results]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


def test_window_global_and_random_blocks_are_as_requested() -> None:
    blocks, counts = attended_blocks(5, 20, 2, seed=0, window=5, ends=2, random_below=12)
    for head in range(5):
        for row in range(20):
            attended = blocks[head, row, counts[head, row]].tolist()
            always = ({*range(row - 2, row + 3)} & {*range(20)}) | {0, 1, 18, 19}
            assert len(attended) == len(set(attended)) and always <= set(attended)
            drawn = set(attended) - always
            assert len(drawn) == 2 and max(drawn) < 12


def test_a_limit_in_tokens_is_applied_in_blocks() -> None:
    shape = AttentionShape(dim=8, heads=2, head_dim=4, max_length=200)
    limited = BigBird(shape, block_size=10, random_blocks=3, random_limit=60)
    free = BigBird(shape, block_size=10, random_blocks=3)
    drawn = limited.blocks[..., 5:][limited.counts[..., 5:]]
    assert drawn.max() == 5 and free.blocks[..., 5:].max() > 5
