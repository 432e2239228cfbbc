import copy
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.encoder import Classifier
from models.heads import AttentionShape, masked_softmax
from models.reformer import (
    Reformer,
    bucket_factors,
    hash_buckets,
    lsh_attention,
    lsh_attention_reference,
    random_rotations,
)
from models.sizes import ModelConfig

SHAPE = AttentionShape(dim=16, heads=2, head_dim=8, max_length=64)


def tokens(length: int) -> list[Tensor]:
    return [torch.randn(3, 2, length, 5, dtype=torch.float64).requires_grad_() for _ in range(2)]


def mask_with_holes(length: int) -> Tensor:
    mask = torch.rand(3, length) < 0.6
    mask[1] = torch.arange(length) == length // 2
    mask[2] = False
    return mask


def hashed(qk: Tensor, num_buckets: int, rounds: int = 3) -> Tensor:
    size = (qk.shape[1], qk.shape[-1], rounds, num_buckets // 2)
    return hash_buckets(qk, random_rotations(size, seed=4), (num_buckets,))


def attention_without_self(qk: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend softly to all other real tokens, with keys of unit length."""
    keys = qk / qk.norm(dim=-1, keepdim=True)
    others = mask[:, None, None, :] & ~torch.eye(qk.shape[-2], dtype=torch.bool)
    return masked_softmax(qk @ keys.mT, others) @ v


@pytest.mark.parametrize("length", [1, 4, 13, 30])
@pytest.mark.parametrize("chunk_length", [1, 3, 5, 64])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_chunked_and_dense_forms_agree_in_values_and_all_gradients(
    length: int, chunk_length: int, rounds: int, masked: bool
) -> None:
    inputs = tokens(length)
    mask = mask_with_holes(length) if masked else None
    buckets = hashed(inputs[0], 6, rounds)
    results = [
        form(*inputs, mask, buckets, chunk_length)
        for form in (lsh_attention, lsh_attention_reference)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(result.square().sum(), inputs) for result in results]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


@pytest.mark.parametrize("factors", [(2,), (8,), (2, 4), (4, 6)])
def test_the_bucket_is_the_direction_or_opposite_with_the_greatest_product(
    factors: tuple[int, ...],
) -> None:
    qk = torch.randn(2, 3, 9, 5, dtype=torch.float64)
    rotations = random_rotations((3, 5, 4, sum(factors) // 2), seed=1)
    buckets = hash_buckets(qk, rotations, factors)
    assert buckets.shape == (4, 2, 3, 9)
    for r, b, h, n in torch.cartesian_prod(*(torch.arange(s) for s in buckets.shape)).tolist():
        expected, first = 0, 0
        for factor in factors:
            directions = rotations[h, :, r, first : first + factor // 2].double()
            products = qk[b, h, n] @ torch.cat([directions, -directions], -1)
            expected = expected * factor + int(products.argmax())
            first += factor // 2
        assert buckets[r, b, h, n] == expected


def test_the_norm_of_a_token_does_not_affect_its_bucket() -> None:
    qk = torch.randn(1, 2, 40, 5, dtype=torch.float64)
    scales = torch.rand(1, 2, 40, 1) + 0.01
    assert torch.equal(hashed(qk, 8), hashed(scales * qk, 8))


def test_near_tokens_share_a_bucket_more_often_than_distant_ones() -> None:
    base = torch.randn(1, 1, 1, 32)
    near, far = base + 0.1 * torch.randn(1, 1, 1, 32), torch.randn(1, 1, 1, 32)
    rotations = random_rotations((1, 32, 500, 8), seed=0)
    of = hash_buckets(torch.cat([base, near, far], -2), rotations, (16,))[:, 0, 0]
    meets_near = (of[:, 0] == of[:, 1]).double().mean()
    meets_far = (of[:, 0] == of[:, 2]).double().mean()
    assert meets_near > 0.7
    # Chance among 16 buckets, four standard errors, and what little the two have in common.
    assert meets_far < 0.15


def test_a_single_chunk_attends_to_all_other_tokens_in_any_number_of_rounds() -> None:
    qk, v = tokens(23)
    mask = torch.rand(3, 23) < 0.6
    expected = attention_without_self(qk, v, mask)
    for rounds in (1, 4):
        output = lsh_attention(qk, v, mask, hashed(qk, 8, rounds), 23)
        # The keys' epsilon makes the difference.
        torch.testing.assert_close(output, expected, rtol=0, atol=2e-5)


def test_two_chunks_in_one_bucket_keep_the_order_of_positions() -> None:
    qk, v = tokens(12)
    everywhere = torch.ones(3, 6, dtype=torch.bool)
    output = lsh_attention(qk, v, None, torch.zeros(1, 3, 2, 12, dtype=torch.int64), 6)
    first = attention_without_self(qk[..., :6, :], v[..., :6, :], everywhere)
    torch.testing.assert_close(output[..., :6, :], first, rtol=0, atol=2e-5)
    # The second chunk reaches the first one, hence everything.
    everywhere = torch.ones(3, 12, dtype=torch.bool)
    second = attention_without_self(qk, v, everywhere)[..., 6:, :]
    torch.testing.assert_close(output[..., 6:, :], second, rtol=0, atol=2e-5)


def test_tokens_reach_their_own_chunk_and_the_one_before_in_bucket_order() -> None:
    # Sorted by bucket: 1 3 | 5 0 | 2 4, in chunks of two.
    buckets = torch.tensor([1, 0, 2, 0, 2, 0])[None, None, None]
    reached = {0: {1, 3, 5}, 1: {3}, 2: {5, 0, 4}, 3: {1}, 4: {5, 0, 2}, 5: {1, 3, 0}}
    qk = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    output = lsh_attention(qk, torch.eye(6, dtype=torch.float64)[None, None], None, buckets, 2)
    weights = output[0, 0]
    assert {i: set(row.nonzero().flatten().tolist()) for i, row in enumerate(weights)} == reached
    torch.testing.assert_close(weights.sum(-1), torch.ones(6, dtype=torch.float64))


def test_a_pair_that_meets_in_every_round_counts_in_each() -> None:
    qk, v = tokens(20)
    once = hashed(qk, 8, rounds=1)
    twice = once.expand(2, -1, -1, -1)
    torch.testing.assert_close(
        lsh_attention(qk, v, None, twice, 4), lsh_attention(qk, v, None, once, 4)
    )


def test_a_round_in_which_a_token_is_alone_has_no_weight() -> None:
    qk, v = tokens(2)
    # Chunks of one: in each round the first token in order reaches nothing but itself.
    rounds = torch.tensor([[0, 1], [1, 0]])[:, None, None].expand(2, 3, 2, 2)
    output = lsh_attention(qk, v, None, rounds, 1)
    torch.testing.assert_close(output, v.flip(-2))


def test_a_token_attends_to_itself_only_when_it_is_alone() -> None:
    qk, v = tokens(9)
    alone = torch.arange(9) == 4
    mask = alone.expand(3, 9)
    output = lsh_attention(qk, v, mask, hashed(qk, 8), 4)
    torch.testing.assert_close(output[..., 4, :], v[..., 4, :])
    (own,) = torch.autograd.grad(lsh_attention(qk, v, None, hashed(qk, 8), 4)[..., 4, :].sum(), v)
    assert own[..., 4, :].abs().max() == 0 and own.abs().max() > 0


def test_equal_tokens_average_the_other_tokens_within_reach() -> None:
    qk = torch.ones(1, 1, 9, 4, dtype=torch.float64)
    v = torch.arange(9, dtype=torch.float64).view(1, 1, 9, 1).expand(-1, -1, -1, 4)
    output = lsh_attention(qk, v, None, hashed(qk, 8), 3)[0, 0, :, 0]
    expected = []
    for n in range(9):
        reach = range(max(n // 3 - 1, 0) * 3, n // 3 * 3 + 3)
        expected.append(sum(m for m in reach if m != n) / (len(reach) - 1))
    torch.testing.assert_close(output, torch.tensor(expected, dtype=torch.float64))


def test_a_zero_token_has_finite_gradients() -> None:
    qk, v = tokens(7)
    qk = (qk.detach() * (torch.arange(7) != 3)[:, None]).requires_grad_()
    lsh_attention(qk, v, None, hashed(qk, 4), 3).square().sum().backward()
    assert qk.grad.isfinite().all() and qk.grad[..., 3, :].abs().max() > 0


@pytest.mark.parametrize(
    ("max_length", "chunk_length", "factors"),
    [
        (1024, 64, (32,)),
        (2000, 64, (32,)),
        (4096, 64, (128,)),
        (16384, 64, (16, 32)),
        (40, 64, (2,)),
        (64, 4, (4, 8)),
    ],
)
def test_the_number_of_buckets_is_a_power_of_two_up_to_two_per_chunk(
    max_length: int, chunk_length: int, factors: tuple[int, ...]
) -> None:
    assert bucket_factors(max_length, chunk_length) == factors


def short_chunks(**options: object) -> Reformer:
    torch.manual_seed(1)
    return Reformer(SHAPE, **{"chunk_length": 5, **options}).eval()


def inputs() -> tuple[Tensor, Tensor]:
    x, mask = torch.randn(3, 37, 16), torch.ones(3, 37, dtype=torch.bool)
    mask[0, 29:] = False
    mask[1, 5] = False
    mask[1, 20:] = False
    return x, mask


# The registry's checks use lengths of a single chunk; these have several.
def test_masked_content_neither_leaks_nor_receives_a_gradient_over_several_chunks() -> None:
    backend, (x, mask) = short_chunks(), inputs()
    other = torch.where(mask[..., None], x, 100 * torch.randn_like(x)).requires_grad_()
    output = backend(other, mask)[mask]
    torch.testing.assert_close(output, backend(x, mask)[mask], rtol=0, atol=1e-6)
    output.square().sum().backward()
    assert other.grad[~mask].abs().max() == 0 and other.grad[mask].abs().max() > 0


@pytest.mark.parametrize("more", [1, 3, 19])
def test_more_padding_changes_nothing_over_several_chunks(more: int) -> None:
    backend, (x, mask) = short_chunks(), inputs()
    wide = torch.cat([x, torch.randn(3, more, 16)], 1)
    wide_mask = torch.cat([mask, torch.zeros(3, more, dtype=torch.bool)], 1)
    padded = backend(wide, wide_mask)[:, :37][mask]
    torch.testing.assert_close(padded, backend(x, mask)[mask], rtol=0, atol=2e-6)


def test_the_module_is_the_dense_form_between_its_projections() -> None:
    backend, (x, mask) = short_chunks().double(), inputs()
    x = x.double()
    weight, bias = backend.projections.qkv.weight, backend.projections.qkv.bias
    qk, v = (
        (x @ w.mT + b).view(3, 37, 2, 8).transpose(1, 2)
        for w, b in zip(weight.chunk(2), bias.chunk(2), strict=True)
    )
    buckets = hash_buckets(qk, backend.rotations, backend.factors)
    assert buckets.unique().numel() > 8
    plain = lsh_attention_reference(qk, v, mask, buckets, 5)
    torch.testing.assert_close(backend(x, mask), backend.projections.merge(plain))


def test_bfloat16_autocast_moves_no_token_to_another_bucket() -> None:
    backend, (x, mask) = short_chunks(), inputs()
    exact = backend(x, mask)[mask]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = backend(x, mask)[mask]
    assert (rounded.float() - exact).norm() / exact.norm() < 0.01


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
# The compiler's own modules use features that torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_module_compiles_as_one_graph_over_several_chunks_with_its_gradients() -> None:
    backend, (x, mask) = short_chunks(), inputs()
    compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(backend, fullgraph=True)
    gradients = []
    for form in (compiled, backend):
        backend.zero_grad()
        form(x, mask)[mask].square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in backend.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_the_seed_determines_the_rotations_and_the_state_keeps_them() -> None:
    first, again, other = short_chunks(), short_chunks(), short_chunks(seed=1)
    x, mask = inputs()
    assert torch.equal(first(x, mask), again(x, mask))
    assert not torch.equal(first(x, mask), other(x, mask))
    other.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first(x, mask), other(x, mask))
    assert not first.rotations.requires_grad


def test_heads_and_rounds_have_rotations_of_their_own() -> None:
    rotations = short_chunks().rotations.permute(0, 2, 1, 3).flatten(0, 1)
    assert len(rotations) == 4
    assert len(rotations.flatten(1).unique(dim=0)) == 4


def test_there_is_one_projection_fewer_than_in_softmax() -> None:
    backend = short_chunks()
    # Shared queries and keys, values, and the output, each 16 x 16 with a bias.
    assert sum(p.numel() for p in backend.parameters()) == 3 * (16 * 16 + 16)
    q, k, v = backend.projections.split(torch.randn(1, 3, 16))
    assert q is k and v is not k


def test_dropout_keeps_the_expected_output() -> None:
    qk, v = (t.detach() for t in tokens(14))
    buckets = hashed(qk, 4)
    exact = lsh_attention(qk, v, None, buckets, 4)
    draws = [lsh_attention(qk, v, None, buckets, 4, dropout=0.3) for _ in range(2000)]
    mean = torch.stack(draws).mean(0)
    assert (mean - exact).norm() / exact.norm() < 0.05


def test_flax_initialisation_draws_both_input_projections_by_their_own_width() -> None:
    config = ModelConfig(
        layers=1,
        dim=64,
        heads=2,
        head_dim=8,
        mlp_dim=8,
        max_length=20,
        vocab_size=11,
        classifier_dims=[7],
        embedding_std=1.0,
        initialisation="flax",
    )
    projections = Classifier(config, Reformer, 4).encoder.blocks[0].attention.projections
    # Xavier: a uniform of variance 2 / (inputs + outputs), and each has 16 outputs.
    for kernel in projections.qkv.weight.chunk(2):
        assert kernel.std().item() == pytest.approx((2 / 80) ** 0.5, rel=0.05)
        assert kernel.abs().max().item() <= (6 / 80) ** 0.5


@pytest.mark.parametrize("eval_hashes", [1, 2, 5])
def test_evaluation_may_hash_in_more_or_fewer_rounds(eval_hashes: int) -> None:
    x, mask = inputs()
    attention = short_chunks(num_hashes=2, eval_hashes=eval_hashes)
    plain = {rounds: short_chunks(num_hashes=rounds) for rounds in (2, eval_hashes)}
    for rounds, other in plain.items():
        other.projections.load_state_dict(attention.projections.state_dict())
        other.rotations = attention.rotations[:, :, :rounds]
    torch.testing.assert_close(attention.train()(x, mask), plain[2](x, mask))
    torch.testing.assert_close(attention.eval()(x, mask), plain[eval_hashes](x, mask))
    if eval_hashes != 2:
        assert not torch.allclose(attention.train()(x, mask), attention.eval()(x, mask))
    # Additional rounds leave those of training unchanged.
    assert torch.equal(
        attention.rotations[:, :, :1], short_chunks(num_hashes=2).rotations[:, :, :1]
    )
