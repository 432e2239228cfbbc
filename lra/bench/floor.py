"""The floor of a step: the time of its matrix products, convolutions and FFTs alone.

Every such operation of a step is noted down with the shapes, strides and types of its tensors, and
then made again on random tensors of the same, each kind some times in a row. What a step takes
beyond that is element-wise work, copies, random numbers and Python.

Products within the compiled kernels of the CPU are no operations of torch. They are what the same
step counts on the `meta` device, where it has no such kernels, beyond what was noted down; they are
taken to be as fast as a large matrix product is here, which nothing on this machine is faster than.
"""

import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from lra.machine import seconds_of

COUNTED = (
    *("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"),
    *("_fft_r2c", "_fft_c2r", "_fft_c2c"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward"),
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_efficient_attention_backward",
)
# What stands for a tensor in the key of a call: shape, strides, type and device.
Outline = tuple[str, tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]


def _outline(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), value.stride(), value.dtype, value.device)
    return value


def _is_outline(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 5 and value[0] == "tensor"


def _random(outline: Any) -> Any:
    if not _is_outline(outline):
        return outline
    _, shape, strides, dtype, device = outline
    # Elements may share memory, as an expanded tensor's do, and then cannot be written singly.
    size = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    storage = torch.zeros(size if all(shape) else 0, dtype=dtype, device=device)
    if dtype.is_floating_point or dtype.is_complex:
        storage.normal_()
    return storage.as_strided(shape, strides)


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's stub
    """Note down the operations that a floor counts, and how often each was made."""

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

    def seconds(self, repeats: int, device: torch.device) -> float:
        """Return the seconds that the operations take when nothing else is done.

        Args:
            repeats: Timed calls of each kind; the median counts.
            device: Where they were made.
        """
        total = 0.0
        for key, count in self.calls.items():
            func, (outlines, shape) = self._kept[key]
            args, kwargs = tree_unflatten([_random(each) for each in outlines], shape)

            def call(func: Any = func, args: Any = args, kwargs: Any = kwargs) -> None:
                func(*args, **kwargs)

            call()
            times = [seconds_of(call, device) for _ in range(repeats)]
            total += count * statistics.median(times)
        return total


# A square matrix product of this width is as fast as any; several times that on a GPU.
WIDTH, ON_GPU = 1024, 8


def products_a_second(device: torch.device, repeats: int = 5) -> float:
    """Return the operations a second of a large matrix product in float32.

    Args:
        device: Where it is computed.
        repeats: Timed products; the fastest counts.
    """
    width = WIDTH * (1 if device.type == "cpu" else ON_GPU)
    a, b = torch.randn(2, width, width, device=device)
    out = torch.mm(a, b)
    times = [seconds_of(lambda: torch.mm(a, b, out=out), device) for _ in range(repeats)]
    return 2 * width**3 / min(times)
