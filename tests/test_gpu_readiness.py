"""GPU requirements that a CPU can check: no update waits for contents, and shapes are few."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_cell import TINY, configure

import lra.compose
import lra.update
from lra import memory
from lra.batches import Batches
from lra.build import build_model
from lra.config import Config
from lra.division import Division, division_for
from lra.optimiser import optimiser_for
from lra.precision import scaler_for
from lra.runner import run_cell
from lra.tasks import Split
from lra.update import update
from models import ATTENTION
from models.precision import unrounded

# Backends with options that place something by an index.
INDEXED = (
    ("attention=longformer", "attention.options.global_positions=[3,9]"),
    ("attention=nystromformer", "attention.options.exact_count=true"),
    ("attention=nystromformer", "attention.options.landmarks_over_padding=true"),
)


def split_of(lengths: list[int]) -> Split:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 15, sum(lengths)).astype(np.uint8)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Split(tokens, offsets, rng.integers(0, 10, len(lengths)))


def one_update(config: Config, device: torch.device) -> torch.Tensor:
    """Make two updates on a device, from split to parameters, and return the last loss."""
    model = build_model(config).to(device)
    batches = Batches(
        split_of([40, 3, 17, 33, 40, 12, 8, 25]),
        padded_length=40,
        truncate=40,
        id_shift=0,
        zero_is_padding=config.model.zero_is_padding,
        trim=model.encoder.pad_invariant,
        device=device,
    )
    optimiser, schedule = optimiser_for(model, config.train)
    scaler = scaler_for(device, config.train.precision)
    loss = None
    for step in range(2):
        parts = batches.divided(step, 6, 0, Division(tokens=100, shapes=2))
        loss = update(model, optimiser, parts, config.train, scaler)
        schedule.step()
    assert loss is not None
    return loss


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize(
    "words",
    [
        ("train.clip_norm=1.0", "model.zero_is_padding=true"),
        pytest.param((), marks=pytest.mark.slow),
    ],
)
def test_no_update_waits_for_tensor_contents_or_mixes_devices(attention: str, words: tuple) -> None:
    # Tensors on the meta device have no contents: any operation that asks for them raises.
    config = lra.compose.load(*TINY, f"attention={attention}", *words)
    loss = one_update(config, torch.device("meta"))
    assert loss.device.type == "meta" and loss.shape == ()
    with pytest.raises(RuntimeError):
        loss.item()


@pytest.mark.parametrize("words", INDEXED)
def test_no_option_copies_a_list_to_the_device_in_an_update(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = torch.tensor

    def on_host(data: object, **options: object) -> torch.Tensor:
        # Copying from ordinary memory to a GPU makes the host wait.
        assert torch.device(options.get("device") or "cpu").type == "cpu", data
        return tensor(data, **options)

    monkeypatch.setattr(torch, "tensor", on_host)
    assert one_update(lra.compose.load(*TINY, *words), torch.device("meta")).shape == ()


def test_a_gpu_is_initialised_before_its_peak_memory_is_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[object] = []
    monkeypatch.setattr(torch.cuda, "init", lambda: called.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", called.append)
    memory.reset(torch.device("cuda:1"))
    assert called == ["init", torch.device("cuda:1")]


def test_wavelet_convolutions_are_not_rounded_by_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    with unrounded(torch.ones(1)):
        assert convolutions.fp32_precision == "ieee"
    assert convolutions.fp32_precision == before and torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("attention", ["softmax", "fourier"])
def test_at_most_eight_shapes_are_compiled_and_the_record_counts_them(
    attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def compile(model: torch.nn.Module, **options: object) -> object:
        def forward(tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            seen.add((tokens.shape, mask is None))
            logits: torch.Tensor = model(tokens, mask)
            return logits

        return forward

    monkeypatch.setattr(torch, "compile", compile)
    sizes = ("task.options.max_length=400", "task.truncate=400", "model.max_length=400")
    words = ("train.compile=true", "train.batch_size=16", f"attention={attention}", *sizes)
    record = run_cell(configure(tmp_path, *words, "task.options.num_train=300"), tmp_path)
    assert record is not None and record.compiled and record.train_seconds is not None
    assert 1 <= len(seen) <= 8 and record.compiled_shapes == len(seen)
    assert len({shape[1] for shape, _ in seen}) == len(seen)
    # An update that meets a new shape does not count towards the speed.
    assert 0 < record.first_call_seconds < record.train_seconds


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from torch's own imports
def test_a_compiled_model_has_room_for_every_shape_of_every_layer(tmp_path: Path) -> None:
    before = torch._dynamo.config.recompile_limit
    try:
        torch._dynamo.config.recompile_limit = 1
        lra.update.compiled(build_model(configure(tmp_path, "model.layers=3")))
        assert torch._dynamo.config.recompile_limit >= 3 * 8
    finally:
        torch._dynamo.config.recompile_limit = before


def test_the_optimiser_is_fused_only_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    adamw = torch.optim.AdamW

    def watch(*arguments: object, fused: bool | None, **options: object) -> object:
        asked.append(fused)
        return adamw(*arguments, **options)

    monkeypatch.setattr(torch.optim, "AdamW", watch)
    config = lra.compose.load(*TINY)
    model = build_model(config)
    optimiser_for(model, config.train)
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda"))
    optimiser_for(model, config.train)
    assert asked == [None, True]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("words", [*((f"attention={each}",) for each in ATTENTION), *INDEXED])
def test_no_update_on_a_gpu_synchronises(words: tuple[str, ...], precision: str) -> None:
    device = torch.device("cuda")
    config = lra.compose.load(*TINY, *words, f"train.precision={precision}")
    # One-time set-up may wait.
    one_update(config, device)
    model = build_model(config).to(device)
    batches = Batches(
        split_of([40, 3, 17, 33]),
        padded_length=40,
        truncate=40,
        id_shift=0,
        trim=model.encoder.pad_invariant,
        device=device,
    )
    optimiser, _ = optimiser_for(model, config.train)
    assert optimiser.defaults["fused"]
    scaler, division = scaler_for(device, precision), division_for(None, model, device)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for step in range(2):
            parts = batches.divided(step, 3, 0, division)
            update(model, optimiser, parts, config.train, scaler)
    finally:
        torch.cuda.set_sync_debug_mode("default")
