"""MRA attention against published values, a dense form, softmax, and a selection in loops."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from itertools import compress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import mra_blocks, threads
from models.heads import AttentionShape
from models.mra import (
    MRA,
    MRASparse,
    Selection,
    gathered_attention,
    mra_attention,
    mra_attention_reference,
    select_blocks,
    tile_order,
)
from models.mra_blocks import attend_blocks, head_blocks, to_blocks
from models.softmax import softmax_attention

MODES = ("full", "sparse")
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def inputs(
    batch: int = 2, heads: int = 2, length: int = 100, width: int = 7, seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    shape = (3, batch, heads, length, width)
    return [x.to(dtype) for x in torch.randn(shape, generator=generator, dtype=torch.float64)]


def attend(q, k, v, mask, *, mode="full", **options) -> Tensor:
    return mra_attention(q, k, v, mask, Selection(**options), mode)


def select(q, k, mask, **options) -> Tensor:
    return select_blocks(q, k, mask, Selection(**options))


def holes(batch: int, length: int, seed: int = 0) -> Tensor:
    """Mask a third of the tokens, a whole block of 16, and the last sequence."""
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) > 1 / 3
    mask[:, 16:32] = False
    mask[-1] = False
    return mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 16, 45])
def test_blocks_are_the_same_whether_taken_at_once_or_head_by_head(
    length: int, masked: bool
) -> None:
    x = torch.randn(3, length, 2, 5).transpose(1, 2)
    mask = holes(3, length) if masked else None
    if mask is not None:
        x[~mask[:, None].expand(3, 2, length)] = torch.inf
    whole = to_blocks(x, 16, mask)
    assert whole.shape == (6, -(-length // 16), 16, 5) and whole.isfinite().all()
    for start, stop in ((0, 6), (1, 4)):
        assert torch.equal(head_blocks(x, start, stop, 16, mask), whole[start:stop])


def test_a_different_default_device_changes_nothing() -> None:
    q, k, v = inputs(length=45)
    want = attend(q, k, v, None, num_blocks=4, block_size=16)
    with torch.device("meta"):
        assert torch.equal(attend(q, k, v, None, num_blocks=4, block_size=16), want)


def as_map(pairs: Tensor, length: int, block_size: int) -> Tensor:
    """Turn pairs `(B, H, M)` into the map `(B, H, X, Y)`."""
    blocks = -(-length // block_size)
    selected = torch.zeros(*pairs.shape[:2], blocks**2, dtype=torch.bool)
    return selected.scatter(2, pairs, True).unflatten(2, (blocks, blocks))


def with_gradients(function, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """Return the output and the gradients of q, k and v for one fixed gradient of the output."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    out = function(q, k, v)
    towards = torch.randn(
        out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), towards.to(out.dtype))]


