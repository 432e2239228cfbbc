"""The form that updates had once, for comparison: nothing of it is used to train."""

from dataclasses import replace

from torch import nn

from lra.config import Config
from models.dropout import Dropout
from models.softmax import Softmax


def whole_batch(config: Config) -> Config:
    """Return a configuration whose batches are computed at once."""
    return replace(config, train=replace(config.train, micro_batch=0))


def without_kernels(model: nn.Module) -> nn.Module:
    """Let a model drop by torch's random numbers, and softmax by materialised weights.

    Without attention dropout softmax keeps torch's fused kernel, which it always had.
    """
    for module in model.modules():
        if isinstance(module, Dropout):
            module.compiled = False
        elif isinstance(module, Softmax) and module.dropout:
            module.fused = False
    return model
