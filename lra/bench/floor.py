"""Measure the floor of a step: the time of its matrix products, convolutions and FFTs alone.

Every such operation of a step is recorded with the shapes, strides and types of its tensors. All
are then repeated in one go on random tensors like these, timed in turn with steps, so that a busy
machine slows both alike. The time that a step takes beyond that is element-wise work, copies,
random numbers and Python.

Products within the compiled kernels of the CPU are not torch operations. Their number is what the
same step counts on the `meta` device, which has no such kernels, beyond the recorded operations; as
many operations are performed by large matrix products, the fastest form there is on this machine.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

COUNTED = (
    *("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"),
    *("_fft_r2c", "_fft_c2r", "_fft_c2c"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward"),
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_efficient_attention_backward",
    *("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_cudnn_attention_backward"),
)


def _outline(value: Any) -> Any:
    """Return what represents a tensor in the key of a call; any other value as it is."""
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), value.stride(), value.dtype, value.device)
    return value


def _is_outline(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 5 and value[0] == "tensor"


def _random(outline: Any) -> Any:
    if not _is_outline(outline):
        return outline
    _, shape, strides, dtype, device = outline
    # Elements may share memory, as in an expanded tensor, and cannot then be written one by one.
    size = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    storage = torch.zeros(size if all(shape) else 0, dtype=dtype, device=device)
    if dtype.is_floating_point or dtype.is_complex:
        storage.normal_()
    return storage.as_strided(shape, strides)


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's stub
    """Record the operations that a floor counts, and how often each was performed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's stub
        self.calls: Counter[Any] = Counter()
        self._kept: dict[Any, tuple[Callable[..., Any], Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__ in COUNTED:
            leaves, shape = tree_flatten((args, kwargs or {}))
            outlines = [_outline(leaf) for leaf in leaves]
            key = (str(func), repr(outlines))
            self.calls[key] += 1
            self._kept.setdefault(key, (func, (outlines, shape)))
        return func(*args, **(kwargs or {}))

    def again(self) -> Callable[[], None]:
        """Return a function that repeats the operations on random tensors, each as often."""
        operations = []
        for key, count in self.calls.items():
            func, (outlines, shape) = self._kept[key]
            args, kwargs = tree_unflatten([_random(each) for each in outlines], shape)
            operations.append((func, args, kwargs, count))

        def make() -> None:
            for func, args, kwargs, count in operations:
                for _ in range(count):
                    func(*args, **kwargs)

        return make


# A square matrix product of this width is about as fast as any; on a GPU, several times the width.
WIDTH, ON_GPU = 512, 16


def large_products(flops: int, device: torch.device) -> Callable[[], None]:
    """Return a function that performs a number of operations as matrix products at full speed.

    Args:
        flops: Total number of operations.
        device: Device to perform them on.
    """
    width = WIDTH * (1 if device.type == "cpu" else ON_GPU)
    a, b = torch.randn(2, width, width, device=device)
    whole, rows = divmod(round(flops / (2 * width**2)), width)

    def make() -> None:
        for _ in range(whole):
            torch.mm(a, b)
        if rows:
            torch.mm(a[:rows], b)

    return make
