"""How much memory the tensors of a computation take at once, counted and not measured."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's stub
    """Count the bytes of the storages that operators return, from their birth to their death.

    The count is the same on every machine. What an operator needs within itself is not seen; views
    share their storage, and count once.

    Args:
        given: Tensors that were there before; they and their views do not count.
    """

    def __init__(self, *given: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's stub
        self.peak: int = 0
        self._alive = {tensor.untyped_storage()._cdata: 0 for tensor in given}
        self._given = given

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._alive:
            self._alive[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, storage._cdata)
            self.peak = max(self.peak, sum(self._alive.values()))
