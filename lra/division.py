"""How a batch is divided into micro-batches, whose gradients add up to that of the whole batch.

Sorted by length and computed a few at a time, examples are padded to the longest of these few
instead of the longest of all: for Text at 4,096 tokens, a third is left to compute. How much is
computed at once follows from a budget of tokens, with which activations grow, and of squares of
lengths, with which materialised attention grows. On a CPU the budget is what its caches hold, on a
GPU its memory; on a GPU, squares count only if a backend's memory grows with them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from lra import memory
from models.encoder import Block

# These fit the caches of common processors: 64 floats per token take a megabyte, and a head's
# weights at these squares sixteen. Fixed, so that all machines divide alike and give the same bits.
CPU_TOKENS, CPU_SQUARES = 4_096, 2**22
# Share of a GPU's memory that an update may take; twice that, and no more, if the estimate is low.
GPU_SHARE = 0.4
# Tensors of a training step per input and output of a linear layer, at 4 bytes each; and bytes of
# materialised attention per squared length, for two layers of two heads.
TENSORS, SQUARE_BYTES = 4, 64
# Number of shapes that `torch.compile` may see.
COMPILED_SHAPES = 8


# The limits of a division in words.
_NAMES = {"examples": "examples", "tokens": "tokens", "squares": "squares of lengths"}


@dataclass(frozen=True, kw_only=True)
class Division:
    """Upper limits on what is computed at once; 0 means no limit, and one example always fits.

    Args:
        examples: Number of examples.
        tokens: Number of tokens, padding included.
        squares: Sum of the squares of the padded lengths of the sequences.
        shapes: Number of shapes of a micro-batch; with a limit, lengths are rounded up to that many
            values, and every micro-batch of a length is filled up to the same number of examples.
    """

    examples: int = 0
    tokens: int = 0
    squares: int = 0
    shapes: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether a batch is left as it was drawn."""
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
            most: Number of examples in the largest micro-batch so far, at least 2.
        """
        limits = {key: getattr(self, key) // 2 for key in ("tokens", "squares")}
        return replace(self, examples=-(-most // 2), **limits)

    @classmethod
    def parse(cls, words: str) -> "Division":
        """Return the division that `str` describes in these words.

        Raises:
            ValueError: The words describe no division.
        """
        limits = {key: rf"([\d,]+) {name}(?:,|$)" for key, name in _NAMES.items()}
        found = {k: re.search(limit, words) for k, limit in limits.items()}
        found["shapes"] = re.search(r"in (\d+) shapes$", words)
        numbers = {k: int(m.group(1).replace(",", "")) for k, m in found.items() if m}
        if str(division := cls(**numbers)) != words:
            raise ValueError(f"micro_batch={words!r}: not a division of a batch")
        return division

    def __str__(self) -> str:
        """Describe it in words, as records do."""
        limits = [f"{getattr(self, k):,} {name}" for k, name in _NAMES.items() if getattr(self, k)]
        shapes = f", in {self.shapes} shapes" if self.shapes else ""
        return (f"at most {', '.join(limits)}" if limits else "whole") + shapes


WHOLE = Division()


def needs_whole_batch(model: nn.Module) -> bool:
    """Return whether a model's training must see a whole batch at once.

    It must if statistics are taken over the batch, as in BatchNorm: over a micro-batch, they would
    differ. Modules other than torch's declare this with `whole_batch = True`.
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
        device: The device that it computes on.
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
    """Return whether an error means that a device, torch or numpy ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # Errors of torch's CPU allocator and of CUDA's libraries have no class of their own.
    messages = ("can't allocate memory", "ALLOC_FAILED", "out of memory")
    return isinstance(error, RuntimeError) and any(each in str(error) for each in messages)
