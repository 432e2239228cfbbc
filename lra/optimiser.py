"""AdamW and the schedules of the published code, each a closed formula in the number of updates."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lra.config import ROLES, ConfigError, TrainConfig
from models.norms import ScaleNorm

Scheduler = torch.optim.lr_scheduler.LRScheduler


def rsqrt(step: int, warmup_steps: int) -> float:
    """Return min(1, t / w) / sqrt(max(t, w)), the factor of the base rate after t updates."""
    return min(1.0, step / warmup_steps) / math.sqrt(max(step, warmup_steps))


def cosine(step: int, warmup_steps: int, cycle_steps: int) -> float:
    """Return min(1, t / w) (1 + cos(pi frac((t - w) / T))) / 2, which restarts every T updates."""
    progress = max(0.0, (step - warmup_steps) / cycle_steps)
    return min(1.0, step / warmup_steps) * 0.5 * (1 + math.cos(math.pi * (progress % 1.0)))


def half_cosine(step: int, warmup_steps: int, steps: int, power: float = 1.0) -> float:
    """Return (t / w)^power up to w, then (1 + cos(pi p)) / 2 with p = (t - w) / (T - w)."""
    if step < warmup_steps:
        return math.pow(step / warmup_steps, power)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))


def linear(step: int, warmup_steps: int, steps: int, power: float = 1.0) -> float:
    """Return (t / w)^power up to w, then (T - t) / (T - w)."""
    if step < warmup_steps:
        return math.pow(step / warmup_steps, power)
    return max(0.0, (steps - step) / (steps - warmup_steps))


def constant(step: int, warmup_steps: int) -> float:
    """Return min(1, t / w)."""
    return min(1.0, step / warmup_steps)


def roles(model: nn.Module) -> dict[str, str]:
    """Return the role of each trainable parameter, by its name.

    A module assigns roles to its own parameters in an attribute `parameter_roles`, a dictionary by
    their names; any other parameter is a `bias`, part of a `norm` or an `embedding`, or a `weight`.

    Raises:
        ConfigError: A module assigns a role that is not in `lra.config.ROLES`.
    """
    found: dict[str, str] = {}
    for prefix, module in model.named_modules():
        given = getattr(module, "parameter_roles", {})
        for own, role in given.items():
            if role not in ROLES:
                where = f"{type(module).__name__}.parameter_roles"
                raise ConfigError(f"{where}: {own}={role!r}: must be one of {', '.join(ROLES)}")
        for name, parameter in module.named_parameters(prefix, recurse=False):
            # The same parameter in two places counts once, as in an optimiser.
            if parameter.requires_grad:
                own = name.rpartition(".")[2]
                found[name] = given.get(own) or _usual_role(module, own)
    kept = {name for name, _ in model.named_parameters()}
    return {name: role for name, role in found.items() if name in kept}


def _usual_role(module: nn.Module, name: str) -> str:
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, (nn.LayerNorm, nn.BatchNorm1d, ScaleNorm)):
        return "norm"
    return "bias" if name.endswith("bias") else "weight"


def groups_for(model: nn.Module, train: TrainConfig) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: one for each pair of learning rate and weight decay.

    Each group lists its roles under `roles`. If all parameters are treated alike, there is a single
    group without roles, with the parameters in the order of the model.

    Raises:
        ConfigError: A module assigns an unknown role, whether or not it would matter.
    """
    role_of = roles(model)
    if train.kernel_learning_rate is None and not train.undecayed:
        return [{"params": list(model.parameters())}]
    parameters = dict(model.named_parameters())
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, role in role_of.items():
        own = train.kernel_learning_rate if role in train.kernel_roles else None
        rate = train.learning_rate if own is None else own
        decay = 0.0 if role in train.undecayed else train.weight_decay
        empty = {"params": [], "lr": rate, "weight_decay": decay, "roles": []}
        group = groups.setdefault((rate, decay), empty)
        group["params"].append(parameters[name])
        if role not in group["roles"]:
            group["roles"].append(role)
    return list(groups.values())


def describe_groups(optimiser: torch.optim.Optimizer) -> str:
    """Return a line with the number of parameters, peak rate and decay of each group."""
    parts = []
    for group in optimiser.param_groups:
        number = sum(parameter.numel() for parameter in group["params"])
        whose = f" ({', '.join(group['roles'])})" if "roles" in group else ""
        rate = group.get("max_lr", group.get("initial_lr", group["lr"]))
        parts.append(f"{number:,}{whose} at {rate:g}, decay {group['weight_decay']:g}")
    return "; ".join(parts)


def optimiser_for(model: nn.Module, train: TrainConfig) -> tuple[torch.optim.Optimizer, Scheduler]:
    """Return AdamW, which is fused on a GPU, and its schedule; see `TrainConfig`.

    The schedule multiplies the rates of all groups by one factor.
    """
    # If fused, there is one kernel for all parameters, and no wait for the result of loss scaling.
    fused = {p.device.type for p in model.parameters()} == {"cuda"} or None
    optimiser = torch.optim.AdamW(
        groups_for(model, train),
        fused=fused,
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        eps=train.epsilon,
        weight_decay=train.weight_decay,
    )
    if train.schedule == "one_cycle":
        return optimiser, torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            max_lr=[group["lr"] for group in optimiser.param_groups],
            total_steps=train.steps,
            pct_start=train.warmup_steps / train.steps,
            anneal_strategy="linear",
        )
    warmup, cycle, power = train.warmup_steps, train.cycle_steps, train.warmup_power
    factors: dict[str, Callable[[int], float]] = {
        "rsqrt": lambda step: rsqrt(step, warmup),
        "cosine": lambda step: cosine(step, warmup, cycle),
        "half_cosine": lambda step: half_cosine(step, warmup, train.steps, power),
        "linear": lambda step: linear(step, warmup, train.steps, power),
        "constant": lambda step: constant(step, warmup),
    }
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factors[train.schedule])
