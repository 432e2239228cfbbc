"""One kernel for all the micro-batches of an update.

A state-space layer makes its kernel from its parameters, at a cost that does not depend on the
batch. Where an update is made of several micro-batches, `kernels_shared` lets all of them use one
kernel: gradients gather on it, and reach the parameters when the update is complete.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class SharedKernel(nn.Module):
    """Make a layer's kernel whenever it is asked for, or, within `kernels_shared`, once.

    The kernel of a shorter sequence has to be the start of that of a longer one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sharing = False
        self._made: list[tuple[Tensor, Tensor]] = []

    def forward(self, make: Callable[[int], Tensor], length: int) -> Tensor:
        """Return `make(length)`, a tensor whose last axis is as long, or what was made before."""
        if not self._sharing:
            return make(length)
        if not self._made or self._made[-1][1].shape[-1] < length:
            kernel = make(length)
            if not kernel.requires_grad:
                # Nothing waits for the gradient of a shorter one.
                self._made.clear()
            self._made.append((kernel, kernel.detach().requires_grad_(kernel.requires_grad)))
        return self._made[-1][1][..., :length]

    def leaves(self) -> list[Tensor]:
        """Return the kernels on which gradients gather."""
        return [leaf for _, leaf in self._made if leaf.requires_grad]

    def share(self) -> None:
        """Keep the kernel from now on."""
        # Nothing of an update that ended halfway, for want of memory.
        self._made, self._sharing = [], True

    def carry(self) -> None:
        """Carry the gradient that gathered on the kernel to the parameters, and forget both."""
        made, self._made = self._made, []
        for kernel, leaf in made:
            if leaf.grad is not None:
                torch.autograd.backward(kernel, leaf.grad)

    def release(self, backward: bool) -> None:
        """Keep nothing from now on; with `backward`, carry what gathered first."""
        if backward:
            self.carry()
        self._made, self._sharing = [], False


def shared_kernels(model: nn.Module) -> list[SharedKernel]:
    """Return those of the layers of a model."""
    return [module for module in model.modules() if isinstance(module, SharedKernel)]


@contextmanager
def kernels_shared(model: nn.Module) -> Iterator[None]:
    """Within it, every layer of a model makes its kernel once.

    Parameters must not change inside. The gradients of the kernels' parameters are complete only
    after it, so the optimiser's step comes after it. Batches whose longest comes first are
    served by a single kernel; a longer one later makes another.

    Args:
        model: Any module.
    """
    shared = shared_kernels(model)
    for each in shared:
        each.share()
    complete = False
    try:
        yield
        complete = True
    finally:
        for each in shared:
            each.release(backward=complete)
