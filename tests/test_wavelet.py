"""The transforms against PyWavelets, their plain forms, and the published code's numbers."""

import time
from pathlib import Path

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.lattice import lattice_angles, lattice_filter
from models.lifting import (
    circular_correlation,
    circular_correlation_plain,
    lift53_dec,
    lift53_rec,
    lifting_dec,
    lifting_rec,
)
from models.wavelet import (
    band_lengths,
    filter_pair,
    wavedec,
    wavedec_plain,
    waverec,
    waverec_plain,
)

DOUBLE = torch.float64
GOLDEN = Path(__file__).parent / "golden"
shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "length": st.integers(1, 45),
        "channels": st.integers(1, 5),
        "level": st.integers(1, 3),
    }
)
even_taps = st.integers(1, 10).map(lambda half: 2 * half)
repeatable = settings(derandomize=True, deadline=None, max_examples=40)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def daubechies(order: int, channels: int) -> Tensor:
    taps = torch.tensor(pywt.Wavelet(f"db{order}").dec_lo, dtype=DOUBLE)
    return taps[:, None].repeat(1, channels)


def random_lattice(half: int, channels: int, seed: int = 0) -> Tensor:
    return lattice_filter(normal(half, channels, seed=seed) * 3)


def reflected(x: Tensor, num_taps: int) -> np.ndarray:
    pad = num_taps - 2
    return np.pad(x.numpy(), ((0, 0), (pad, pad + x.shape[1] % 2), (0, 0)), mode="reflect")


def assert_close(actual: Tensor, expected: Tensor | np.ndarray, within: float) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected), atol=within, rtol=within)


def weighted_sum(tensors: list[Tensor]) -> Tensor:
    return sum((t * normal(*t.shape, seed=i)).sum() for i, t in enumerate(tensors))


def published(kind: str):
    """Yield the released code's cases of a kind: signal, level, all of its arrays, coefficients."""
    values = np.load(GOLDEN / "wavspa.npz")
    cases = sorted({name.rsplit("/", 1)[0] for name in values if name.startswith(f"{kind}/")})
    assert cases
    for case in cases:
        _, signal, level = case.split("/")
        found = {n.rsplit("/", 1)[1]: torch.tensor(values[n]) for n in values if n.startswith(case)}
        coeffs = [found[f"c{i}"] for i in range(int(level[1:]) + 1)]
        yield torch.tensor(values[signal]), int(level[1:]), found, coeffs


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", ["db", "ada", "ortho"])
def test_filter_banks_give_the_numbers_of_the_published_code(kind, dtype, within):
    for x, level, has, expected in published(kind):
        h = has["h"].to(dtype)
        # Reversing the channels only shows if the filters differ.
        assert bool((h != h.flip(1)).any()) == (kind != "db")
        coeffs = wavedec(x.to(dtype), h, level, channel_reverse=True)
        for band, wanted in zip(coeffs, expected, strict=True):
            assert_close(band.double(), wanted, within)
        rec = waverec(coeffs, h, has["rec"].shape[1], channel_reverse=True)
        assert_close(rec.double(), has["rec"], within)


def test_lifting_gives_the_numbers_of_the_published_code():
    for x, level, has, expected in published("adalift"):
        filters = has["w_est"], has["w_pred"]
        coeffs = lifting_dec(x, *filters, level)
        for band, wanted in zip(coeffs, expected, strict=True):
            assert_close(band, wanted, 1e-12)
        assert_close(lifting_rec(coeffs, *filters, has["rec"].shape[1]), has["rec"], 1e-12)


def test_53_lifting_gives_the_numbers_of_the_published_code():
    for x, level, has, expected in published("lift"):
        coeffs = lift53_dec(x, level)
        for band, wanted in zip(coeffs, expected, strict=True):
            assert_close(band, wanted, 1e-12)
        assert_close(lift53_rec(coeffs, has["rec"].shape[1], pad_detail=True), has["rec"], 1e-12)


def test_lattice_filters_have_the_numbers_of_the_published_code():
    for _, _, has, _ in published("ortho"):
        assert_close(lattice_filter(has["thetas"]), has["h"], 1e-12)
    for order in (1, 2, 3):
        angles = lattice_angles(daubechies(order, 2))
        assert_close(lattice_filter(angles), daubechies(order, 2), 1e-11)


