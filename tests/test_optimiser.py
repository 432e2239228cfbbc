"""Schedules against their closed formulas, written out a second time."""

import math
from dataclasses import replace

import pytest
import torch

import lra.config
from lra.config import TrainConfig
from lra.optimiser import optimiser_for

BASE = lra.config.load("task=listops").train


def rates(train: TrainConfig, steps: int) -> list[tuple[float, float]]:
    """Return learning rate and beta 1 of the first updates."""
    optimiser, schedule = optimiser_for(torch.nn.Linear(2, 2), train)
    found = []
    for _ in range(steps):
        group = optimiser.param_groups[0]
        found.append((group["lr"], group["betas"][0]))
        optimiser.step()
        schedule.step()
    return found


def test_one_cycle_is_linear_up_and_down_and_turns_beta_the_other_way() -> None:
    train = replace(BASE, steps=100, warmup_steps=20, learning_rate=1e-3)
    for step, (rate, beta) in enumerate(rates(train, 100)):
        up, down = step / 19, (step - 19) / 80
        if step < 20:
            expected = 1e-3 * (1 / 25 + up * 24 / 25)
        else:
            expected = 1e-3 + down * (1e-3 / 25e4 - 1e-3)
        assert rate == pytest.approx(expected, rel=1e-9), step
        assert beta == pytest.approx(0.95 - 0.1 * up if step < 20 else 0.85 + 0.1 * down), step


def test_rsqrt_rises_to_its_peak_and_falls_with_the_root() -> None:
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
