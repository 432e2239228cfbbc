"""Schedules against their closed formulas, written out a second time."""

import math
from dataclasses import replace

import pytest
import torch

import lra.compose
from lra.build import build_model
from lra.config import ROLES, TrainConfig
from lra.optimiser import describe_groups, groups_for, optimiser_for, roles

BASE = lra.compose.load("task=listops").train


def rates(train: TrainConfig, steps: int) -> list[tuple[float, float]]:
    """Return the learning rate and beta 1 of the first updates."""
    optimiser, schedule = optimiser_for(torch.nn.Linear(2, 2), train)
    found = []
    for _ in range(steps):
        group = optimiser.param_groups[0]
        found.append((group["lr"], group["betas"][0]))
        optimiser.step()
        schedule.step()
    return found


def test_one_cycle_is_linear_up_and_down_and_moves_beta_the_other_way() -> None:
    train = replace(BASE, steps=100, warmup_steps=20, learning_rate=1e-3)
    for step, (rate, beta) in enumerate(rates(train, 100)):
        up, down = step / 19, (step - 19) / 80
        if step < 20:
            expected = 1e-3 * (1 / 25 + up * 24 / 25)
        else:
            expected = 1e-3 + down * (1e-3 / 25e4 - 1e-3)
        assert rate == pytest.approx(expected, rel=1e-9), step
        assert beta == pytest.approx(0.95 - 0.1 * up if step < 20 else 0.85 + 0.1 * down), step


def test_rsqrt_rises_to_its_peak_and_falls_with_the_inverse_root() -> None:
    train = replace(BASE, steps=5000, warmup_steps=1000, learning_rate=0.05, schedule="rsqrt")
    found = [rate for rate, _ in rates(train, 4001)]
    assert found[0] == 0
    assert found[500] == pytest.approx(0.05 * 0.5 / math.sqrt(1000))
    assert max(found) == found[1000] == pytest.approx(1.58e-3, rel=1e-3)
    assert found[4000] == pytest.approx(found[1000] / 2)


def test_rsqrt_may_never_leave_its_warm_up() -> None:
    train = replace(BASE, steps=5000, warmup_steps=8000, learning_rate=0.05, schedule="rsqrt")
    found = [rate for rate, _ in rates(train, 5000)]
    assert max(found) == found[-1] == pytest.approx(3.5e-4, rel=3e-3)


def test_cosine_restarts_after_every_cycle() -> None:
    train = replace(
        BASE, steps=500, warmup_steps=10, learning_rate=1e-3, schedule="cosine", cycle_steps=100
    )
    found = [rate for rate, _ in rates(train, 320)]
    assert found[5] == pytest.approx(5e-4)
    assert found[60] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert found[109] < 1e-6 and found[110] == pytest.approx(1e-3)
    assert found[260] == pytest.approx(found[60])


def test_adamw_takes_its_constants_from_the_configuration() -> None:
    train = replace(BASE, schedule="rsqrt", beta1=0.8, beta2=0.98, epsilon=1e-9, weight_decay=0.1)
    group = optimiser_for(torch.nn.Linear(2, 2), train)[0].param_groups
    assert len(group) == 1
    keys = ("betas", "eps", "weight_decay")
    assert [group[0][key] for key in keys] == [(0.8, 0.98), 1e-9, 0.1]


def test_a_half_cosine_falls_to_zero_after_its_warm_up() -> None:
    train = replace(BASE, steps=300, warmup_steps=20, learning_rate=1e-2, schedule="half_cosine")
    found = [rate for rate, _ in rates(train, 300)]
    assert found[0] == 0 and found[5] == pytest.approx(2.5e-3) and found[20] == 1e-2
    for step in (21, 100, 160, 299):
        angle = math.pi * (step - 20) / 280
        assert found[step] == pytest.approx(5e-3 * (1 + math.cos(angle)), rel=1e-9), step
    assert found[299] < 1e-6


def test_linear_decay_reaches_zero_and_its_warm_up_may_follow_a_power() -> None:
    train = replace(BASE, steps=300, warmup_steps=20, learning_rate=1e-2, schedule="linear")
    found = [rate for rate, _ in rates(train, 300)]
    assert found[5] == pytest.approx(2.5e-3) and found[20] == 1e-2
    assert found[160] == pytest.approx(5e-3) and found[299] == pytest.approx(1e-2 / 280)
    squared = [rate for rate, _ in rates(replace(train, warmup_power=2.0), 40)]
    assert squared[5] == pytest.approx(1e-2 / 16) and squared[20:] == found[20:40]


# From the tables in the published code: the role of each parameter of a layer.
OWN_ROLES = {
    "s4d": {"step": "dt", "decay": "A", "frequency": "A", "b": "B", "c": "C", "d": "weight"},
    "s5": {"real": "A", "imag": "A", "step": "dt", "b": "B", "c": "C", "d": "weight"},
    "lru": {"nu": "A", "theta": "A", "gamma": "A", "b": "B", "c": "C", "d": "weight"},
}


