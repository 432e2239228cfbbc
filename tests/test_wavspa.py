"""Attention in wavelet space: what the layer adds to its transform."""

import shutil
import warnings
from dataclasses import replace

import pytest
import pywt
import torch
from torch import Tensor, nn

from models.heads import AttentionShape
from models.softmax import Softmax
from models.wavelet import wavedec, waverec
from models.wavspa import WAVELETS, WavSpA

SHAPE = AttentionShape(dim=6, heads=2, head_dim=4, max_length=37)


class Scale(nn.Module):
    """Stand in for an attention by scaling by a factor."""

    def __init__(self, shape: AttentionShape, factor: float = 1.0) -> None:
        super().__init__()
        self.shape, self.factor, self.seen = shape, factor, None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is None
        self.seen = x
        return x * self.factor


def build(inner=Softmax, shape: AttentionShape = SHAPE, **options) -> WavSpA:
    torch.manual_seed(0)
    return WavSpA(shape, inner=inner, **options)


def sequence(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize(("batch", "length", "dim"), [(2, 37, 6), (1, 1, 6), (3, 9, 1), (1, 32, 5)])
def test_output_has_the_inputs_shape_and_every_trained_filter_a_gradient(
    wavelet, batch, length, dim
):
    layer = build(shape=replace(SHAPE, dim=dim), wavelet=wavelet, wlen=8, level=2)
    x = sequence(batch, length, dim).requires_grad_()
    y = layer(x)
    assert y.shape == x.shape
    (y * sequence(*y.shape, seed=2)).sum().backward()
    assert x.grad.isfinite().all() and (x.grad != 0).any()
    for name, parameter in layer.transform.named_parameters():
        assert parameter.grad.isfinite().all(), name
        if length > 1:
            assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize(
    ("wavelet", "trained"),
    [
        ("ada", {"dec_lo": (8, 6)}),
        ("ortho", {"thetas": (4, 6)}),
        ("adalift", {"w_est": (8, 6), "w_pred": (8, 6)}),
        ("fixed", {}),
        ("lift53", {}),
    ],
)
def test_each_wavelet_trains_just_its_own_filters(wavelet, trained):
    transform = build(wavelet=wavelet, wlen=8).transform
    assert {name: tuple(p.shape) for name, p in transform.named_parameters()} == trained


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize("length", [36, 37, 5])
def test_without_attention_the_sequence_is_reconstructed(wavelet, length):
    x = sequence(2, length, 6)
    y = build(Scale, wavelet=wavelet, wlen=8, level=3)(x)
    torch.testing.assert_close(y, x, atol=2e-5, rtol=0)


def test_with_reversed_channels_it_is_reconstructed_only_while_filters_agree():
    x = sequence(2, 37, 6)
    ortho = {"wavelet": "ortho", "channel_reverse": True}
    for options, back in (({"channel_reverse": True}, True), (ortho, False)):
        y = build(Scale, wlen=8, **options)(x)
        assert ((y - x).abs().max() < 1e-4) == back
    assert (build(Scale, wlen=8, init="db", **ortho)(x) - x).abs().max() < 1e-4


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize("level", [1, 3])
def test_every_band_has_an_attention_of_its_own_built_for_its_length(wavelet, level):
    layer = build(Scale, wavelet=wavelet, wlen=8, level=level)
    layer(sequence(2, SHAPE.max_length, 6))
    assert len(set(layer.bands)) == level + 1
    for attention in layer.bands:
        assert attention.shape == replace(SHAPE, max_length=attention.seen.shape[1])


def test_an_attention_changes_only_its_own_band():
    layer = build(Scale, wlen=8, level=2)
    x = sequence(2, 37, 6)
    coeffs = wavedec(x, *layer.transform.filters(), 2)
    for band in range(3):
        layer.bands[band].factor = 0.0
        kept = [c * (i > band) for i, c in enumerate(coeffs)]
        torch.testing.assert_close(layer(x), waverec(kept, *layer.transform.filters(), 37))


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_content_under_the_mask_never_changes_the_output(wavelet):
    layer = build(wavelet=wavelet, wlen=8)
    x, mask = sequence(2, 19, 6), torch.ones(2, 19, dtype=torch.bool)
    mask[0, 15:] = mask[1, 3:5] = False
    hidden = x.masked_fill(~mask[..., None], float("nan"))
    assert torch.equal(layer(hidden, mask), layer(x, mask))
    assert torch.equal(layer(x.masked_fill(~mask[..., None], 0), None), layer(x, mask))


def test_the_amount_of_padding_changes_the_output_and_the_layer_says_so():
    layer = build(wlen=8)
    x, mask = sequence(2, 24, 6), torch.ones(2, 24, dtype=torch.bool)
    mask[:, 20:] = False
    assert not layer.pad_invariant
    assert (layer(x, mask)[:, :20] - layer(x[:, :20], None)).abs().max() > 1e-4


def test_parameters_do_not_grow_with_length():
    counts = {
        sum(p.numel() for p in build(shape=replace(SHAPE, max_length=n)).parameters())
        for n in (37, 4096)
    }
    assert len(counts) == 1


@pytest.mark.parametrize("wavelet", ["ada", "fixed"])
def test_filters_start_as_daubechies_in_every_channel(wavelet):
    (filters,) = build(wavelet=wavelet, wlen=16).transform.filters()
    expected = torch.tensor(pywt.Wavelet("db8").dec_lo)[:, None].expand(-1, 6)
    torch.testing.assert_close(filters, expected, atol=1e-7, rtol=0)


def test_ortho_starts_at_random_angles_or_from_daubechies():
    uniform, db = (build(wavelet="ortho", wlen=16, init=init) for init in ("uniform", "db"))
    thetas = uniform.transform.thetas
    assert ((thetas >= 0) & (thetas < 2 * torch.pi)).all()
    assert thetas.unique().numel() == thetas.numel()
    expected = torch.tensor(pywt.Wavelet("db8").dec_lo)[:, None].expand(-1, 6)
    torch.testing.assert_close(db.transform.filters()[0], expected, atol=1e-6, rtol=0)


def test_random_ortho_filters_may_be_longer_than_any_daubechies():
    x = sequence(1, 37, 6)
    y = build(Scale, wavelet="ortho", wlen=128)(x)
    torch.testing.assert_close(y, x, atol=2e-5, rtol=0)


def test_float64_reconstructs_to_its_own_precision():
    x = sequence(2, 37, 6).double()
    layer = build(Scale, wavelet="ortho", wlen=16, level=2).double()
    assert (layer(x) - x).abs().max() < 1e-12


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_the_transform_stays_in_float32_under_autocast(wavelet):
    layer, x = build(Scale, wavelet=wavelet, wlen=8), sequence(2, 37, 6).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        assert y.dtype == torch.float32
        assert (y - x).abs().max() < 1e-5
        y.square().sum().backward()
    assert (x.grad - 2 * x).abs().max() < 1e-4


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_inputs_and_attention_may_be_bfloat16(wavelet):
    layer, x = build(wavelet=wavelet, wlen=8), sequence(2, 37, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.bfloat16())
    torch.testing.assert_close(y, layer(x.bfloat16().float()), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wavelet": "life"}, "wavelet=life: must be one of ada, ortho, fixed, lift53, adalift"),
        ({"wlen": 7}, "wlen=7: must be even and at least 2"),
        ({"wlen": 0}, "wlen=0: must be even and at least 2"),
        ({"wlen": 78}, "wlen=78: must be at most 76"),
        ({"wlen": 78, "wavelet": "ortho", "init": "db"}, "wlen=78: must be at most 76"),
        ({"level": 0}, "level=0: must be at least 1"),
        ({"init": "haar"}, "init=haar: must be one of uniform, db"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_the_layer_compiled_as_one_graph_gives_the_same_results(wavelet):
    layer = build(wavelet=wavelet, wlen=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled = torch.compile(layer, fullgraph=True)
        mask = torch.ones(3, 37, dtype=torch.bool)
        mask[0, 30:] = False
        results = []
        for call in (layer, compiled):
            x = sequence(3, 37, 6).requires_grad_()
            y = call(x, mask)
            loss = y.square().sum()
            results.append((y, *torch.autograd.grad(loss, (x, *layer.parameters()))))
    for eager, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, eager, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_cuda_gives_the_same_results_as_the_cpu(wavelet):
    layer, results = build(wavelet=wavelet, wlen=8, level=2), []
    for device in ("cpu", "cuda"):
        x = sequence(2, 37, 6).to(device).requires_grad_()
        y = layer.to(device)(x)
        gradients = torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))
        results.append([t.cpu() for t in (y, *gradients)])
    for cpu, cuda in zip(*results, strict=True):
        torch.testing.assert_close(cuda, cpu, atol=1e-4, rtol=1e-3)
