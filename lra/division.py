"""How a batch is divided into micro-batches, whose gradients add up to that of the whole batch.

Sorted by length and computed a few at a time, examples are padded to the longest of these few and
not to the longest of all: of Text at 4,096 tokens a third is left to compute. What is computed at
once follows from a budget: of tokens, which activations grow with, and of squares of lengths, which
materialised attention does. On a CPU the budget is what its caches hold, on a GPU its memory, and
there squares count only where a backend's memory grows with them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from lra import memory
from models.encoder import Block

# Fits the caches of common processors: 64 floats a token are a megabyte, and a head's weights at
# these squares sixteen. Fixed, so that every machine divides alike and gives the same bits.
CPU_TOKENS, CPU_SQUARES = 4_096, 2**22
# Share of a GPU's memory that an update may take; twice that and no more if the estimate is low.
GPU_SHARE = 0.4
# Tensors of a training step for every input and output of a linear layer, at 4 bytes; and bytes of
# materialised attention for every square of a length, of two layers of two heads.
TENSORS, SQUARE_BYTES = 4, 64
# Shapes that `torch.compile` may see.
COMPILED_SHAPES = 8


# Its limits in words.
_NAMES = {"examples": "examples", "tokens": "tokens", "squares": "squares of lengths"}


@dataclass(frozen=True, kw_only=True)
class Division:
    """What is computed at once, at most; 0 is no limit, and one example always fits.

    Args:
        examples: Examples.
        tokens: Tokens, padding included.
        squares: Sum of the squares of the padded lengths of the sequences.
        shapes: Shapes of a micro-batch; with a limit, lengths are rounded up to as many, and every
            micro-batch of a length is filled up to the same number of examples.
    """

    examples: int = 0
    tokens: int = 0
    squares: int = 0
    shapes: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether a batch stays as it was drawn."""
        return self == WHOLE

    def rows(self, width: int, sequences: int = 1) -> int:
        """Return how many examples fit.

        Args:
            width: Padded length, in tokens.
            sequences: Sequences per example.
        """
        each = {"examples": 1, "tokens": sequences * width, "squares": sequences * width**2}
        limits = [getattr(self, key) // size for key, size in each.items() if getattr(self, key)]
        return max(1, min(limits, default=2**31))

    def divide(self, widths: Sequence[int], sequences: int = 1) -> list[slice]:
        """Return micro-batches of examples that are sorted by length, the longest first.

        Args:
            widths: Padded lengths of the examples, in tokens.
            sequences: Sequences per example.
        """
        parts, start = [], 0
        while start < len(widths):
            end = min(len(widths), start + self.rows(widths[start], sequences))
            parts.append(slice(start, end))
            start = end
        return parts

    def halved(self, most: int) -> "Division":
        """Return a division with half the budget.

        Args:
            most: Examples of the largest micro-batch there was, at least 2.
        """
        limits = {key: getattr(self, key) // 2 for key in ("tokens", "squares")}
        return replace(self, examples=-(-most // 2), **limits)

    @classmethod
    def said(cls, words: str) -> "Division":
        """Return the division that `str` tells of in these words.

        Raises:
            ValueError: It tells of none so.
        """
        limits = {key: rf"([\d,]+) {name}(?:,|$)" for key, name in _NAMES.items()}
        found = {k: re.search(limit, words) for k, limit in limits.items()}
        found["shapes"] = re.search(r"in (\d+) shapes$", words)
        numbers = {k: int(m.group(1).replace(",", "")) for k, m in found.items() if m}
        if str(division := cls(**numbers)) != words:
            raise ValueError(f"micro_batch={words!r}: no division of a batch")
        return division

    def __str__(self) -> str:
        """Say it in words, as records do."""
        limits = [f"{getattr(self, k):,} {name}" for k, name in _NAMES.items() if getattr(self, k)]
        shapes = f", in {self.shapes} shapes" if self.shapes else ""
        return (f"at most {', '.join(limits)}" if limits else "whole") + shapes


WHOLE = Division()


def needs_whole_batch(model: nn.Module) -> bool:
    """Say whether a model's training must see a batch at once.

    It must where statistics are taken over the batch, as BatchNorm does: of a micro-batch they
    would be others. Besides torch's, a module says so by `whole_batch = True`.
    """
    norms = nn.modules.batchnorm._BatchNorm
    return any(isinstance(m, norms) or getattr(m, "whole_batch", False) for m in model.modules())


def division_for(
    micro_batch: int | None, model: nn.Module, device: torch.device, compiled: bool = False
) -> Division:
    """Return the division that a configuration asks for.

    Args:
        micro_batch: Examples at once; 0 is the whole batch; None is what fits the device.
        model: The network; one that needs the whole batch gets it.
        device: Where it computes.
        compiled: Whether the model runs through `torch.compile`.
    """
    shapes = COMPILED_SHAPES if compiled else 0
    if micro_batch == 0 or needs_whole_batch(model):
        return Division(shapes=shapes)
    if micro_batch is not None:
        return Division(examples=micro_batch, shapes=shapes)
    if device.type == "cpu":
        return Division(tokens=CPU_TOKENS, squares=CPU_SQUARES, shapes=shapes)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    widths = sum(layer.in_features + layer.out_features for layer in linear)
    size = GPU_SHARE * memory.total(device)
    tokens = int(size / (4 * TENSORS * widths))
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    growths = {getattr(block.attention, "memory_growth", None) for block in blocks}
    squares = 0 if growths == {1} else int(size / SQUARE_BYTES)
    return Division(tokens=tokens, squares=squares, shapes=shapes)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error is that of a device, torch or numpy without memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # Those of torch's allocator on the CPU and of CUDA's libraries have no class of their own.
    said = ("can't allocate memory", "ALLOC_FAILED", "out of memory")
    return isinstance(error, RuntimeError) and any(each in str(error) for each in said)