@pytest.mark.parametrize("attention", OWN_ROLES)
def test_every_parameter_has_one_role(attention: str) -> None:
    words = ["scale=mini", f"attention={attention}", "model.norm=batch", "model.channel_mixing=glu"]
    model = build_model(lra.compose.load("task=listops", *words))
    found = roles(model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, role in OWN_ROLES[attention].items():
        assert found[f"encoder.blocks.0.attention.{name}"] == role, name
    assert found["encoder.embedding.tokens.weight"] == "embedding"
    assert found["encoder.embedding.positions"] == "embedding"
    assert found["encoder.blocks.0.attention_norm.bias"] == "norm"
    assert found["encoder.blocks.1.output.linear.bias"] == "bias"
    assert found["head.0.weight"] == "weight" and found["head.0.bias"] == "bias"


class Mine(torch.nn.Module):
    """A user's own layer."""

    def __init__(self, role: str | None) -> None:
        super().__init__()
        self.nu = torch.nn.Parameter(torch.zeros(3))
        self.parameter_roles = {"nu": role}


@pytest.mark.parametrize("role", ["a", "delta", "", None])
@pytest.mark.parametrize("undecayed", [[], ["A"]])
def test_an_unknown_role_is_refused_with_the_choices(
    role: str | None, undecayed: list[str]
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), Mine(role))
    with pytest.raises(ValueError) as refused:
        groups_for(model, replace(BASE, undecayed=undecayed))
    message = f"Mine.parameter_roles: nu={role!r}: must be one of {', '.join(ROLES)}"
    assert str(refused.value) == message
    assert roles(Mine("A")) == {"nu": "A"}


def test_groups_have_the_rates_and_decays_of_their_roles_and_cover_the_whole_model() -> None:
    model = build_model(lra.compose.load("task=listops", "scale=mini", "attention=s4d"))
    train = replace(
        BASE,
        schedule="half_cosine",
        learning_rate=0.01,
        weight_decay=0.05,
        kernel_learning_rate=0.001,
        kernel_roles=["A", "B"],
        undecayed=["dt", "A", "B", "bias", "norm", "embedding"],
    )
    wanted = {
        "dt": (0.01, 0.0),
        "A": (0.001, 0.0),
        "B": (0.001, 0.0),
        "C": (0.01, 0.05),
        "weight": (0.01, 0.05),
        "bias": (0.01, 0.0),
        "norm": (0.01, 0.0),
        "embedding": (0.01, 0.0),
    }
    optimiser, schedule = optimiser_for(model, train)
    found = {
        id(parameter): (group["initial_lr"], group["weight_decay"])
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    assert len(optimiser.param_groups) == len(set(wanted.values())) == 3
    own = roles(model)
    assert len(found) == len(own) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert found[id(parameter)] == wanted[own[name]], name
    line = describe_groups(optimiser)
    assert "(A, B) at 0.001, decay 0" in line and "at 0.01, decay 0.05" in line
    optimiser.step()
    for _ in range(train.warmup_steps // 2):
        schedule.step()
    # One factor applies to all groups.
    for group in optimiser.param_groups:
        assert group["lr"] == pytest.approx(group["initial_lr"] / 2)


def test_if_all_parameters_are_treated_alike_there_is_one_group_in_their_order() -> None:
    model = build_model(lra.compose.load("task=listops", "scale=mini", "attention=s4d"))
    [group] = groups_for(model, BASE)
    assert all(map(lambda a, b: a is b, group["params"], model.parameters()))
    line = describe_groups(optimiser_for(model, replace(BASE, weight_decay=0.1))[0])
    assert line == f"{sum(p.numel() for p in model.parameters()):,} at 0.0001, decay 0.1"


def test_clipping_counts_the_gradients_of_all_groups() -> None:
    from lra.batches import Batch
    from lra.precision import scaler_for
    from lra.update import update

    words = ["scale=mini", "attention=s4d", "train.clip_norm=0.001"]
    config = lra.compose.load("task=listops", *words)
    train = replace(config.train, undecayed=["bias"])
    model = build_model(config)
    optimiser, _ = optimiser_for(model, train)
    assert len(optimiser.param_groups) == 1
    train = replace(train, weight_decay=0.1)
    optimiser, _ = optimiser_for(model, train)
    assert len(optimiser.param_groups) == 2
    tokens = torch.randint(1, 9, (4, 12))
    batch = Batch(tokens, None, torch.arange(4), 120)
    update(model, optimiser, [batch], train, scaler_for(torch.device("cpu"), "float32"))
    norms = torch.stack([p.grad.norm() for p in model.parameters()])
    assert norms.norm().item() == pytest.approx(0.001, rel=1e-3)
