"""Micro-batches side by side: one each for Python threads that use one core each.

Threads inside of operations share badly what fits the caches. Threads that take whole micro-batches
wait for each other at the end of an update. Sums are added up in the order of the micro-batches, so
that the number of threads changes no bit.

A backend of the suite keeps nothing on itself between lines of its forward, and draws random
numbers by `models.randomness`. A user's class does so where it says `thread_safe = True` itself;
what its base class says does not count. Else its micro-batches come one after the other, with
threads inside of operations.
"""

import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from models.threads import workers

Item = TypeVar("Item")
Result = TypeVar("Result")

# Models that did not go side by side when it was tried: see `one_after_another`.
_refused: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
# Torch's own dropout draws from torch's generator.
_DROPS = nn.modules.dropout._DropoutNd


def allows(model: object, device: torch.device) -> bool:
    """Tell whether threads may call a model at once, however many there are, as far as is said.

    Not on a GPU, which computes one thing after the other, and not where the model is compiled, has
    hooks, or does not say that it may be.

    Args:
        model: What is called with each micro-batch.
        device: Where they are.
    """
    # A compiled one may have set up its graphs for several threads.
    if device.type != "cpu" or not isinstance(model, nn.Module) or hasattr(model, "_orig_mod"):
        return False
    hooked = any(getattr(p, "_post_accumulate_grad_hooks", None) for p in model.parameters())
    return not hooked and is_thread_safe(model)


@contextmanager
def threads_set(number: int) -> Iterator[None]:
    """Let torch use a number of threads, and then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def suits(model: object, num_parts: int, device: torch.device, scaled: bool = False) -> bool:
    """Tell whether threads should take a micro-batch each: not where half of them would have none.

    Args:
        model: What is called with each.
        num_parts: How many there are.
        device: Where they are.
        scaled: Whether the loss is scaled, as in float16; then they come one after the other.
    """
    threads = torch.get_num_threads()
    enough = threads > 1 and 2 * num_parts > threads and not scaled
    return enough and allows(model, device) and model not in _refused


def is_thread_safe(model: nn.Module) -> bool:
    """Tell whether every module within a model lets threads call it at once, as far as is said."""
    return all(map(_is_safe, model.modules()))


def _is_safe(module: nn.Module) -> bool:
    before, after = module._forward_pre_hooks, module._forward_hooks
    if before or after or module._backward_hooks or module._backward_pre_hooks:
        return False
    # Asked of the class itself: one that is derived from a safe one has another forward.
    if "thread_safe" in vars(type(module)):
        return bool(module.thread_safe)
    package = type(module).__module__.partition(".")[0]
    return package == "models" or (package == "torch" and not isinstance(module, _DROPS))


def one_after_another(model: nn.Module) -> None:
    """Remember that a model's micro-batches must not be side by side.

    That is where it draws from torch's own generator, as the order of threads would decide what
    each gets, or where memory does not hold two of them.
    """
    _refused.add(model)


def in_order(
    call: Callable[[Item], Result], items: Sequence[Item]
) -> Generator[Result, None, None]:
    """Yield what `call` returns for each item, in their order, computed on torch's threads.

    Close it where it may end early: nothing is running then.

    Args:
        call: Called in another thread, to which gradient mode, autocast and the like are new.
        items: What it is called with; no more than two a thread are ahead of whoever reads.
    """
    threads = torch.get_num_threads()
    pool, left = workers(threads), iter(items)
    waiting: deque[Future[Result]] = deque()
    # MKL has one count for all threads, and the workers would take it for theirs.
    with threads_set(1):
        try:
            while True:
                for item in left:
                    waiting.append(pool.submit(call, item))
                    if len(waiting) == 2 * threads:
                        break
                if not waiting:
                    return
                # Among the waiting until it is there: a signal may be raised in between.
                wait([waiting[0]])
                yield waiting.popleft().result()
        finally:
            wait([future for future in waiting if not future.cancel()])