@repeatable
@given(shapes, even_taps, st.booleans())
def test_fast_transform_equals_the_plain_one_in_outputs_and_all_gradients(shape, num_taps, reverse):
    x = normal(shape["batch"], shape["length"], shape["channels"]).requires_grad_()
    h = normal(num_taps, shape["channels"], seed=1).requires_grad_()
    results = []
    for dec, rec in ((wavedec, waverec), (wavedec_plain, waverec_plain)):
        coeffs = dec(x, h, shape["level"], reverse)
        gradients = torch.autograd.grad(weighted_sum(coeffs), (x, h))
        free = [normal(*c.shape, seed=i).requires_grad_() for i, c in enumerate(coeffs)]
        y = rec(free, h, shape["length"], reverse)
        results.append(
            (*coeffs, *gradients, y, *torch.autograd.grad(weighted_sum([y]), (*free, h)))
        )
    for fast, plain in zip(*results, strict=True):
        assert_close(fast, plain, 1e-12 * max(1, plain.detach().abs().max().item()))


@pytest.mark.parametrize(
    ("length", "num_taps", "level"), [(1, 2, 1), (1, 4, 2), (5, 8, 1), (9, 4, 2)]
)
def test_gradients_are_the_derivatives(length, num_taps, level):
    x, h = normal(2, length, 2).requires_grad_(), normal(num_taps, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, h: tuple(wavedec(x, h, level)), (x, h))
    assert torch.autograd.gradcheck(lambda x, h: waverec(wavedec(x, h, level), h, length), (x, h))


def test_a_filter_that_is_not_trained_costs_no_gradient_and_changes_none():
    h = normal(8, 3, seed=1)
    gradients = []
    for trained in (False, True):
        x = normal(2, 19, 3).requires_grad_()
        filters = h.clone().requires_grad_(trained)
        weighted_sum([waverec(wavedec(x, filters, 2), filters, 19)]).backward()
        assert (filters.grad is not None) == trained
        gradients.append(x.grad)
    assert torch.equal(*gradients)


