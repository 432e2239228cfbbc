"""One kernel for all the micro-batches of an update.

A state-space layer computes its kernel from its parameters, at a cost that does not depend on the
batch. If an update consists of several micro-batches, `kernels_shared` lets all of them use one
kernel: gradients accumulate on it, and reach the parameters when the update is complete.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class SharedKernel(nn.Module):
    """Compute a layer's kernel at every call or, within `kernels_shared`, only once.

    The kernel of a shorter sequence must be the start of that of a longer one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sharing = False
        self._kernels: list[tuple[Tensor, Tensor]] = []

    def forward(self, make: Callable[[int], Tensor], length: int) -> Tensor:
        """Return `make(length)`, with a last axis of that length, or what was made before."""
        if not self._sharing:
            return make(length)
        if not self._kernels or self._kernels[-1][1].shape[-1] < length:
            kernel = make(length)
            if not kernel.requires_grad:
                # No gradient of a shorter kernel is still to come.
                self._kernels.clear()
            self._kernels.append((kernel, kernel.detach().requires_grad_(kernel.requires_grad)))
        return self._kernels[-1][1][..., :length]

    def leaves(self) -> list[Tensor]:
        """Return the kernels on which gradients accumulate."""
        return [leaf for _, leaf in self._kernels if leaf.requires_grad]

    def share(self) -> None:
        """Keep the kernel from now on."""
        # Discard what is left of an update that ended halfway because memory ran out.
        self._kernels, self._sharing = [], True

    def carry(self) -> None:
        """Carry the gradient accumulated on the kernel to the parameters, and forget both."""
        kernels, self._kernels = self._kernels, []
        for kernel, leaf in kernels:
            if leaf.grad is not None:
                torch.autograd.backward(kernel, leaf.grad)

    def release(self, backward: bool) -> None:
        """Keep no kernel from now on; with `backward`, first carry what has accumulated."""
        if backward:
            self.carry()
        self._kernels, self._sharing = [], False


def shared_kernels(model: nn.Module) -> list[SharedKernel]:
    """Return the `SharedKernel` modules of the layers of a model."""
    return [module for module in model.modules() if isinstance(module, SharedKernel)]


@contextmanager
def kernels_shared(model: nn.Module) -> Iterator[None]:
    """Let every layer of a model compute its kernel only once within this context.

    Parameters must not change inside the context. The gradients of the kernels' parameters are
    complete only after it, so the optimiser's step must come after it. If the longest batch comes
    first, a single kernel serves all of them; a longer batch later on needs another one.

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
