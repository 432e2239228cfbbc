"""AdamW and the schedules of the published codes, each a closed formula of the updates made."""

import math
from collections.abc import Callable

import torch
from torch import nn

from lra.config import TrainConfig

Scheduler = torch.optim.lr_scheduler.LRScheduler


def rsqrt(step: int, warmup_steps: int) -> float:
    """Return min(1, t / w) / sqrt(max(t, w)), the factor of the base rate after t updates."""
    return min(1.0, step / warmup_steps) / math.sqrt(max(step, warmup_steps))


def cosine(step: int, warmup_steps: int, cycle_steps: int) -> float:
    """Return min(1, t / w) (1 + cos(pi frac((t - w) / T))) / 2, which restarts every T updates."""
    progress = max(0.0, (step - warmup_steps) / cycle_steps)
    return min(1.0, step / warmup_steps) * 0.5 * (1 + math.cos(math.pi * (progress % 1.0)))


def optimiser_for(model: nn.Module, train: TrainConfig) -> tuple[torch.optim.Optimizer, Scheduler]:
    """Return AdamW, which decays every parameter alike, and its schedule; see `TrainConfig`."""
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        eps=train.epsilon,
        weight_decay=train.weight_decay,
    )
    if train.schedule == "one_cycle":
        return optimiser, torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            max_lr=train.learning_rate,
            total_steps=train.steps,
            pct_start=train.warmup_steps / train.steps,
            anneal_strategy="linear",
        )
    warmup, cycle = train.warmup_steps, train.cycle_steps
    factors: dict[str, Callable[[int], float]] = {
        "rsqrt": lambda step: rsqrt(step, warmup),
        "cosine": lambda step: cosine(step, warmup, cycle),
    }
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factors[train.schedule])
