"""One update: the gradients of a batch, summed over its micro-batches, and the optimiser's step."""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lra import side_by_side
from lra.batches import Batch
from lra.config import TrainConfig
from lra.division import COMPILED_SHAPES
from lra.precision import autocast
from lra.signals import UnfinishedError, never
from models.encoder import Block
from models.randomness import draw_seed, seeded
from models.shared_kernel import SharedKernel, kernels_shared, shared_kernels


def compiled(model: nn.Module) -> Callable[..., Tensor]:
    """Return a model compiled by `torch.compile`, with one graph per shape of a micro-batch.

    With variable sizes, a second shape would set off a second compilation, of slower code.
    """
    # If a graph breaks, every norm has graphs of its own, all counted in one place: two per block,
    # and the last.
    limit = COMPILED_SHAPES * max(1, 2 * sum(isinstance(m, Block) for m in model.modules()) + 1)
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, limit)
    forward: Callable[..., Tensor] = torch.compile(model, dynamic=False)
    return forward


def class_loss(logits: Tensor, part: Batch) -> Tensor:
    """Return what a micro-batch contributes to the mean cross-entropy of its batch, a scalar.

    Args:
        logits: `(B, classes)`, at least float32.
        part: The micro-batch.
    """
    if part.weights is None:
        loss = F.cross_entropy(logits, part.labels, reduction="sum")
    else:
        losses = F.cross_entropy(logits, part.labels, reduction="none")
        loss = (losses * part.weights).sum()
    return loss / (part.whole or len(part.labels))


def accumulate(
    forward: Callable[..., Tensor],
    parts: Sequence[Batch],
    precision: str,
    scaler: torch.amp.GradScaler,
    loss_of: Callable[[Tensor, Batch], Tensor] = class_loss,
    stops: Callable[[], bool] = never,
) -> Tensor:
    """Add the gradients of a batch's mean loss to the present ones; return the loss, a scalar.

    Args:
        forward: The model, compiled or not.
        parts: The micro-batches of the batch, or the batch itself.
        precision: See `autocast`.
        scaler: See `scaler_for`.
        loss_of: See `Objective.loss`.
        stops: Called before each micro-batch but the first; returns whether to stop.

    Raises:
        UnfinishedError: `stops` returned true; the gradients are those of a part of the batch.
    """
    device = parts[0].tokens.device
    # Drawn before any part is computed, or the order of threads would decide what each one drops.
    seeds = [draw_seed() for _ in parts] if side_by_side.allows(forward, device) else []

    def own_draws(index: int) -> AbstractContextManager[None]:
        return seeded(seeds[index]) if seeds else nullcontext()

    def loss(index: int) -> Tensor:
        if index and stops():
            raise UnfinishedError("asked to stop in the middle of an update")
        part = parts[index]
        with autocast(device, precision):
            answers = forward(part.tokens, part.mask)
        # At least float32, but float64 stays float64.
        answers = answers.to(torch.promote_types(answers.dtype, torch.float32))
        return loss_of(answers, part)

    with sharing(forward, parts):
        if side_by_side.suits(forward, len(parts), device, scaler.is_enabled()):
            assert isinstance(forward, nn.Module)
            total = _accumulate_side_by_side(forward, loss, own_draws, len(parts))
            if total is not None:
                return total
        total = torch.zeros((), device=device)
        for index in range(len(parts)):
            with own_draws(index):
                part_loss = loss(index)
                scaler.scale(part_loss).backward()  # type: ignore[no-untyped-call]  # torch's
            total += part_loss.detach()
    return total


def _accumulate_side_by_side(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    own_draws: Callable[[int], AbstractContextManager[None]],
    num_parts: int,
) -> Tensor | None:
    """Do what `accumulate` does, with threads that take a micro-batch each.

    Args:
        model: The network.
        loss: Returns the loss of a micro-batch, given its number.
        own_draws: Returns the context in which a micro-batch is computed, given its number.
        num_parts: Number of micro-batches.

    Returns:
        The loss; or None if the model drew from torch's generator, so that the order of threads
        decided what each got. Gradients and generator are then as before, and the next update does
        not try again.
    """
    shared, parameters = shared_kernels(model), [p for p in model.parameters() if p.requires_grad]
    # The longest micro-batch comes first, and makes the kernels that all share.
    kernels_ready = threading.Event()

    def gradients(index: int) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]]]:
        if shared and index:
            kernels_ready.wait()
        with own_draws(index):
            try:
                found = loss(index)
            finally:
                kernels_ready.set()
            leaves = parameters + [leaf for each in shared for leaf in each.leaves()]
            grads = torch.autograd.grad(found, leaves, allow_unused=True)
        return found.detach(), list(zip(leaves, grads, strict=True))

    random = torch.get_rng_state()
    total, sums = torch.zeros((), device="cpu"), dict[Tensor, Tensor]()
    with closing(side_by_side.in_order(gradients, range(num_parts))) as results, ExitStack() as end:
        # If the first micro-batch was never begun, the others must not wait for it.
        end.callback(kernels_ready.set)
        for part_loss, pairs in results:
            total += part_loss
            for leaf, grad in pairs:
                if leaf in sums and grad is not None:
                    sums[leaf] += grad
                elif grad is not None:
                    # Two leaves may have been given the same tensor.
                    sums[leaf] = torch.empty_like(leaf).copy_(grad)
    if not torch.equal(random, torch.get_rng_state()):
        side_by_side.one_after_another(model)
        torch.set_rng_state(random)
        return None
    for leaf, grad in sums.items():
        leaf.grad = grad if leaf.grad is None else leaf.grad.add_(grad)
    if shared:
        with closing(side_by_side.in_order(SharedKernel.carry, shared)) as carried:
            list(carried)
    return total


def sharing(forward: Callable[..., Tensor], parts: Sequence[Batch]) -> AbstractContextManager[None]:
    """Let state-space layers make one kernel for all micro-batches of an update.

    Args:
        forward: The model; a compiled one makes them within its graphs.
        parts: The micro-batches.
    """
    # Asking torch._dynamo would import it, which takes a second.
    is_compiled = hasattr(forward, "_orig_mod")
    if len(parts) > 1 and isinstance(forward, nn.Module) and not is_compiled:
        return kernels_shared(forward)
    return nullcontext()


def apply(
    optimiser: torch.optim.Optimizer, train: TrainConfig, scaler: torch.amp.GradScaler
) -> None:
    """Update the parameters by their gradients, clipped if `train.clip_norm` asks for it."""
    if train.clip_norm:
        scaler.unscale_(optimiser)
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, train.clip_norm)
    scaler.step(optimiser)
    scaler.update()


def update(
    forward: Callable[..., Tensor],
    optimiser: torch.optim.Optimizer,
    parts: Sequence[Batch],
    train: TrainConfig,
    scaler: torch.amp.GradScaler,
) -> Tensor:
    """Perform one update on a batch and return its loss, a scalar.

    Args:
        forward: The model, compiled or not.
        optimiser: Optimiser of the model's parameters.
        parts: The micro-batches of the batch, or the batch itself.
        train: Settings of the optimisation.
        scaler: See `scaler_for`.
    """
    optimiser.zero_grad()
    loss = accumulate(forward, parts, train.precision, scaler)
    apply(optimiser, train, scaler)
    return loss
