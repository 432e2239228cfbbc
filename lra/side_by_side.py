"""Micro-batches side by side: one per Python thread, each thread on one core.

Threads inside an operation do not share work well if it fits the caches. Threads that take whole
micro-batches wait for each other at the end of an update. Sums are added up in the order of
the micro-batches, so that the number of threads changes no bit.

A backend of the suite keeps nothing on itself between the lines of its forward, and draws random
numbers through `models.randomness`. A user's class counts as doing so if it says
`thread_safe = True` itself; what its base class says does not count. Otherwise, its micro-batches
are computed one after the other, with threads inside operations.
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

# Models whose micro-batches could not be computed side by side: see `one_after_another`.
_refused: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
# Torch's own dropout draws from torch's generator.
_DROPS = nn.modules.dropout._DropoutNd


def allows(model: object, device: torch.device) -> bool:
    """Return whether any number of threads may call a model at once, as far as is declared.

    They may not on a GPU, which computes one thing after the other, nor if the model is compiled,
    has hooks, or does not declare that they may.

    Args:
        model: What is called with each micro-batch.
        device: Where the micro-batches are.
    """
    # A compiled model may have set up its graphs for several threads.
    if device.type != "cpu" or not isinstance(model, nn.Module) or hasattr(model, "_orig_mod"):
        return False
    hooked = any(getattr(p, "_post_accumulate_grad_hooks", None) for p in model.parameters())
    return not hooked and is_thread_safe(model)


@contextmanager
def threads_set(number: int) -> Iterator[None]:
    """Let torch use a number of threads in this context, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def suits(model: object, num_parts: int, device: torch.device, scaled: bool = False) -> bool:
    """Return whether threads should take a micro-batch each: not if half of them would have none.

    Args:
        model: What is called with each micro-batch.
        num_parts: Number of micro-batches.
        device: Where they are.
        scaled: Whether the loss is scaled, as in float16; then they are computed one by one.
    """
    threads = torch.get_num_threads()
    enough = threads > 1 and 2 * num_parts > threads and not scaled
    return enough and allows(model, device) and model not in _refused


def is_thread_safe(model: nn.Module) -> bool:
    """Return whether threads may call every module of a model at once, as far as is declared."""
    return all(map(_is_safe, model.modules()))


def unsafe_classes(model: nn.Module) -> list[str]:
    """Return the names of classes in a model that do not declare that threads may call them."""
    return sorted({type(each).__name__ for each in model.modules() if not _is_safe(each)})


def _is_safe(module: nn.Module) -> bool:
    before, after = module._forward_pre_hooks, module._forward_hooks
    if before or after or module._backward_hooks or module._backward_pre_hooks:
        return False
    # Only the class itself is asked: one that is derived from a safe one has another forward.
    if "thread_safe" in vars(type(module)):
        return bool(module.thread_safe)
    package = type(module).__module__.partition(".")[0]
    return package == "models" or (package == "torch" and not isinstance(module, _DROPS))


def one_after_another(model: nn.Module) -> None:
    """Remember that a model's micro-batches must not be computed side by side.

    That is the case if the model draws from torch's own generator, as the order of threads would
    decide what each gets, or if memory does not hold two micro-batches.
    """
    _refused.add(model)


def in_order(
    call: Callable[[Item], Result], items: Sequence[Item]
) -> Generator[Result, None, None]:
    """Yield what `call` returns for each item, in order, computed on as many threads as torch uses.

    Close the generator if it may end early; after that, nothing is running.

    Args:
        call: Called in another thread, which does not inherit gradient mode, autocast and the like.
        items: What it is called with; at most two per thread are ahead of the reader.
    """
    threads = torch.get_num_threads()
    pool, left = workers(threads), iter(items)
    waiting: deque[Future[Result]] = deque()
    # MKL has one thread count for all threads, and the workers would use it as theirs.
    with threads_set(1):
        try:
            while True:
                for item in left:
                    waiting.append(pool.submit(call, item))
                    if len(waiting) == 2 * threads:
                        break
                if not waiting:
                    return
                # It stays among the waiting until it is done: a signal may be raised in between.
                wait([waiting[0]])
                yield waiting.popleft().result()
        finally:
            wait([future for future in waiting if not future.cancel()])
