"""Every backend on the meta device, whose tensors have shapes but no contents.

An operation that waits for contents (`.item()`, a condition on a tensor, indices that a mask
decides) is refused there, and so is an operation between devices: on a GPU, the former would stall
a step, and the latter would end it.
"""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models import ATTENTION
from models.encoder import Classifier, PairClassifier
from models.heads import AttentionShape
from models.sizes import ModelConfig

SHAPE = AttentionShape(dim=12, heads=2, head_dim=8, max_length=64, dropout=0.1)
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("softmax", {"fused": False}),
    ("fourier", {"norm": "ortho", "method": "matrix"}),
    ("wavspa", {"wavelet": "fixed"}),
    ("wavspa", {"wavelet": "ortho", "wlen": 4, "level": 2}),
    ("wavspa", {"wavelet": "adalift", "wlen": 4}),
    ("wavspa", {"wavelet": "lift53", "channel_reverse": True}),
    ("mra", {"block_size": 4, "blocks_per_row": 2}),
    ("mra_sparse", {"block_size": 4, "row_max": "live"}),
    ("nystromformer", {"landmarks": 7, "conv": 3}),
    ("linformer", {"rank": 5, "shared": False}),
    ("longformer", {"window": 6, "num_global": 2}),
    ("performer", {"features": "relu"}),
    ("bigbird", {"block_size": 3}),
    ("reformer", {"chunk_length": 5, "num_hashes": 3}),
    ("s4d", {"init": "legs", "discretisation": "bilinear", "bidirectional": False}),
    ("s5", {"c_init": "complex_normal", "clip": True}),
    ("lru", {"bidirectional": True}),
    ("mega", {"weighting": "laplace", "chunk": 5, "norm": "batch", "dropout": 0.1}),
]
CASES = [(name, {}) for name in ATTENTION] + OPTIONS


def builder(name: str, options: dict[str, Any]) -> Callable[[AttentionShape], nn.Module]:
    """Return a function that builds a backend; a backend that wraps another gets softmax."""
    if "inner" in inspect.signature(ATTENTION[name]).parameters:
        options = {"inner": ATTENTION["softmax"], **options}
    return lambda shape: ATTENTION[name](shape, **options)


def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*size, dtype=dtype, device="meta")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("length", [1, 37, 64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward_wait_for_no_tensor_contents(case, length, masked, training) -> None:
    backend = builder(*case)(SHAPE).to("meta").train(training)
    x = empty(3, length, 12).requires_grad_()
    output = backend(x, empty(3, length, dtype=torch.bool) if masked else None)
    assert output.shape == x.shape
    assert output.dtype == x.dtype
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    for name, parameter in backend.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.shape == parameter.shape
        assert parameter.grad.device.type == "meta"


# Pooling and pairs concern only the encoder: all cases run with softmax, and all but one case of
# each other backend wait for `make test-all`.
STEPS = [
    pytest.param(
        *(name, pair, pooling),
        marks=[pytest.mark.slow] * (name != "softmax" and (pair, pooling) != (True, "mean_padded")),
    )
    for name in ATTENTION
    for pair in (False, True)
    for pooling in ("cls", "mean", "mean_padded", "last")
]


@pytest.mark.parametrize(("name", "pair", "pooling"), STEPS)
def test_a_whole_training_step_waits_for_no_tensor_contents(
    name: str, pair: bool, pooling: str
) -> None:
    config = ModelConfig(
        layers=1, dim=12, heads=2, head_dim=8, mlp_dim=16, max_length=63, vocab_size=9,
        pooling=pooling, zero_is_padding=True,
    )  # fmt: skip
    network = (PairClassifier if pair else Classifier)(config, builder(name, {}), 5).to("meta")
    size = (3, 2, 37) if pair else (3, 37)
    tokens, mask = empty(*size, dtype=torch.long), empty(*size, dtype=torch.bool)
    with FlopCounterMode(display=False) as counted:
        logits = network(tokens, mask)
        loss = nn.functional.cross_entropy(logits, empty(3, dtype=torch.long))
        loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    torch.optim.AdamW(network.parameters()).step()
    assert logits.shape == (3, 5)
    # The two products of the MLP alone: 2 operations per weight and token, twice that backward.
    assert counted.get_total_flops() > 6 * tokens.numel() * (2 * 12 * 16)
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_meta_device_refuses_operations_that_wait_or_mix_devices() -> None:
    with pytest.raises(RuntimeError, match="item"):
        empty(1).item()
    with pytest.raises(RuntimeError, match=r"nonzero|bool|meta"):
        bool(empty(1) > 0)
    with pytest.raises(RuntimeError, match="device"):
        empty(2) + torch.ones(2)
