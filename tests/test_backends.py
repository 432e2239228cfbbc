"""The contract of a backend, held by every one in the registry; `lra.check` runs the same."""

from typing import Any

import pytest

from lra.build import build_attention
from lra.check import attention_config
from lra.contract import CHECKS, Check, SkippedError, Subject, compiles, dropout, gpu
from models import ATTENTION

# At the kit's lengths some defaults hide what a backend does: a window over everything, one block.
SMALL_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("softmax", {"fused": False}),
    ("fourier", {"norm": "ortho", "method": "matrix"}),
    ("wavspa", {"wlen": 4, "level": 2, "inner": "linear"}),
    ("wavspa", {"wavelet": "ortho", "wlen": 4, "inner": "fourier"}),
    ("wavspa", {"wavelet": "adalift", "wlen": 4, "level": 2}),
    ("wavspa", {"wavelet": "lift53", "channel_reverse": True}),
    ("fourier_space", {"inner": "nystromformer"}),
    ("mra", {"block_size": 4, "blocks_per_row": 2, "first_blocks": 1}),
    ("mra_sparse", {"block_size": 4, "blocks_per_row": 3, "row_max": "live"}),
    ("nystromformer", {"landmarks": 7, "conv": 3}),
    ("nystromformer", {"landmarks": 7, "conv": None}),
    ("linformer", {"rank": 5, "shared": False}),
    ("longformer", {"window": 6, "num_global": 2}),
    ("performer", {"num_features": 13}),
    ("performer", {"features": "relu"}),
    ("performer", {"features": "relu_plain"}),
    ("bigbird", {"block_size": 3, "random_blocks": 1}),
    ("reformer", {"chunk_length": 5, "num_hashes": 3}),
]
CASES = [(name, {}) for name in ATTENTION] + SMALL_OPTIONS
MARKS = {compiles: pytest.mark.slow, gpu: pytest.mark.gpu}


def words(case: tuple[str, dict[str, Any]]) -> str:
    return "-".join([case[0], *(f"{key}={value}" for key, value in case[1].items())])


@pytest.mark.parametrize("case", CASES, ids=words)
@pytest.mark.parametrize(
    "check", [pytest.param(c, marks=MARKS.get(c, ()), id=c.__name__) for c in CHECKS]
)
def test_every_backend_keeps_the_contract(check: Check, case: tuple[str, dict[str, Any]]) -> None:
    name, options = case
    try:
        check(Subject(build_attention(attention_config(name, options))))
    except SkippedError as error:
        pytest.skip(str(error))


# What leaves attention weights unformed has none to drop, nor has MRA as published.
WITHOUT_DROPOUT = {"fourier", "mra", "mra_sparse", "linear", "nystromformer", "performer"}


@pytest.mark.parametrize("case", CASES, ids=words)
def test_dropout_is_left_out_by_the_backends_without_it_only(
    case: tuple[str, dict[str, Any]],
) -> None:
    name, options = case
    try:
        dropout(Subject(build_attention(attention_config(name, options))))
        acts = True
    except SkippedError:
        acts = False
    assert acts == (options.get("inner", name) not in WITHOUT_DROPOUT)


def test_small_options_are_of_registered_backends() -> None:
    assert {name for name, _ in SMALL_OPTIONS} <= set(ATTENTION)


@pytest.mark.parametrize("name", ATTENTION)
def test_every_backend_names_its_plain_form_and_how_memory_grows(name: str) -> None:
    backend = Subject(build_attention(attention_config(name, {}))).build()
    assert hasattr(backend, "reference")
    assert getattr(backend, "memory_growth", None) in (1, 2)
