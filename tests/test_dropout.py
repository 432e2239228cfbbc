"""Dropout of activations: the compiled loop against its plain form, and the statistics of masks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models import dropout
from models.dropout import Dropout, draw_seed, drop, dropout_reference, kept_reference

ROOT = Path(__file__).resolve().parents[1]


def same_draw(seed: int, run) -> tuple[Tensor, int]:
    """Return what `run()` gives after torch is seeded, and the seed of its mask."""
    torch.manual_seed(seed)
    key = draw_seed()
    torch.manual_seed(seed)
    return run(), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (2, 3, 341), (0, 4)])
def test_the_compiled_loop_equals_the_plain_form_in_values_and_gradients(shape, dtype) -> None:
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    y, key = same_draw(3, lambda: drop(x, 0.3))
    want = dropout_reference(x, 0.3, key)
    towards = torch.randn(shape, dtype=dtype)
    assert y.dtype == dtype
    grads = [torch.autograd.grad(out, x, towards)[0] for out in (y, want)]
    for got, plain in ((y, want), grads):
        torch.testing.assert_close(got, plain, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_a_tensor_that_spans_several_rows_of_the_hash_equals_the_plain_form(monkeypatch) -> None:
    monkeypatch.setattr(dropout, "ROW_LENGTH", 1000)
    y, key = same_draw(0, lambda: drop(torch.ones(3, 1234), 0.25))
    assert torch.equal(y, dropout_reference(torch.ones(3, 1234), 0.25, key))
    assert not torch.equal(y.view(-1)[:1000], y.view(-1)[1000:2000])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_the_mask_of_float32_and_rounds_its_products(dtype) -> None:
    x = torch.randn(7, 33).to(dtype).requires_grad_()
    y, _ = same_draw(1, lambda: drop(x, 0.5 - 0.1))
    wide, _ = same_draw(1, lambda: drop(x.detach().float(), 0.5 - 0.1))
    assert y.dtype == dtype
    assert torch.equal(y, wide.to(dtype))
    y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)


def test_strides_and_threads_do_not_change_the_mask() -> None:
    x = torch.randn(6, 10, 4)
    want, _ = same_draw(2, lambda: drop(x, 0.5))
    for strided in (x.permute(2, 0, 1).contiguous().permute(1, 2, 0), x.repeat(2, 1, 1)[:6]):
        got, _ = same_draw(2, lambda strided=strided: drop(strided, 0.5))
        assert torch.equal(got, want)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    got, _ = same_draw(2, lambda: drop(x, 0.5))
    torch.set_num_threads(threads)
    assert torch.equal(got, want)


def test_an_expanded_gradient_is_masked_too() -> None:
    x = torch.randn(5, 9, requires_grad=True)
    y = drop(x, 0.4)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, (y != 0) / 0.6)


def test_second_derivatives_are_those_of_a_product_with_the_mask() -> None:
    x = torch.randn(11, dtype=torch.float64, requires_grad=True)
    y = drop(x, 0.5)
    kept = y.detach() / x.detach()
    (grad,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    torch.testing.assert_close(second, 6 * x.detach() * kept**3)


@pytest.mark.parametrize("p", [0.1, 0.5, 2**-10, 0.9])
def test_elements_are_dropped_independently_at_the_rate_and_the_mean_is_kept(p: float) -> None:
    n = 4_000_000
    torch.manual_seed(0)
    kept = (drop(torch.ones(n), p) != 0).double()
    deviation = (p * (1 - p) / n) ** 0.5
    assert abs(kept.mean() - (1 - p)) < 4 * deviation
    torch.manual_seed(0)
    assert abs(drop(torch.ones(n, dtype=torch.float64), p).mean() - 1) < 4 * deviation / (1 - p)
    centred = (kept - (1 - p)) / (p * (1 - p)) ** 0.5
    # Neighbours, lanes of vectors, and rows as wide as those of models.
    for lag in (1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 65_536, 2**20):
        correlation = (centred[lag:] * centred[:-lag]).mean()
        assert abs(correlation) < 4.5 * (n - lag) ** -0.5, lag
    # Runs of 8 at a rate of a half: every pattern as often as it should be.
    if p == 0.5:
        patterns = kept.view(-1, 8).long() @ 2 ** torch.arange(8)
        counts = torch.bincount(patterns, minlength=256).double()
        expected = n / 8 / 256
        chi = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi - 255) < 4.5 * (2 * 255) ** 0.5


def test_calls_and_lanes_of_a_vector_are_independent() -> None:
    torch.manual_seed(0)
    masks = torch.stack([drop(torch.ones(1024), 0.5) != 0 for _ in range(4096)]).double() * 2 - 1
    assert (masks.mean(0).abs() < 5 * 4096**-0.5).all()
    between = (masks[1:] * masks[:-1]).mean(1)
    assert (between.abs() < 5 * 1024**-0.5).all()
    correlations = masks.T @ masks / 4096 - torch.eye(1024)
    assert correlations.abs().max() < 6 * 4096**-0.5
    # Seeds that differ in one bit, which torch's generator would hardly give.
    near = torch.stack([kept_reference(2**i, 1, 65_536, 0.5)[0] for i in range(64)]).double()
    assert (torch.corrcoef(near) - torch.eye(64)).abs().max() < 5 * 65_536**-0.5


def test_the_probability_is_accurate_to_2_to_the_minus_33() -> None:
    assert dropout.threshold(2**-20) == 2**12
    for p in (0.1, 1 / 3, 2**-17, 1 - 2**-17):
        assert abs(dropout.threshold(p) / 2**32 - p) <= 2**-33
    assert dropout.threshold(1 - 2**-40) == 2**32 - 1


def test_nothing_and_everything_can_be_dropped() -> None:
    x = torch.randn(9, requires_grad=True)
    assert drop(x, 0.0) is x
    assert drop(x, 0.7, training=False) is x
    assert not drop(x, 1.0).any()
    (grad,) = torch.autograd.grad(drop(x, 1.0).sum(), x)
    assert not grad.any()


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_a_number_that_is_not_a_probability_is_refused(p: float) -> None:
    for refuse in (lambda: Dropout(p), lambda: drop(torch.ones(3), p)):
        with pytest.raises(ValueError, match=r"must be a probability, at least 0 and at most 1"):
            refuse()


def test_dropped_elements_are_0_even_if_they_were_not_finite() -> None:
    y = drop(torch.full((1000,), float("inf")), 0.5)
    assert set(y.tolist()) == {0.0, float("inf")}


def test_restoring_the_state_of_the_generator_gives_the_same_mask() -> None:
    x = torch.randn(100)
    drop(x, 0.5)
    state = torch.get_rng_state()
    first, second = drop(x, 0.5), drop(x, 0.5)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(drop(x, 0.5), first)
    assert torch.equal(drop(x, 0.5), second)


def test_the_mask_is_the_same_when_activations_are_recomputed_under_autocast() -> None:
    network = nn.Sequential(nn.Linear(8, 8), Dropout(0.5), nn.Linear(8, 8), Dropout(0.2))
    x = torch.randn(3, 5, 8, requires_grad=True)

    def gradient(recompute: bool) -> Tensor:
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16):
            y = checkpoint(network, x, use_reentrant=False) if recompute else network(x)
        assert y.dtype == torch.bfloat16
        return torch.autograd.grad(y.float().square().sum(), x)[0]

    assert torch.equal(gradient(False), gradient(True))


def test_the_old_form_is_torchs_own() -> None:
    x = torch.randn(40)
    torch.manual_seed(0)
    want = nn.functional.dropout(x, 0.3)
    torch.manual_seed(0)
    assert torch.equal(Dropout(0.3, compiled=False)(x), want)


def test_tensors_without_contents_keep_their_shape() -> None:
    x = torch.empty(3, 5, device="meta", requires_grad=True)
    y = drop(x, 0.5)
    y.sum().backward()
    assert y.shape == x.grad.shape == (3, 5)
    with torch._subclasses.FakeTensorMode():
        assert drop(torch.empty(3, 5), 0.5).shape == (3, 5)


def test_without_a_writable_folder_the_loop_is_compiled_but_not_cached(tmp_path) -> None:
    # A file where numba would make its folders, since root may write to any folder.
    (tmp_path / "file").touch()
    environment = os.environ | {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    environment |= {"NUMBA_CACHE_DIR": str(tmp_path / "file")}
    code = "import torch; from models.dropout import drop; print(drop(torch.ones(99), .5).max())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "tensor(2.)\n", done.stderr


@pytest.mark.slow
def test_torch_compile_uses_torchs_own_dropout_in_one_graph() -> None:
    compiled = torch.compile(Dropout(0.5), fullgraph=True, backend="eager")
    y = compiled(torch.ones(1000))
    assert set(y.tolist()) == {0.0, 2.0}


@pytest.mark.gpu
def test_a_gpu_uses_torchs_own_dropout() -> None:
    x = torch.ones(1000, device="cuda", requires_grad=True)
    y = drop(x, 0.5)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert set(y.tolist()) == {0.0, 2.0}
