"""Float16 with loss scaling: the types of computations, skipped updates, and resumed runs."""

from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_cell import TINY, configure

import lra.compose
import lra.loop
from lra.build import build_model
from lra.cell import finished
from lra.checkpoint import CHECKPOINT, load
from lra.config import comparable, config_hash
from lra.loop import Run
from lra.optimiser import optimiser_for
from lra.precision import autocast
from lra.runner import run_cell
from models import ATTENTION
from models.encoder import Block
from models.linear import Linear
from models.sizes import ModelConfig

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("attention", ATTENTION)
def test_float16_stays_near_float32_in_outputs_and_gradients(attention: str) -> None:
    still = ("model.dropout=0.0", "model.attention_dropout=0.0")
    model = build_model(lra.compose.load(*TINY, f"attention={attention}", *still))
    tokens = torch.randint(1, 16, (4, 40))
    mask = torch.arange(40) < torch.tensor([40, 31, 9, 1])[:, None]
    found = []
    for precision in ("float32", "float16"):
        model.zero_grad()
        with autocast(CPU, precision):
            logits = model(tokens * mask, mask).float()
        (logits.square().sum() * 2**10).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((logits.detach(), gradient / 2**10))
    for exact, rounded in zip(*found, strict=True):
        assert not torch.equal(exact, rounded)
        assert (exact - rounded).norm() / exact.norm() < 0.02


def test_only_attention_is_float32_under_float16_autocast() -> None:
    config = ModelConfig(
        layers=1, dim=8, heads=1, head_dim=8, mlp_dim=12, max_length=9, vocab_size=5
    )
    seen: dict[str, torch.dtype] = {}
    block = Block(config, Linear)

    def keep(name: str) -> object:
        return lambda module, inputs, output: seen.__setitem__(name, output.dtype)

    for name, module in {"attention": block.attention, "mlp": block.mlp[0]}.items():
        module.register_forward_hook(keep(name))
    for precision, attention, mlp in [
        ("float16", torch.float32, torch.float16),
        ("bfloat16", torch.bfloat16, torch.bfloat16),
        ("float32", torch.float32, torch.float32),
    ]:
        with autocast(CPU, precision):
            block(torch.randn(2, 9, 8), None)
        assert seen == {"attention": attention, "mlp": mlp}, precision


def test_sums_beyond_the_range_of_float16_stay_finite() -> None:
    config = ModelConfig(
        layers=1, dim=8, heads=1, head_dim=8, mlp_dim=12, max_length=5000, vocab_size=5
    )
    block = Block(config, Linear)
    with torch.no_grad():
        block.attention.projections.qkv.bias.fill_(60.0)
    x = torch.randn(1, 5000, 8)
    # 5,000 keys of about 61 sum to some 305,000; float16 ends at 65,504.
    with autocast(CPU, "float16"):
        assert block(x, None).isfinite().all()
    with torch.autocast("cpu", torch.float16):
        assert not block.attention(x, None).isfinite().all()


def test_float16_on_gpu_is_float32_on_the_cpu_and_the_record_says_so(tmp_path: Path) -> None:
    on_cpu = configure(tmp_path, "train.precision=float16_on_gpu", "device=cpu")
    record = run_cell(on_cpu, tmp_path)
    assert record is not None
    assert (record.dtype, record.config["train"]["precision"]) == ("float32", "float32")
    plain = configure(tmp_path, "train.precision=float32", "device=cpu")
    assert run_cell(plain, tmp_path) is None
    on_gpu = comparable(on_cpu, device="cuda")
    assert on_gpu["train"]["precision"] == "float16"
    assert config_hash(on_gpu) != config_hash(comparable(plain, device="cuda"))