@repeatable
@given(shapes, even_taps)
def test_bands_have_the_lengths_of_the_formula(shape, num_taps):
    x = normal(shape["batch"], shape["length"], shape["channels"])
    coeffs = wavedec(x, normal(num_taps, shape["channels"]), shape["level"])
    lengths = [c.shape[1] for c in coeffs]
    assert lengths == band_lengths(shape["length"], num_taps, shape["level"])
    assert lengths[-1] == -(-shape["length"] // 2) + num_taps - 2
    assert all(c.shape[::2] == x.shape[::2] for c in coeffs)


@pytest.mark.parametrize("length", [64, 65, 100, 101, 1024, 1025])
@pytest.mark.parametrize("num_taps", [2, 4, 8, 16, 40])
def test_daubechies_filters_reconstruct_perfectly(length, num_taps):
    h = daubechies(num_taps // 2, 3)
    x = normal(2, length, 3)
    for level in (1, 2, 3):
        within = 1e-9 if num_taps == 40 else 1e-12
        assert (waverec(wavedec(x, h, level), h, length) - x).abs().max() < within
        short, h32 = x.float(), h.float()
        assert (waverec(wavedec(short, h32, level), h32, length) - short).abs().max() < 1e-5


@repeatable
@given(shapes, st.integers(1, 8))
def test_lattice_filters_reconstruct_perfectly_whatever_their_angles(shape, half):
    h = random_lattice(half, shape["channels"])
    x = normal(shape["batch"], shape["length"], shape["channels"])
    rec = waverec(wavedec(x, h, shape["level"]), h, shape["length"])
    assert (rec - x).abs().max() < 1e-12


def test_reversed_channels_reconstruct_only_if_filters_agree():
    x = normal(2, 50, 4)
    unequal, shared = random_lattice(4, 4), random_lattice(4, 1).repeat(1, 4)
    assert (waverec(wavedec(x, unequal, 1, True), unequal, 50, True) - x).abs().max() > 0.1
    assert (waverec(wavedec(x, shared, 1, True), shared, 50, True) - x).abs().max() < 1e-12


@pytest.mark.parametrize("order", [1, 2, 4, 20, 38])
def test_filter_pair_is_pywavelets_reconstruction_bank(order):
    bank = pywt.Wavelet(f"db{order}")
    low, high = filter_pair(daubechies(order, 2))
    assert low[:, 1].tolist() == bank.rec_lo
    assert high[:, 1].tolist() == bank.rec_hi
    assert low[:, 1].flip(0).tolist() == bank.dec_lo
    assert high[:, 1].flip(0).tolist() == bank.dec_hi


@repeatable
@given(st.integers(2, 60), st.integers(1, 6))
def test_one_level_begins_with_pywavelets_reflect_mode(length, order):
    if length <= 2 * order - 2:
        length += 2 * order
    x = normal(2, length, 1)
    ours = wavedec(x, daubechies(order, 1), 1)
    theirs = pywt.dwt(x[..., 0].numpy(), f"db{order}", mode="reflect")
    count = (length + 2 * order - 1) // 2
    for band, expected in zip(ours, theirs, strict=True):
        assert_close(band[:, :count, 0], expected[:, :count], 1e-12)


@repeatable
@given(shapes, st.integers(1, 8))
def test_every_level_is_pywavelets_periodization_of_the_reflected_signal(shape, order):
    x = normal(shape["batch"], shape["length"], shape["channels"])
    num_taps = 2 * order
    coeffs = wavedec(x, daubechies(order, shape["channels"]), shape["level"])
    approximation = x
    for level in range(1, shape["level"] + 1):
        circle = np.roll(reflected(approximation, num_taps), -(order - 1), axis=1)
        low, high = pywt.dwt(circle, f"db{order}", mode="periodization", axis=1)
        assert_close(coeffs[-level], high, 1e-11)
        approximation = torch.from_numpy(low)
    assert_close(coeffs[0], approximation, 1e-11)


@pytest.mark.parametrize("length", [64, 80, 37])
def test_haar_is_entirely_pywavelets_transform(length):
    x = normal(2, length, 1)
    level = 3 if length % 8 == 0 else 1
    theirs = pywt.wavedec(x[..., 0].numpy(), "haar", mode="reflect", level=level)
    for band, expected in zip(wavedec(x, daubechies(1, 1), level), theirs, strict=True):
        assert_close(band[..., 0], expected, 1e-12)


@repeatable
@given(shapes, st.integers(1, 8))
def test_orthonormal_filters_keep_the_energy_of_the_reflected_signal(shape, half):
    x = normal(shape["batch"], shape["length"], shape["channels"])
    coeffs = wavedec(x, random_lattice(half, shape["channels"]), 1)
    energy = sum(float(c.square().sum()) for c in coeffs)
    assert energy == pytest.approx(float((reflected(x, 2 * half) ** 2).sum()), rel=1e-12)


@repeatable
@given(shapes, even_taps)
def test_synthesis_is_the_transpose_of_analysis_for_any_filter(shape, num_taps):
    # On the circle the two are a matrix and its transpose; cropping keeps the rest as it is.
    length, channels = shape["length"], shape["channels"]
    h = normal(num_taps, channels, seed=1)
    bands = band_lengths(length, num_taps, 1)
    coeffs = [normal(1, n, channels, seed=i) for i, n in enumerate(bands)]
    low, high = (side.numpy() for side in filter_pair(h))
    size = 2 * bands[0]
    matrix = np.zeros((channels, size, size))
    for k in range(bands[0]):
        for m in range(num_taps):
            matrix[:, k, (2 * k + m) % size] += low[m]
            matrix[:, bands[0] + k, (2 * k + m) % size] += high[m]
    x = normal(1, length, channels, seed=7)
    analysed = np.einsum("cij,jc->ic", matrix, reflected(x, num_taps)[0])
    assert_close(torch.cat(wavedec(x, h, 1), 1)[0], analysed, 1e-11)
    synthesised = np.einsum("cij,ic->jc", matrix, torch.cat(coeffs, 1)[0].numpy())
    crop = synthesised[num_taps - 2 : num_taps - 2 + length]
    assert_close(waverec(coeffs, h, length)[0], crop, 1e-11)


def test_free_filters_act_as_a_zero_phase_equaliser():
    num_taps, length = 6, 40
    x, h = normal(1, length, 3), normal(num_taps, 3, seed=1)
    xp = reflected(x, num_taps)[0]
    omega = 2 * np.pi * np.arange(len(xp)) / len(xp)
    phases = np.exp(-1j * np.outer(omega, np.arange(num_taps)))
    shifted = np.exp(-1j * np.outer(omega + np.pi, np.arange(num_taps)))
    gain = (np.abs(phases @ h.numpy()) ** 2 + np.abs(shifted @ h.numpy()) ** 2) / 2
    expected = np.fft.ifft(np.fft.fft(xp, axis=0) * gain, axis=0).real[num_taps - 2 :][:length]
    rec = waverec(wavedec(x, h, 1), h, length)
    assert_close(rec[0], expected, 1e-11)
    assert (rec - x).abs().max() > 0.1


def test_scaling_a_filter_scales_one_levels_reconstruction_by_its_square():
    x, h = normal(2, 33, 3), normal(8, 3, seed=1)
    once = waverec(wavedec(x, h, 1), h, 33)
    assert_close(waverec(wavedec(x, 3 * h, 1), 3 * h, 33), 9 * once, 1e-11)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_filter_affects_its_own_channel_and_as_published_the_mirrored_one_too(reverse):
    x, h = normal(2, 21, 5), normal(4, 5, seed=1)
    other = h.clone()
    other[:, 1] += 1
    before, after = (
        waverec(wavedec(x, taps, 2, reverse), taps, 21, reverse) for taps in (h, other)
    )
    changed = (before != after).any(dim=1).any(dim=0)
    assert changed.nonzero().flatten().tolist() == ([1, 3] if reverse else [1])


@repeatable
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 1000))
def test_lattice_filters_are_orthonormal_to_their_even_shifts(half, channels, seed):
    thetas = normal(half, channels, seed=seed) * 3
    h = lattice_filter(thetas)
    assert h.shape == (2 * half, channels)
    for shift in range(half):
        products = (h[2 * shift :] * h[: len(h) - 2 * shift]).sum(0)
        assert_close(products, torch.full_like(products, float(shift == 0)), 1e-12)
    assert_close(h.sum(0), 2**0.5 * torch.cos(torch.pi / 4 - thetas.sum(0)), 1e-12)
    assert_close(lattice_filter(thetas + 2 * torch.pi), h, 1e-12)