def selection_in_loops(
    q: Tensor, k: Tensor, mask: Tensor, *, num_blocks: int, block_size: int, first_blocks: int,
    diagonal_blocks: int, row_max: str,
) -> list[float]:  # fmt: skip
    """Score one head, `(N, K)` each, by the definition; lengths are multiples of the block."""
    blocks = len(q) // block_size
    rows = [slice(x * block_size, (x + 1) * block_size) for x in range(blocks)]
    counts = [int(mask[r].sum()) for r in rows]
    scores = []
    for x in range(blocks):
        logits = []
        for y in range(blocks):
            if counts[x] and counts[y]:
                block = (q[rows[x]][mask[rows[x]]] @ k[rows[y]][mask[rows[y]]].T) / len(q[0]) ** 0.5
                logits.append(block.mean().item())
            else:
                logits.append(0.0)
        real = [c > 0 for c in counts]
        seen = logits if row_max == "official" else list(compress(logits, real))
        top = max(seen) if seen and counts[x] else 0.0
        for y in range(blocks):
            score = logits[y] - top - 1e4 * (counts[x] * counts[y] == 0)
            score += 5e3 * (diagonal_blocks > 0 and abs(x - y) <= diagonal_blocks // 2)
            scores.append(score + 5e3 * (x < first_blocks) + 5e3 * (y < first_blocks))
    return scores


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", ["none", "pad"])
@pytest.mark.parametrize("prior", [0, 1])
def test_outputs_match_those_of_the_published_code(mode, padding, prior, dtype, within):
    values = np.load(GOLDEN / "mra.npz")
    want = torch.from_numpy(values[f"{padding}/{mode}/first{prior}_diagonal{prior}"])
    q, k, v = (torch.from_numpy(values[name]).to(dtype) for name in "qkv")
    mask = torch.from_numpy(values["pad"]) if padding == "pad" else None
    given = {"first_blocks": prior, "diagonal_blocks": prior, "block_size": 8, "num_blocks": 5}
    out = attend(q, k, v, mask, mode=mode, **given)
    assert (out - want).abs().max() < within
    selected = as_map(select(q, k, mask, **given), 24, 8)
    out = mra_attention_reference(q, k, v, mask, selected, mode=mode, block_size=8)
    assert (out - want).abs().max() < within
    # A different selection would give different values.
    other = mra_attention_reference(q, k, v, mask, selected.flip(-1), mode=mode, block_size=8)
    assert (other - want).abs().max() > 1e-3


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_every_form_has_the_output_and_the_gradients_of_the_dense_one(data):
    length = data.draw(st.integers(1, 90), "length")
    block_size = data.draw(st.sampled_from([1, 3, 8, 16, 32]), "block_size")
    width = data.draw(st.sampled_from([1, 5, 16]), "width")
    budget = data.draw(st.integers(1, (-(-length // block_size)) ** 2 + 3), "num_blocks")
    seed = data.draw(st.integers(0, 99), "seed")
    full = data.draw(st.booleans(), "full")
    q, k, v = inputs(3, 2, length, width, seed)
    # All logits negative: a case that an unshifted softmax or a maximum over padding gets wrong.
    if data.draw(st.booleans(), "negative"):
        q, k = 4 * q.abs(), -4 * k.abs()
    kind = data.draw(st.sampled_from(["none", "holes", "lengths"]), "mask")
    mask = holes(3, length, seed) if kind == "holes" else None
    if kind == "lengths":
        mask = torch.arange(length) < torch.tensor([[length], [length // 2], [0]])
    pairs = select(q, k, mask, num_blocks=budget, block_size=block_size, first_blocks=1)
    selected, mode = as_map(pairs, length, block_size), MODES[not full]

    def dense(q, k, v):
        return mra_attention_reference(q, k, v, mask, selected, mode=mode, block_size=block_size)

    want = with_gradients(dense, q, k, v)
    assert all(x.isfinite().all() for x in want)
    for form in (attend_blocks, gathered_attention):
        got = with_gradients(lambda *x: form(*x, mask, pairs, block_size, full), q, k, v)  # noqa: B023
        for x, y in zip(got, want, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_float32_and_strided_inputs_agree_with_the_dense_form(mode):
    q, k, v = inputs(3, 2, 333, 32, dtype=torch.float32)
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    mask = holes(3, 333)
    options = {"num_blocks": 50, "first_blocks": 1, "diagonal_blocks": 1}
    selected = as_map(select(q, k, mask, **options), 333, 32)
    got = with_gradients(lambda *x: attend(*x, mask, mode=mode, **options), q, k, v)
    want = with_gradients(lambda *x: mra_attention_reference(*x, mask, selected, mode=mode),
                          *(x.double() for x in (q, k, v)))  # fmt: skip
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=0, atol=1e-5)


def test_taking_a_few_heads_at_a_time_selects_the_same_pairs(monkeypatch):
    q, k, _ = inputs(3, 2, 200, 5)
    mask = holes(3, 200)
    want = select(q, k, mask, num_blocks=60, block_size=8)
    monkeypatch.setattr(mra_blocks, "BLOCKS_A_SLICE", 25)
    few = select(q, k, mask, num_blocks=60, block_size=8)
    assert torch.equal(as_map(few, 200, 8), as_map(want, 200, 8))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_heads_made_of_whole_blocks_give_the_same_bits_as_heads_that_must_be_copied(mode, dtype):
    whole = inputs(2, 2, 128, 32, dtype=dtype)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in whole]
    everything = torch.ones(2, 128, dtype=torch.bool)
    run = lambda mask: lambda *x: attend(*x, mask, num_blocks=6, mode=mode)  # noqa: E731
    want = with_gradients(run(None), *whole)
    for heads, mask in ((strided, None), (whole, everything), (strided, everything)):
        for x, y in zip(with_gradients(run(mask), *heads), want, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_match_finite_differences(mode):
    q, k, v = (x.requires_grad_() for x in inputs(1, 2, 11, 3))
    mask = torch.arange(11) < torch.tensor([[10]])
    function = lambda *x: attend(*x, mask, num_blocks=5, mode=mode, block_size=4)  # noqa: E731
    assert torch.autograd.gradcheck(function, (q, k, v))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("masked", [False, True])
def test_a_budget_for_the_whole_map_gives_softmax_attention(mode, masked):
    q, k, v = inputs(2, 3, 101, 9)
    mask = holes(2, 101) if masked else None
    got = with_gradients(lambda *x: attend(*x, mask, num_blocks=999, mode=mode), q, k, v)
    want = with_gradients(lambda *x: softmax_attention(*x, mask), q, k, v)
    if mask is not None:
        want[0] = want[0] * mask[:, None, :, None]
        plain = lambda *x: softmax_attention(*x, mask) * mask[:, None, :, None]  # noqa: E731
        want = with_gradients(plain, q, k, v)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_masked_tokens_change_nothing_and_get_no_gradient(mode):
    q, k, v = inputs(3, 2, 75, 6)
    mask = holes(3, 75)
    hidden = ~mask[:, None, :, None]
    run = lambda *x: attend(*x, mask, num_blocks=9, mode=mode, block_size=16)  # noqa: E731
    want = with_gradients(run, q, k, v)
    got = with_gradients(run, *(x.masked_fill(hidden, torch.inf) for x in (q, k, v)))
    for x, y in zip(got, want, strict=True):
        assert torch.equal(x, y)
        assert (x.masked_select(hidden) == 0).all()
        assert x.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", "qkv")
@pytest.mark.parametrize("where", [slice(3, 4), slice(16, None)])
def test_values_that_are_not_finite_appear_wherever_the_plain_form_has_them(mode, which, where):
    heads = dict(zip("qkv", inputs(1, 1, 256, 16, dtype=torch.float32), strict=True))
    pairs = select(heads["q"], heads["k"], None, num_blocks=4, block_size=16)
    heads[which][:, :, where] = torch.nan
    results = [
        with_gradients(lambda *x: form(*x, None, pairs, 16, mode == "full"), *heads.values())  # noqa: B023
        for form in (attend_blocks, gathered_attention)
    ]
    for name, got, want in zip(("out", "q", "k", "v"), *results, strict=True):
        assert not (got.isfinite() & ~want.isfinite()).any(), name
    # MRA-2-s may not have selected the block.
    assert mode == "sparse" or not results[0][0].isfinite().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(0, 2, 40, 8), (2, 2, 0, 8)])
def test_empty_inputs_give_empty_outputs_and_gradients(mode, shape):
    q, k, v = (x.requires_grad_() for x in torch.randn(3, *shape))
    out = attend(q, k, v, None, num_blocks=4, mode=mode)
    assert out.shape == shape
    assert [x.shape for x in torch.autograd.grad(out.sum(), (q, k, v))] == 3 * [shape]


def test_second_derivatives_are_refused_with_a_hint_on_how_to_get_them():
    q, k, v = (x.requires_grad_() for x in inputs(1, 1, 20, 3))
    out = attend(q, k, v, None, num_blocks=2, block_size=8)
    (grad,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="gathered_attention"):
        grad.sum().backward()


def test_shapes_that_would_reach_out_of_bounds_are_refused_by_the_operator_itself():
    q, k, v = torch.randn(1, 1, 40, 8), torch.randn(1, 1, 40, 8), torch.randn(1, 1, 40, 600)
    pairs = torch.tensor([[[0, 3]]])
    for wrong in ((q, k, v, None), (q, k[:, :, :7], k, None)):
        with pytest.raises(AssertionError):
            attend_blocks(*wrong, pairs, 32, True)


@pytest.mark.slow
def test_the_kernel_stays_inside_its_arrays(tmp_path):
    # Numba checks every index if asked to, and such code needs a cache of its own.
    checked = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    code = """
import torch
from models.mra import Selection, mra_attention
for mode in ("full", "sparse"):
    for length, block_size, width in ((75, 13, 5), (64, 32, 32), (3, 16, 1)):
        q, k, v = (x.requires_grad_() for x in torch.randn(3, 2, 2, length, width))
        for mask in (None, torch.rand(2, length) > 0.4):
            selection = Selection(num_blocks=9, block_size=block_size)
            mra_attention(q, k, v, mask, selection, mode).sum().backward()
"""
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], env=checked, cwd=root, check=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row_max", ["official", "live"])
def test_trimmed_sequences_give_the_same_as_padded_ones(mode, row_max):
    q, k, v = inputs(2, 2, 128, 8)
    # Negative logits only: the padding's logit 0 is then every row's official maximum.
    q, k = q.abs(), -k.abs()
    mask = torch.arange(128) < torch.tensor([[37], [48]])
    options = {"num_blocks": 8, "mode": mode, "block_size": 16, "row_max": row_max}
    options |= {"first_blocks": 1, "padded_length": 128}
    padded = attend(q, k, v, mask, **options)[:, :, :48]
    trimmed = attend(*(x[:, :, :48] for x in (q, k, v)), mask[:, :48], **options)
    torch.testing.assert_close(trimmed, padded, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "priors",
    [
        {"num_blocks": 9},
        {"num_blocks": 16, "diagonal_blocks": 1},
        {"num_blocks": 24, "first_blocks": 1},
    ],
)
def test_a_short_budget_is_spent_alike_however_much_padding_there_is(priors):
    # Equally good blocks compete for it: the best ones of all rows.
    q, k, v = inputs(4, 4, 256, 8)
    mask = (torch.arange(256) < 160).expand(4, -1)
    options = {"block_size": 16, "padded_length": 256, **priors}
    assert Selection(**options).needed > options["num_blocks"]
    padded = attend(q, k, v, mask, **options)[:, :, :160]
    trimmed = attend(*(x[:, :, :160] for x in (q, k, v)), mask[:, :160], **options)
    torch.testing.assert_close(trimmed, padded, rtol=1e-12, atol=1e-12)


@given(rows=st.integers(1, 12), first=st.integers(0, 4), diagonal=st.integers(0, 7))
def test_the_budget_that_is_needed_counts_preferred_pairs_and_one_more_for_each_row(
    rows, first, diagonal
):
    reach = diagonal // 2 if diagonal else -1
    pairs = itertools.product(range(rows), repeat=2)
    preferred = sum(min(x, y) < first or abs(x - y) <= reach for x, y in pairs)
    options = {"first_blocks": first, "diagonal_blocks": diagonal, "block_size": 4}
    selection = Selection(num_blocks=1, padded_length=4 * rows, **options)
    assert selection.needed == min(rows + preferred, rows**2)


def test_padding_counts_only_in_the_official_row_maximum():
    q, k, v = inputs(1, 1, 64, 8)
    q, k = q.abs() * torch.arange(1, 65)[:, None], -k.abs()
    options = {"num_blocks": 4, "block_size": 16}
    unlike = select(q, k, None, padded_length=80, **options)
    like = select(q, k, None, padded_length=64, **options)
    live = select(q, k, None, row_max="live", padded_length=80, **options)
    assert as_map(like, 64, 16).any(-1).all()
    assert torch.equal(as_map(like, 64, 16), as_map(live, 64, 16))
    assert not as_map(unlike, 64, 16).any(-1).all()


@settings(deadline=None, max_examples=40)
@given(
    budget=st.integers(1, 40), first=st.integers(0, 2), diagonal=st.integers(0, 4),
    row_max=st.sampled_from(["official", "live"]), negative=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_selected_pairs_have_the_best_scores(budget, first, diagonal, row_max, negative, seed):
    q, k, _ = inputs(3, 2, 48, 5, seed)
    if negative:
        q, k = q.abs(), -k.abs()
    mask = holes(3, 48, seed)
    options = {"num_blocks": budget, "block_size": 8, "first_blocks": first}
    options |= {"diagonal_blocks": diagonal, "row_max": row_max}
    pairs = select(q, k, mask, **options)
    assert pairs.shape == (3, 2, min(budget, 36))
    for b in range(3):
        for h in range(2):
            scores = np.array(selection_in_loops(q[b, h], k[b, h], mask[b], **options))
            chosen = pairs[b, h].tolist()
            assert len(set(chosen)) == len(chosen)
            # With equal scores the sets may differ, so the scores themselves are compared.
            best = np.sort(scores)[::-1][: len(chosen)]
            np.testing.assert_allclose(np.sort(scores[chosen])[::-1], best, atol=1e-9)


def test_a_budget_for_rows_and_priors_gives_every_row_a_live_block():
    q, k, _ = inputs(4, 2, 96, 5)
    q, k = q.abs(), -k.abs()
    mask = torch.arange(96) < torch.tensor([[96], [70], [41], [8]])
    pairs = select(
        q, k, mask, num_blocks=12 + 34, block_size=8, first_blocks=1, diagonal_blocks=1,
        row_max="live",
    )  # fmt: skip
    alive = mask.view(4, 1, 12, 8).any(-1)
    chosen = as_map(pairs, 96, 8) & alive[..., None, :]
    assert (chosen.any(-1) | ~alive).all()


def test_constant_values_stay_unchanged():
    q, k, _ = inputs(2, 2, 70, 6)
    v = torch.full_like(q, 3.25)
    mask = holes(2, 70)
    real = mask[:, None, :, None].expand_as(v)
    full = attend(q, k, v, mask, num_blocks=4, block_size=8)
    torch.testing.assert_close(full[real], v[real])
    sparse = attend(q, k, v, mask, num_blocks=4, block_size=8, mode="sparse")
    reached = sparse.abs().sum(-1, keepdim=True).expand_as(v) > 0
    assert reached.any() and not reached.all()
    torch.testing.assert_close(sparse[reached], v[reached])


def test_identical_tokens_give_their_value_although_all_scores_tie():
    q = torch.ones(1, 2, 64, 4, dtype=torch.float64, requires_grad=True)
    for mode, budget in (("full", 3), ("full", 1), ("sparse", 16)):
        out = attend(q, q, q, None, num_blocks=budget, mode=mode, block_size=8)
        if mode == "full":
            torch.testing.assert_close(out, q)
        assert torch.autograd.grad(out.sum(), q)[0].isfinite().all()


def test_blocks_of_equal_tokens_make_mra_2_exact_for_any_budget():
    q, k, v = inputs(2, 2, 8, 6)
    q, k = q.repeat_interleave(8, 2), k.repeat_interleave(8, 2)
    v = v.repeat_interleave(8, 2) + torch.randn(2, 2, 64, 6, dtype=torch.float64)
    want = softmax_attention(q, k, v, None)
    for budget in (1, 9, 30):
        out = attend(q, k, v, None, num_blocks=budget, block_size=8)
        torch.testing.assert_close(out, want, rtol=1e-10, atol=1e-10)


def test_permuting_batch_heads_blocks_or_tokens_inside_a_block_permutes_the_output():
    q, k, v = inputs(3, 2, 64, 6)
    run = lambda *x: attend(*x, None, num_blocks=20, block_size=8)  # noqa: E731
    want = run(q, k, v)
    starts, steps = 8 * torch.arange(8)[:, None], torch.arange(8)
    orders = [
        (0, torch.tensor([2, 0, 1])),
        (1, torch.tensor([1, 0])),
        (2, (starts.flip(0) + steps).flatten()),
        (2, (starts + steps.flip(0)).flatten()),
    ]
    for dim, order in orders:
        got = run(*(x.index_select(dim, order) for x in (q, k, v)))
        torch.testing.assert_close(got, want.index_select(dim, order), rtol=1e-10, atol=1e-10)


def test_unselected_keys_get_a_gradient_only_from_mra_2():
    q, k, v = inputs(1, 1, 64, 6)
    pairs = torch.tensor([[[0, 9, 18, 27, 36, 45, 54, 62]]])
    for full in (True, False):
        run = lambda *x: attend_blocks(*x, None, pairs, 8, full)  # noqa: B023, E731
        _, _, grad_k, grad_v = with_gradients(run, q, k, v)
        for grad in (grad_k, grad_v):
            assert bool((grad[:, :, 56:] != 0).any()) == full


def test_the_error_against_softmax_falls_with_the_budget_and_is_smaller_with_the_means():
    errors = {mode: [] for mode in MODES}
    for mode in MODES:
        for budget in (1, 4, 8, 16):
            shares = []
            for seed in range(6):
                q, k, v = inputs(1, 2, 512, 32, seed)
                want = softmax_attention(q, k, v, None)
                out = attend(q, k, v, None, num_blocks=budget * 16, mode=mode)
                shares.append(((out - want).norm() / want.norm()).item())
            errors[mode].append(np.mean(shares))
    for mode in MODES:
        assert errors[mode] == sorted(errors[mode], reverse=True)
        assert errors[mode][-1] < 1e-12
    assert all(f < s for f, s in zip(errors["full"][:3], errors["sparse"][:3], strict=True))


def test_a_wrong_argument_is_named():
    q, k, v = inputs(1, 1, 8, 4)
    wrong = [
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"mode": "both"}, "mode=both"),
        ({"row_max": "dead"}, "row_max=dead"),
        ({"block_size": 0}, "block_size=0"),
        ({"first_blocks": -1}, "first_blocks=-1"),
        ({"diagonal_blocks": -1}, "diagonal_blocks=-1"),
        ({"padded_length": 7}, "padded_length=7"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            attend(q, k, v, None, **{"num_blocks": 4} | options)
    with pytest.raises(ValueError, match="mask must be bool"):
        attend(q, k, v, torch.ones(1, 8), num_blocks=4)
    with pytest.raises(ValueError, match="the same shape"):
        attend(q, k[:, :, :4], v, None, num_blocks=4)


def shape_of(max_length: int, **options) -> AttentionShape:
    return AttentionShape(dim=12, heads=2, head_dim=5, max_length=max_length, **options)


@pytest.mark.parametrize("backend", [MRA, MRASparse])
def test_backends_give_the_same_for_trimmed_batches_as_for_padded_ones(backend):
    torch.manual_seed(0)
    module = backend(shape_of(100), blocks_per_row=2, block_size=8, first_blocks=1).double()
    x = torch.randn(3, 100, 12, dtype=torch.float64)
    mask = torch.arange(100) < torch.tensor([[50], [33], [7]])
    padded = module(x, mask)
    trimmed = module(x[:, :50], mask[:, :50])
    assert module.selection.num_blocks == 26 and module.pad_invariant
    torch.testing.assert_close(trimmed[mask[:, :50]], padded[mask], rtol=1e-10, atol=1e-10)


def test_the_sparse_backend_is_the_sparse_mode():
    torch.manual_seed(0)
    full, sparse = (x(shape_of(64), blocks_per_row=1, block_size=8) for x in (MRA, MRASparse))
    sparse.load_state_dict(full.state_dict())
    x = torch.randn(2, 64, 12)
    heads = attend(*sparse.projections.split(x), None, num_blocks=8, mode="sparse", block_size=8)
    torch.testing.assert_close(sparse(x), sparse.projections.merge(heads))
    assert not torch.allclose(full(x), sparse(x))


def test_tile_t_of_an_image_is_block_t_of_the_sequence():
    order = tile_order((8, 16), (4, 8)).view(4, 32)
    image = torch.arange(8 * 16).view(8, 16)
    corners = [(0, 0), (0, 8), (4, 0), (4, 8)]
    for block, (row, column) in zip(order, corners, strict=True):
        assert torch.equal(block, image[row : row + 4, column : column + 8].flatten())


def test_an_image_is_attended_to_in_tiles_and_returned_row_by_row():
    torch.manual_seed(0)
    options = {"blocks_per_row": 1, "block_size": 8, "tile": (2, 4)}
    module = MRA(shape_of(6 * 8), input_shape=(6, 8), **options).double()
    x = torch.randn(2, 48, 12, dtype=torch.float64)
    mask = torch.rand(2, 48) > 0.2
    order = tile_order((6, 8), (2, 4))
    plain = MRA(shape_of(48), blocks_per_row=1, block_size=8).double()
    plain.load_state_dict(module.state_dict())
    want = torch.empty_like(x)
    want[:, order] = plain(x[:, order], mask[:, order])
    torch.testing.assert_close(module(x, mask), want)
    assert not module.pad_invariant


def test_tiles_that_do_not_fit_are_named():
    for options, message in (
        ({"input_shape": (8, 8), "block_size": 16}, "tile=.4, 8.: must have block_size=16"),
        ({"input_shape": (8, 12)}, "input_shape=.8, 12.: must divide into whole tiles"),
        ({"input_shape": (8, 16)}, "max_length=64"),
    ):
        with pytest.raises(ValueError, match=message):
            MRA(shape_of(64), **options)


def test_a_budget_too_small_for_rows_and_priors_is_logged(caplog):
    MRA(shape_of(512), blocks_per_row=3, first_blocks=1)
    MRA(shape_of(512), blocks_per_row=4, first_blocks=1, diagonal_blocks=1)
    MRA(shape_of(64), blocks_per_row=2, first_blocks=1)
    assert not caplog.records
    MRA(shape_of(512), blocks_per_row=2, first_blocks=1)
    assert "blocks_per_row=3 would be enough" in caplog.text


def test_two_threads_give_the_same_bits_as_one_and_affect_no_other_thread(two_threads):
    q, k, v = inputs(2, 2, mra_blocks.SHORT + 44, 32, dtype=torch.float32)
    run = lambda *x: attend(*x, None, num_blocks=40)  # noqa: E731
    first = with_gradients(run, q, k, v)
    for _ in range(3):
        for x, y in zip(with_gradients(run, q, k, v), first, strict=True):
            assert torch.equal(x, y)
    # The operator's own threads use one core each; other threads must not be affected.
    seen = []
    fresh = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    fresh.start()
    fresh.join()
    assert torch.get_num_threads() == 2 and seen == [2]
    inner = threads._workers(os.getpid(), 2).map(lambda _: torch.get_num_threads(), range(4))
    assert list(inner) == [1, 1, 1, 1]
    torch.set_num_threads(1)
    for x, y in zip(with_gradients(run, q, k, v), first, strict=True):
        assert torch.equal(x, y)


def test_inference_mode_works_with_threads(two_threads):
    q, k, v = inputs()
    want = attend(q, k, v, None, num_blocks=6)
    with torch.inference_mode():
        assert torch.equal(attend(q, k, v, None, num_blocks=6), want)


def test_an_error_in_a_thread_reaches_the_caller(two_threads):
    def fail(start: int, stop: int) -> None:
        raise RuntimeError(f"heads {start} to {stop}")

    with pytest.raises(RuntimeError, match="heads 0 to"):
        threads.over_heads(fail, 4, 2)


@pytest.mark.parametrize("mode", MODES)
def test_autocast_changes_only_the_type_of_the_output(mode):
    q, k, v = (x.bfloat16() for x in inputs(2, 2, 70, 8, dtype=torch.float32))
    want = attend(q.float(), k.float(), v.float(), None, num_blocks=5, mode=mode)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v, None, num_blocks=5, mode=mode)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, want.bfloat16())


@pytest.mark.parametrize("full", [True, False])
def test_the_operator_follows_the_rules_of_torch(full):
    q, k, v = (x.requires_grad_() for x in inputs(2, 1, 20, 3))
    mask = torch.arange(20) < torch.tensor([[20], [13]])
    pairs = torch.tensor([[[0, 5]], [[1, 2]]])
    torch.library.opcheck(mra_blocks._attend, (q, k, v, mask, pairs, 8, full))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
# The compiler's own modules use deprecated parts of torch.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_backends_form_one_graph_and_give_the_same_numbers():
    torch.manual_seed(0)
    module = MRA(shape_of(96), blocks_per_row=2, block_size=8, first_blocks=1)
    x = torch.randn(2, 96, 12)
    mask = torch.arange(96) < torch.tensor([[96], [50]])
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(x, mask), module(x, mask), rtol=0, atol=1e-5)
    grads = []
    for run in (compiled, module):
        module.zero_grad()
        run(x, mask).square().sum().backward()
        grads.append([p.grad.clone() for p in module.parameters()])
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_cuda_device_gives_the_same_results_as_the_cpu(mode, dtype, tolerance):
    q, k, v = (x.to(dtype) for x in inputs(3, 2, 333, 32, dtype=torch.float32))
    mask = holes(3, 333)
    run = lambda mask: lambda *x: attend(*x, mask, num_blocks=50, mode=mode)  # noqa: E731
    want = with_gradients(run(mask), q, k, v)
    q, k, v = (x.cuda().requires_grad_() for x in (q, k, v))
    out = run(mask.cuda())(q, k, v)
    towards = torch.randn(
        out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )
    got = [out, *torch.autograd.grad(out, (q, k, v), towards.to(out))]
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x.cpu(), y, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_the_benchmark_measures_and_writes_its_results(tmp_path):
    out = tmp_path / "mra.json"
    script = Path(__file__).parent.parent / "scripts" / "bench_mra.py"
    subprocess.run(
        [sys.executable, script, "--lengths", "128", "256", "--threads", "1", "--repeats", "2",
         "--memory-length", "256", "--out", out],
        check=True,
    )  # fmt: skip
    record = json.loads(out.read_text())
    assert [row["length"] for row in record["speed"]] == [128, 256]
    assert set(record["memory_mib"]) == {"mra", "sdpa", "materialised"}
