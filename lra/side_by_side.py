"""Micro-batches side by side: one each for Python threads that use one core each.

Threads inside of operations share what fits the caches badly: two of them made 1.1 to 1.5 times
the updates of one. Threads that take whole micro-batches wait for each other only at the end of an
update. Sums are added up in the order of the micro-batches, so that any number of threads gives
the bits of one.

A backend of the suite keeps nothing on itself between lines of its forward, and draws random
numbers by `models.randomness`. One of a user's does this if it says `thread_safe = True`; else its
micro-batches come one after the other, with threads inside of operations.
"""

import weakref
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import TypeVar

import torch
from torch import nn

from models.threads import workers

Item = TypeVar("Item")
Result = TypeVar("Result")

# Models that drew from torch's own generator, where the draws of threads have no order.
_drawing: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
# What torch's own layers draw from is that generator too.
_DROPS = nn.modules.dropout._DropoutNd


def suits(model: object, number: int, device: torch.device) -> bool:
    """Tell whether threads may take a micro-batch each.

    Not on a GPU, which computes one thing after the other; and not where there are too few to
    occupy half of the threads, or where the model is compiled or does not allow it.

    Args:
        model: What is called with each.
        number: How many there are.
        device: Where they are.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or number == 1 or 2 * number <= threads:
        return False
    return isinstance(model, nn.Module) and model not in _drawing and is_thread_safe(model)


def is_thread_safe(model: nn.Module) -> bool:
    """Tell whether every module within a model lets threads call it at once, as far as is said."""
    return all(_is_safe(type(module), module) for module in model.modules())


def _is_safe(kind: type, module: nn.Module) -> bool:
    # Asked of the class itself: one that is derived from a safe one has another forward.
    if "thread_safe" in vars(kind):
        return bool(module.thread_safe)
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    package = kind.__module__.partition(".")[0]
    return package == "models" or (package == "torch" and not isinstance(module, _DROPS))


def one_after_another(model: nn.Module) -> None:
    """Remember that a model draws from torch's own generator, so that nothing suits it."""
    _drawing.add(model)


def in_order(call: Callable[[Item], Result], items: Sequence[Item]) -> Generator[Result]:
    """Yield what `call` returns for each item, in their order, computed on torch's threads.

    Close it where it may end early: nothing is running then.

    Args:
        call: Called in another thread, to which gradient mode, autocast and the like are new.
        items: What it is called with; no more than three a thread are ahead of whoever reads.
    """
    threads = torch.get_num_threads()
    pool, left = workers(threads), iter(items)
    waiting: deque[Future[Result]] = deque()
    # A library of products counts its threads once for all: workers would share theirs again.
    torch.set_num_threads(1)
    try:
        while True:
            for item in left:
                waiting.append(pool.submit(call, item))
                if len(waiting) == 3 * threads:
                    break
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        for future in waiting:
            if not future.cancelled():
                future.exception()
        torch.set_num_threads(threads)