def test_one_angle_of_an_eighth_turn_is_haar():
    assert_close(
        lattice_filter(torch.full((1, 1), torch.pi / 4, dtype=DOUBLE)), daubechies(1, 1), 1e-15
    )


@pytest.mark.parametrize("order", [1, 2, 3, 4, 8, 20, 38])
def test_inverse_lattice_finds_daubechies_filters(order):
    h = daubechies(order, 2)
    assert_close(lattice_filter(lattice_angles(h)), h, 1e-11)
    assert_close(lattice_filter(lattice_angles(h.float())), h.float(), 1e-5)


@repeatable
@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 1000))
def test_inverse_lattice_finds_any_orthonormal_filter(half, channels, seed):
    h = lattice_filter(normal(half, channels, seed=seed) * 3)
    assert_close(lattice_filter(lattice_angles(h)), h, 1e-9)


def test_lattice_gradients_are_the_derivatives():
    assert torch.autograd.gradcheck(lattice_filter, normal(4, 3).requires_grad_())


@repeatable
@given(shapes, st.integers(1, 30))
def test_learned_lifting_reconstructs_perfectly_whatever_its_filters(shape, num_taps):
    x = normal(shape["batch"], shape["length"], shape["channels"])
    filters = [normal(num_taps, shape["channels"], seed=seed) for seed in (1, 2)]
    coeffs = lifting_dec(x, *filters, shape["level"])
    assert coeffs[-1].shape[1] == -(-shape["length"] // 2)
    assert (lifting_rec(coeffs, *filters, shape["length"]) - x).abs().max() < 1e-9


@repeatable
@given(shapes, st.integers(1, 30))
def test_fast_circular_correlation_equals_the_plain_one(shape, num_taps):
    results = []
    for correlation in (circular_correlation, circular_correlation_plain):
        x = normal(shape["batch"], shape["length"], shape["channels"]).requires_grad_()
        taps = normal(num_taps, shape["channels"], seed=1).requires_grad_()
        y = correlation(x, taps)
        weighted_sum([y]).backward()
        results.append((y, x.grad, taps.grad))
    for fast, plain in zip(*results, strict=True):
        assert_close(fast, plain, 1e-12 * max(1, plain.detach().abs().max().item()))


def test_lifting_gradients_are_the_derivatives():
    x = normal(2, 7, 2).requires_grad_()
    filters = [normal(6, 2, seed=seed).requires_grad_() for seed in (1, 2)]
    assert torch.autograd.gradcheck(lambda *args: tuple(lifting_dec(*args, 2)), (x, *filters))
    assert torch.autograd.gradcheck(lambda x, *w: lifting_rec([x, x.cos()], *w, 13), (x, *filters))


@repeatable
@given(shapes)
def test_53_lifting_reconstructs_perfectly(shape):
    x = normal(shape["batch"], shape["length"], shape["channels"])
    rec = lift53_rec(lift53_dec(x, shape["level"]), shape["length"])
    assert (rec - x).abs().max() < 1e-13


def test_53_lifting_sees_no_detail_inside_a_ramp():
    ramp = torch.arange(50, dtype=DOUBLE)[None, :, None] * torch.tensor([1.0, -3.0], dtype=DOUBLE)
    detail = lift53_dec(ramp, 1)[1]
    assert (detail[:, :-1] == 0).all()
    assert (detail[:, -1] != 0).all()


@pytest.mark.parametrize(
    ("length", "level", "corrupted"), [(65, 2, {0, 1}), (100, 3, {0, 1, 2, 3, 97, 98, 99})]
)
def test_53_lifting_as_published_corrupts_exactly_the_known_samples(length, level, corrupted):
    x = normal(1, length, 1)
    rec = lift53_rec(lift53_dec(x, level), length, pad_detail=True)
    wrong = ((rec - x).abs() > 1e-9)[0, :, 0].nonzero().flatten().tolist()
    assert set(wrong) == corrupted


def test_53_lifting_as_published_is_exact_if_every_band_is_even():
    x = normal(1, 64, 3)
    assert_close(lift53_rec(lift53_dec(x, 3), 64, pad_detail=True), x, 1e-13)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wavedec(torch.ones(1, 9, 2), torch.ones(4, 2), 0), "level=0: must be at least 1"),
        (lambda: lift53_dec(torch.ones(1, 9, 2), 0), "level=0: must be at least 1"),
        (lambda: wavedec(torch.ones(1, 9, 2), torch.ones(3, 2), 1), "F even"),
        (lambda: wavedec(torch.ones(1, 9, 2), torch.ones(4, 3), 1), r"\(B, N, 3\)"),
        (lambda: waverec([torch.ones(1, 9, 2)] * 2, torch.ones(4, 2), 9), "13 or 14, not 9"),
        (lambda: lift53_rec([torch.ones(1, 9, 2)] * 2, 20), "18, not 20"),
        (lambda: lift53_rec([torch.ones(1, 9, 2), torch.ones(1, 4, 2)], 8), "cannot be joined"),
    ],
)
def test_arguments_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_transform_time_grows_linearly_with_length():
    h = normal(16, 16, dtype=torch.float32).requires_grad_()

    def seconds(length: int) -> float:
        x = normal(1, length, 16, dtype=torch.float32).requires_grad_()
        taken = []
        for _ in range(11):
            start = time.perf_counter()
            waverec(wavedec(x, h, 1), h, length).sum().backward()
            taken.append(time.perf_counter() - start)
        return sorted(taken)[len(taken) // 2]

    # Below 2.4 a doubling from 2^10 to 2^16; a quadratic transform would take 4.
    assert seconds(2**16) / seconds(2**10) < 2.4**6
    assert seconds(2**16) / seconds(2**13) < 2.4**3
