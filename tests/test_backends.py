"""The contract of a backend, held by every one in the registry."""

import copy
import inspect
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models import ATTENTION
from models.heads import AttentionShape
from models.softmax import Softmax

BATCH, LENGTH, DIM = 3, 37, 16


def build(name: str, **options: object) -> nn.Module:
    torch.manual_seed(1)
    shape = AttentionShape(dim=DIM, heads=2, head_dim=8, max_length=64)
    if "inner" in inspect.signature(ATTENTION[name]).parameters:
        options["inner"] = Softmax
    return ATTENTION[name](shape, **options).eval()


def inputs() -> tuple[Tensor, Tensor]:
    """Return x, and a mask with right padding, a hole, and one sequence that is all real."""
    x = torch.randn(BATCH, LENGTH, DIM)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    mask[0, 29:] = False
    mask[1, 5] = False
    mask[1, 20:] = False
    return x, mask


every_backend = pytest.mark.parametrize("name", ATTENTION)


@every_backend
@pytest.mark.parametrize("length", [1, 2, 7, 31, 37, 64])
def test_output_has_the_shape_of_the_input_at_any_length(name: str, length: int) -> None:
    x = torch.randn(2, length, DIM)
    assert build(name)(x, None).shape == x.shape
    assert build(name)(x, torch.ones(2, length, dtype=torch.bool)).isfinite().all()


@every_backend
def test_masked_content_never_changes_the_output_of_real_positions(name: str) -> None:
    backend, (x, mask) = build(name), inputs()
    other = torch.where(mask[..., None], x, 100 * torch.randn_like(x))
    torch.testing.assert_close(
        backend(x, mask)[mask], backend(other, mask)[mask], rtol=0, atol=1e-6
    )


@every_backend
def test_masked_content_receives_no_gradient_from_real_positions(name: str) -> None:
    backend, (x, mask) = build(name), inputs()
    x.requires_grad_()
    backend(x, mask)[mask].square().sum().backward()
    assert x.grad is not None
    assert x.grad[~mask].abs().max() == 0
    assert x.grad[mask].abs().max() > 0


@every_backend
def test_a_mask_of_real_tokens_only_is_the_same_as_none(name: str) -> None:
    backend, (x, mask) = build(name), inputs()
    torch.testing.assert_close(backend(x, torch.ones_like(mask)), backend(x, None))


@every_backend
def test_a_sequence_of_padding_gives_finite_values_and_gradients(name: str) -> None:
    backend, (x, mask) = build(name), inputs()
    mask[2] = False
    x.requires_grad_()
    output = backend(x, mask)
    output.sum().backward()
    assert output.isfinite().all()
    assert x.grad is not None and x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in backend.parameters())


@every_backend
def test_more_padding_changes_nothing_where_that_is_claimed(name: str) -> None:
    backend, (x, mask) = build(name), inputs()
    wide = torch.cat([x, torch.randn(BATCH, 19, DIM)], 1)
    wide_mask = torch.cat([mask, torch.zeros(BATCH, 19, dtype=torch.bool)], 1)
    narrow, padded = backend(x, mask)[mask], backend(wide, wide_mask)[:, :LENGTH][mask]
    if backend.pad_invariant:
        torch.testing.assert_close(narrow, padded, rtol=0, atol=2e-6)
    else:
        assert not torch.allclose(narrow, padded, rtol=0, atol=2e-6)


@every_backend
def test_permuting_the_batch_permutes_the_output(name: str) -> None:
    backend, (x, mask) = build(name), inputs()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(backend(x, mask)[order], backend(x[order], mask[order]))


@every_backend
def test_the_same_input_gives_the_same_bits(name: str) -> None:
    backend, (x, mask) = build(name), inputs()
    assert torch.equal(backend(x, mask), backend(x, mask))


@every_backend
def test_bfloat16_autocast_stays_near_float32(name: str) -> None:
    backend, (x, mask) = build(name), inputs()
    exact = backend(x, mask)[mask]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = backend(x, mask)[mask]
    assert (rounded.float() - exact).norm() / exact.norm() < 0.03


@every_backend
def test_state_dict_round_trip_gives_the_same_output(name: str) -> None:
    backend, (x, mask) = build(name), inputs()
    other = build(name)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(copy.deepcopy(backend.state_dict()))
    assert torch.equal(backend(x, mask), other(x, mask))


@every_backend
def test_every_parameter_receives_a_gradient(name: str) -> None:
    backend, (x, mask) = build(name), inputs()
    backend(x.requires_grad_(), mask)[mask].square().sum().backward()
    silent = [n for n, p in backend.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@every_backend
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
# The compiler's own modules use what torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
def test_the_whole_graph_compiles_and_gives_the_same(name: str) -> None:
    backend, (x, mask) = build(name), inputs()
    compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(backend, fullgraph=True)
    torch.testing.assert_close(
        compiled(x, mask)[mask], backend(x, mask)[mask], rtol=1e-3, atol=1e-3
    )


@every_backend
@pytest.mark.gpu
def test_the_gpu_gives_the_same_as_the_cpu(name: str) -> None:
    backend, (x, mask) = build(name), inputs()
    expected = backend(x, mask)[mask]
    actual = backend.cuda()(x.cuda(), mask.cuda())[mask.cuda()]
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-4, atol=1e-4)
