"""The former form of updates, kept for comparison: training uses none of it."""

from dataclasses import replace

from torch import nn

from lra.config import Config
from models.dropout import Dropout
from models.softmax import Softmax


def whole_batch(config: Config) -> Config:
    """Return a configuration whose batches are computed whole."""
    return replace(config, train=replace(config.train, micro_batch=0))


def without_kernels(model: nn.Module) -> nn.Module:
    """Make a model use torch's random numbers for dropout, and softmax materialised weights.

    Without attention dropout, softmax keeps torch's fused kernel, which it always had.
    """
    for module in model.modules():
        if isinstance(module, Dropout):
            module.compiled = False
        elif isinstance(module, Softmax) and module.dropout:
            module.fused = False
    return model
