"""Initial values of linear layers in published code, where they differ from torch's."""

import torch
from torch import Tensor, nn

# Truncating a normal at two standard deviations narrows it by this factor, which is undone.
_NARROWED = 0.87962566103423978


def truncated_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill from a normal truncated at two standard deviations, with `std` after the truncation."""
    wide = std / _NARROWED
    filled: Tensor = nn.init.trunc_normal_(tensor, std=wide, a=-2 * wide, b=2 * wide)
    return filled


def lecun_(*layers: nn.Module) -> None:
    """Redraw the linear layers among `layers` by flax's default: variance 1 / inputs, biases 0."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            truncated_normal_(layer.weight, layer.in_features**-0.5)
            _clear(layer.bias)


def xavier_(*layers: nn.Module, bias_std: float = 0.0) -> None:
    """Redraw the linear layers among `layers`, uniform with variance 2 / (inputs + outputs)."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            _clear(layer.bias, bias_std)


def normal_(*layers: nn.Module, std: float, bias_std: float = 0.0) -> None:
    """Redraw the linear layers among `layers` from a normal distribution."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            _clear(layer.bias, bias_std)


@torch.no_grad()
def _clear(bias: Tensor | None, std: float = 0.0) -> None:
    if bias is not None:
        if std:
            bias.normal_(std=std)
        else:
            bias.zero_()