@pytest.mark.parametrize(
    ("variant", "overrides"),
    [
        ("steps800", ("train.steps=800", "train.warmup_steps=160", "train.validate_every=200")),
        ("default", ()),
    ],
)
def test_the_committed_records_of_a_float32_run_still_count(
    variant: str, overrides: tuple[str, ...]
) -> None:
    config = lra.compose.load("task=listops", "attention=fourier", f"variant={variant}", *overrides)
    folder = ROOT / f"results/runs/paper/nystromformer/listops/fourier/{variant}/seed0"
    assert config.train.precision == "float16_on_gpu"
    assert finished(folder, comparable(config, device="cpu", threads=1, data=None))


def test_the_mini_scale_is_float32_under_every_protocol() -> None:
    for protocol in ("nystromformer", "lra", "wavspa"):
        config = lra.compose.load("scale=mini", f"protocol={protocol}")
        assert config.train.precision == "float32"


@pytest.fixture
def small_scaler(monkeypatch: pytest.MonkeyPatch) -> float:
    """Make the scaler start far too high and grow every fifth step, so that it skips some."""
    first = 2.0**27
    scaler = partial(torch.amp.GradScaler, init_scale=first, growth_interval=5)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    return first


FLOAT16 = ("train.precision=float16", "device=cpu", "train.checkpoint_seconds=0")


def test_skipped_updates_count_as_steps_and_the_schedule_goes_on(
    tmp_path: Path, small_scaler: float
) -> None:
    config = configure(tmp_path, *FLOAT16, "train.clip_norm=0.5")
    record = run_cell(config, tmp_path)
    assert record is not None
    assert (record.status, record.dtype, record.steps) == ("ok", "float16", 60)
    assert 0 < record.skipped_updates < 60
    state = load(tmp_path / CHECKPOINT, CPU)
    made = {int(each["step"]) for each in state["optimiser"]["state"].values()}
    assert made == {60 - record.skipped_updates}
    optimiser, schedule = optimiser_for(torch.nn.Linear(2, 2), config.train)
    for _ in range(59):
        optimiser.step()
        schedule.step()
    assert state["schedule"]["_last_lr"] == schedule.get_last_lr()


def test_gradients_are_clipped_after_the_scale_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []
    clip = torch.nn.utils.clip_grad_norm_

    def watch(parameters: object, most: float) -> torch.Tensor:
        norms.append(float(clip(parameters, most)))
        return torch.tensor(norms[-1])

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watch)
    run_cell(configure(tmp_path, *FLOAT16, "train.clip_norm=0.5", "train.steps=12"), tmp_path)
    # The loss is about 2.3 and its gradient of that order; scaled it would be 65,536 times that.
    assert len(norms) == 12 and 0 < max(norms) < 100


def test_a_stopped_float16_run_ends_with_the_same_bits_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_scaler: float
) -> None:
    config = configure(tmp_path, *FLOAT16)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    run_cell(config, whole)
    save = Run._save

    def save_and_stop(run: Run) -> None:
        save(run)
        if run.progress.step == 13:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "_save", save_and_stop)
        run_cell(config, broken)
    middle = load(broken / CHECKPOINT, CPU)["scaler"]
    assert middle["scale"] != small_scaler and middle["_growth_tracker"] > 0
    run_cell(config, broken)
    ours, theirs = (load(folder / CHECKPOINT, CPU) for folder in (whole, broken))
    assert ours["scaler"] == theirs["scaler"] != middle
    assert ours["schedule"] == theirs["schedule"]
    assert all(torch.equal(ours["model"][key], theirs["model"][key]) for key in ours["model"])
    for index, moments in ours["optimiser"]["state"].items():
        other = theirs["optimiser"]["state"][index]
        assert all(torch.equal(moments[key], other[key]) for key in moments)


@pytest.mark.gpu
def test_a_recipe_trains_in_float16_on_a_gpu(tmp_path: Path) -> None:
    config = configure(tmp_path, "train.precision=float16_on_gpu", "device=cuda")
    record = run_cell(config, tmp_path)
    assert record is not None
    assert (record.status, record.dtype) == ("ok", "float16")
    # The scale of the loss begins too large, and halves with each update that overflows.
    assert record.skipped_updates < record.steps / 2
