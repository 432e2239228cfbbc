"""The contract of backends, kept by all in the registry; `lra.check` runs the same checks."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lra.build import build_attention, build_model
from lra.check import attention_config
from lra.compose import load
from lra.config import ConfigError
from lra.contract import CHECKS, SMALL, Check, SkippedError, Subject, compiles, dropout, gpu
from models import ATTENTION
from models.softmax import Softmax

# At the checks' lengths, some defaults hide what a backend does: a window over all, one block.
SMALL_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("softmax", {"fused": False}),
    ("fourier", {"norm": "ortho", "method": "matrix"}),
    ("wavspa", {"wlen": 4, "level": 2, "inner": "linear"}),
    ("wavspa", {"wavelet": "ortho", "wlen": 4, "inner": "fourier"}),
    ("wavspa", {"wavelet": "adalift", "wlen": 4, "level": 2}),
    ("fourier_space", {"inner": "nystromformer"}),
    ("mra", {"block_size": 4, "blocks_per_row": 2, "first_blocks": 1}),
    ("mra_sparse", {"block_size": 4, "blocks_per_row": 3, "row_max": "live"}),
    ("nystromformer", {"landmarks": 7, "conv": 3}),
    ("nystromformer", {"landmarks": 7, "exact_count": True}),
    ("nystromformer", {"landmarks": 7, "landmarks_over_padding": True}),
    ("linformer", {"rank": 5, "shared": False}),
    ("linformer", {"rank": 5, "spread": None, "share_layers": True}),
    ("linear", {"feature_map": "relu"}),
    ("ssd", {"chunk": 5}),
    ("gated_delta", {"chunk": 5}),
    ("longformer", {"window": 6, "num_global": 2}),
    ("longformer", {"window": 4, "num_global": 0, "dilation": 3, "global_positions": (5, 36)}),
    ("performer", {"num_features": 13}),
    ("performer", {"num_features": 13, "redraw": 2}),
    ("performer", {"features": "relu"}),
    ("bigbird", {"block_size": 3, "random_blocks": 1}),
    ("bigbird", {"block_size": 3, "window_blocks": 1, "global_blocks": 2, "random_limit": 30}),
    ("reformer", {"chunk_length": 5, "num_hashes": 3}),
    ("reformer", {"chunk_length": 5, "num_hashes": 1, "eval_hashes": 4}),
    ("s4d", {"init": "legs", "discretisation": "bilinear", "bidirectional": False, "copies": 2}),
    ("s5", {"states": 12, "blocks": 3, "c_init": "complex_normal", "clip": True}),
    ("s5", {"states": 12, "blocks": 1, "bidirectional": False, "as_released": False}),
    ("lru", {"states": 9, "r_min": 0.5, "r_max": 0.9, "bidirectional": True}),
    ("ema", {"truncation": 7, "bidirectional": False, "inner": "linear"}),
    ("mega", {"weighting": "laplace", "norm": "scale", "dropout": 0.2}),
    ("mega", {"chunk": 5, "norm": "batch", "values": 7, "queries": 3}),
]
# More of them, for `make test-all`: the others run their code too, but for a branch or a size.
RARE: list[tuple[str, dict[str, Any]]] = [
    ("nystromformer", {"landmarks": 64, "exact_count": True}),
    ("nystromformer", {"landmarks": 7, "conv": None}),
    ("performer", {"num_features": 13, "epsilon": 1e-4}),
    ("performer", {"features": "relu_plain"}),
    ("reformer", {"chunk_length": 5, "num_hashes": 3, "eval_hashes": 1}),
    ("linear", {"feature_map": "square"}),
    ("ssd", {"chunk": 5, "bidirectional": False}),
    ("gated_delta", {"chunk": 5, "bidirectional": False}),
    ("wavspa", {"wavelet": "lift53", "channel_reverse": True}),
    ("ema", {"truncation": None, "states": 3, "inner": "linformer"}),
]
CASES = [(name, {}) for name in ATTENTION] + SMALL_OPTIONS + RARE
OPTIONS = {
    (name, key): parameter.annotation
    for name, backend in ATTENTION.items()
    for key, parameter in inspect.signature(backend).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}
NESTING = [name for name, key in OPTIONS if key == "inner"]
MRA_OPTIONS = [key for name, key in OPTIONS if name == "mra"]
MARKS = {compiles: pytest.mark.slow, gpu: pytest.mark.gpu}


def words(case: tuple[str, dict[str, Any]]) -> str:
    return "-".join([case[0], *(f"{key}={value}" for key, value in case[1].items())])


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c in RARE), id=words(c)) for c in CASES]
)
@pytest.mark.parametrize(
    "check", [pytest.param(c, marks=MARKS.get(c, ()), id=c.__name__) for c in CHECKS]
)
def test_every_backend_keeps_the_contract(check: Check, case: tuple[str, dict[str, Any]]) -> None:
    name, options = case
    try:
        check(Subject(build_attention(attention_config(name, options))))
    except SkippedError as error:
        pytest.skip(str(error))


WRONG: list[tuple[str, str, Any, str]] = [
    ("fourier", "norm", "forward", "must be one of backward, ortho"),
    ("fourier", "method", "dft", "must be one of fft, matrix"),
    ("wavspa", "wavelet", "life", "must be one of ada, ortho, fixed, lift53, adalift"),
    ("wavspa", "wlen", 7, "must be even and at least 2"),
    ("wavspa", "level", 0, "must be at least 1"),
    ("wavspa", "init", "haar", "must be one of uniform, db"),
    ("mra", "blocks_per_row", 0, "must be at least 1"),
    ("mra", "block_size", 0, "must be at least 1"),
    ("mra", "first_blocks", -1, "must be at least 0"),
    ("mra", "diagonal_blocks", -1, "must be at least 0"),
    ("mra_sparse", "row_max", "dead", "must be one of official, live"),
    ("mra", "input_shape", (-8, -8), "sides must be at least 1"),
    ("nystromformer", "landmarks", 0, "must be at least 1"),
    ("nystromformer", "iterations", -1, "must be at least 0"),
    ("nystromformer", "conv", 4, "must be odd and at least 1"),
    ("linear", "feature_map", "exp", "must be one of elu, relu, square"),
    ("linformer", "rank", 0, "must be at least 1"),
    ("linformer", "spread", 0.0, "must be a finite number above 0"),
    ("longformer", "window", 0, "must be even and at least 2"),
    ("longformer", "window", 5, "must be even and at least 2"),
    ("longformer", "num_global", -1, "must be at least 0"),
    ("longformer", "global_positions", (64,), "must be from 0 to max_length - 1 = 63"),
    ("longformer", "global_positions", (-1,), "must be from 0 to max_length - 1 = 63"),
    ("longformer", "dilation", 0, "must be at least 1"),
    ("performer", "features", "gelu", "must be one of favor, relu, relu_plain"),
    ("performer", "num_features", 0, "must be at least 1"),
    ("performer", "redraw", 0, "must be at least 1"),
    ("performer", "epsilon", 0.0, "must be a finite number above 0"),
    ("performer", "seed", 10**50, "must be from 0 to 9223372036854775807"),
    ("bigbird", "block_size", 0, "must be at least 1"),
    ("bigbird", "random_blocks", -1, "must be at least 0"),
    ("bigbird", "window_blocks", 2, "must be odd and at least 1"),
    ("bigbird", "global_blocks", -1, "must be at least 0"),
    ("bigbird", "random_limit", 31, "must be at least 32"),
    ("bigbird", "seed", -1, "must be from 0 to 9223372036854775807"),
    ("reformer", "num_hashes", 0, "must be at least 1"),
    ("reformer", "chunk_length", 0, "must be at least 1"),
    ("reformer", "num_buckets", 0, "must be even and at least 2"),
    ("reformer", "num_buckets", 7, "must be even and at least 2"),
    ("reformer", "eval_hashes", 0, "must be at least 1"),
    ("reformer", "seed", 2**63, "must be from 0 to 9223372036854775807"),
    ("s4d", "states", 5, "must be even and at least 2"),
    ("s4d", "init", "real", "must be one of lin, inv, legs"),
    ("s4d", "discretisation", "euler", "must be one of zoh, bilinear"),
    ("s4d", "step_min", 0.0, "must be a finite number above 0"),
    ("s4d", "step_max", 1e-4, "must be a finite number, at least step_min=0.001"),
    ("s4d", "step_transform", "log", "must be one of exp, softplus"),
    ("s4d", "copies", 5, "must divide 16"),
    ("s5", "states", 5, "must be even and at least 2"),
    ("s5", "blocks", 5, "must divide 128"),
    ("s5", "c_init", "zeros", "must be one of lecun_normal, trunc_standard_normal, complex_normal"),
    ("s5", "step_min", -1.0, "must be a finite number above 0"),
    ("s5", "step_max", 1e-4, "must be a finite number, at least step_min=0.001"),
    ("lru", "states", 0, "must be at least 1"),
    ("lru", "r_min", -0.1, "must be from 0 to 1"),
    ("lru", "r_max", 1.1, "must be from 0 to 1"),
    ("lru", "max_phase", 0.0, "must be a finite number above 0"),
    ("ema", "states", 0, "must be at least 1"),
    ("ema", "truncation", 0, "must be at least 1"),
    ("mega", "values", 0, "must be at least 1"),
    ("mega", "queries", 0, "must be at least 1"),
    ("mega", "states", 0, "must be at least 1"),
    ("mega", "truncation", 0, "must be at least 1"),
    ("mega", "weighting", "relu2", "must be one of softmax, laplace"),
    ("mega", "chunk", 0, "must be at least 1"),
    ("mega", "norm", "group", "must be one of none, layer, batch, scale"),
    ("mega", "dropout", 1.5, "must be from 0 to 1"),
    ("ssd", "chunk", 0, "must be at least 1"),
    ("gated_delta", "chunk", 0, "must be at least 1"),
]


@pytest.mark.parametrize(("name", "key", "value", "right"), WRONG)
def test_an_option_out_of_range_is_refused_when_the_backend_is_built(
    name: str, key: str, value: Any, right: str
) -> None:
    inside = {"inner": Softmax} if name in NESTING else {}
    with pytest.raises(ValueError) as refused:
        ATTENTION[name](SMALL, **inside, **{key: value})
    assert str(refused.value) == f"{key}={value}: {right}"


def test_every_option_with_a_range_is_tried_outside_it() -> None:
    # Either value of a bool is allowed, and tiles are tried with the shape of their image.
    free = {(name, key) for name, key in OPTIONS if OPTIONS[name, key] is bool} | {
        *(("mra_sparse", key) for key in MRA_OPTIONS),
        *(("mra", key) for key in ("row_max", "tile")),
        *((name, "inner") for name in NESTING),
    }
    assert {(name, key) for name, key, _, _ in WRONG} | free == set(OPTIONS)


@pytest.mark.parametrize("words", [("mra", "first_blocks=-1"), ("mra_sparse", "block_size=0")])
def test_a_wrong_option_is_reported_before_data_are_read(words: tuple[str, str]) -> None:
    name, option = words
    config = load("task=listops", f"attention={name}", f"attention.options.{option}", "scale=mini")
    with pytest.raises(ConfigError, match=f"^attention {name}: {option}: must be at least"):
        build_model(config)


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("case", CASES, ids=words)
@pytest.mark.usefixtures("float64_by_default")
def test_every_backend_computes_in_float64_if_that_is_the_default(
    case: tuple[str, dict[str, Any]],
) -> None:
    name, options = case
    subject = Subject(build_attention(attention_config(name, options)))
    backend, (x, mask) = subject.build(), subject.inputs()
    output = backend(x.requires_grad_(), mask)
    assert output.dtype == torch.float64
    plain = backend.reference(x, mask)
    torch.testing.assert_close(output[mask], plain[mask], atol=1e-9, rtol=1e-9)
    (gradient,) = torch.autograd.grad(output[mask].sum(), x)
    assert gradient.dtype == torch.float64 and gradient.isfinite().all()


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.usefixtures("float64_by_default")
def test_a_whole_model_computes_in_float64_if_that_is_the_default(positions: str) -> None:
    config = load(
        "task=listops", "attention=performer", "scale=mini", f"model.positions={positions}"
    )
    logits = build_model(config)(torch.randint(1, 16, (2, 16)), None)
    logits.sum().backward()
    assert logits.dtype == torch.float64


# A backend that forms no attention weights has none to drop; nor has MRA as published.
WITHOUT_DROPOUT = {"fourier", "mra", "mra_sparse", "linear", "nystromformer", "performer"}
WITHOUT_DROPOUT |= {"s5", "lru", "ssd", "gated_delta"}


@pytest.mark.parametrize("case", CASES, ids=words)
def test_dropout_acts_in_every_backend_but_those_without_it(
    case: tuple[str, dict[str, Any]],
) -> None:
    name, options = case
    try:
        dropout(Subject(build_attention(attention_config(name, options))))
        acts = True
    except SkippedError:
        acts = False
    assert acts == (options.get("inner", name) not in WITHOUT_DROPOUT)


def test_small_options_belong_to_registered_backends() -> None:
    assert {name for name, _ in SMALL_OPTIONS + RARE} <= set(ATTENTION)


@pytest.mark.parametrize("name", ATTENTION)
def test_every_backend_has_a_plain_form_and_declares_its_memory_growth(name: str) -> None:
    backend = Subject(build_attention(attention_config(name, {}))).build()
    assert hasattr(backend, "reference")
    assert getattr(backend, "memory_growth", None) in (1, 2)
