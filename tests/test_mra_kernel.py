"""The compiled kernel's products, exponentials and copies against numpy."""

import numba
import numpy as np
import pytest
import torch

from models import compiled, mra_kernel
from models.mra import Mode, mra_attention_reference
from models.mra_blocks import FLOOR

DTYPES = (np.float32, np.float64)


def random(*shape: int, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("size", [(8, 1, 16), (32, 32, 32), (24, 7, 48), (16, 100, 16)])
def test_products_match_numpy_and_touch_nothing_else(dtype, transposed, size):
    m, k, n = size
    a = random(k, m, dtype=dtype).T if transposed else random(m, k, dtype=dtype)
    b = random(k, n, dtype=dtype, seed=1)
    around = random(m + 2, n, dtype=dtype, seed=2)
    before, c = around.copy(), around[1:-1]
    tolerance = 2e-6 if dtype is np.float32 else 1e-14
    compiled.multiply(c, a, b, True)
    want = before[1:-1].astype(float) + a.astype(float) @ b
    np.testing.assert_allclose(c, want, rtol=0, atol=tolerance * (1 + k))
    compiled.multiply(c, a, b, False)
    np.testing.assert_allclose(c, a.astype(float) @ b, rtol=0, atol=tolerance * (1 + k))
    assert (around[[0, -1]] == before[[0, -1]]).all()


def test_shapes_that_do_not_fit_are_refused_before_anything_is_written():
    for m, k, n, depth in ((7, 4, 16, 4), (8, 4, 15, 4), (8, 4, 16, 5)):
        c = np.zeros((m, n), np.float32)
        with pytest.raises(AssertionError):
            compiled.multiply(c, random(m, k), random(depth, n), False)
        assert not c.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two_are_right_to_the_last_bits_and_underflow_to_zero(dtype):
    @numba.njit(fastmath=compiled.FREEDOM)
    def powers(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        for i in range(len(x)):
            y[i] = compiled.exp2(x[i])
        return y

    least = np.finfo(dtype).minexp
    x = np.concatenate([np.linspace(least, 0, 100_003), -np.geomspace(1e-9, 1, 1001)]).astype(dtype)
    want = np.exp2(x.astype(np.longdouble))
    assert np.abs(powers(x) / want - 1).max() < 4 * np.finfo(dtype).eps
    assert powers(np.array([0.0], dtype))[0] == 1
    assert (powers(np.array([least - 1.6, 2.0 * least, FLOOR], dtype)) == 0).all()
    assert np.isnan(powers(np.array([np.nan], dtype))).all()


@pytest.mark.parametrize("width", [1, 16, 19])
def test_tokens_come_back_from_blocks_with_zeros_in_place_of_padding(width):
    x = random(3, 37, width).transpose(1, 0, 2)[:, 1]
    real = np.random.default_rng(1).random((5, 8)) > 0.3
    real.ravel()[37:] = False
    packed = np.full((5, 16, 32), np.nan, np.float32)
    mra_kernel.pack(x, real, packed)
    assert np.isfinite(packed).all()
    kept = packed[:, :8, :width][real]
    assert (kept == x[real.ravel()[:37]]).all()
    assert packed.astype(bool).sum() == kept.astype(bool).sum()
    back = np.full((37, width), np.nan, np.float32)
    mra_kernel.unpack(packed, real, back)
    assert (back == np.where(real.ravel()[:37, None], x, 0)).all()


def test_means_are_over_real_tokens_and_0_for_blocks_without_any():
    packed = random(3, 16, 16)
    packed[1, 5:] = packed[2] = 0
    means = np.full((16, 16), np.nan, np.float32)
    mra_kernel.average(packed, np.array([16, 5, 0]), means)
    np.testing.assert_allclose(means[0], packed[0].mean(0), atol=1e-6)
    np.testing.assert_allclose(means[1], packed[1, :5].mean(0), atol=1e-6)
    assert not means[2:].any()


@pytest.mark.parametrize("full", [True, False])
def test_the_kernel_matches_the_plain_form_and_writes_only_its_results(full):
    size, edge, tokens = (5, 16, 16), 64, 13
    around = {}

    def guarded(name: str, *shape: int) -> np.ndarray:
        around[name] = np.full(np.prod(shape) + 2 * edge, 7, np.float32)
        return around[name][edge:-edge].reshape(shape)

    q, k, v, grad = (random(*size, seed=seed) for seed in range(4))
    for x in (q, k, v, grad):
        x[:, tokens:] = 0
    inputs = [x.copy() for x in (q, k, v, grad)]
    real = np.ones((5, tokens), bool)
    selected = np.random.default_rng(0).random((5, 5)) > 0.5
    means = guarded("means", 3 if full else 0, 16, 16)
    for blocks, mean in zip((q, k, v), means, strict=False):
        mra_kernel.average(blocks, real.sum(1), mean)
    out, lse = guarded("out", *size), guarded("lse", 5, 16)
    grads = [guarded(f"grad {i}", *size) for i in range(3)]
    common = (q, k, v, real, real.sum(1), selected, np.float32(0.25), means)
    mra_kernel.attend(*common, out, lse)
    mra_kernel.differentiate(*common, out, lse, grad, *grads)
    for name, array in around.items():
        assert (array[:edge] == 7).all() and (array[-edge:] == 7).all(), name
    for x, before in zip((q, k, v, grad), inputs, strict=True):
        assert (x == before).all()
    # Compare with the plain form, whose heads have 5 x 13 tokens.
    heads = [torch.from_numpy(x[:, :tokens].reshape(1, 1, -1, 16)) for x in (q, k, v)]
    heads = [x.double().requires_grad_() for x in heads]
    chosen = torch.from_numpy(selected)[None, None]
    mode: Mode = "full" if full else "sparse"
    want = mra_attention_reference(*heads, None, chosen, mode=mode, block_size=tokens)
    towards = torch.from_numpy(grad[:, :tokens].reshape(1, 1, -1, 16)).double()
    wanted = [want, *torch.autograd.grad(want, heads, towards)]
    for x, plain in zip((out, *grads), wanted, strict=True):
        got = torch.from_numpy(x[:, :tokens].reshape(1, 1, -1, 16)).double()
        torch.testing.assert_close(got, plain, rtol=0, atol=1e-5)
