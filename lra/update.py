"""One update: the gradients of a batch, summed over its micro-batches, and the step they make."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lra.batches import Batch
from lra.config import TrainConfig
from lra.division import COMPILED_SHAPES
from lra.precision import autocast
from lra.signals import UnfinishedError, never
from models.shared_kernel import kernels_shared


def compiled(model: nn.Module) -> Callable[..., Tensor]:
    """Return a model through `torch.compile`, a graph per shape of a micro-batch.

    With sizes that are variables the second shape would compile everything anew, and slower.
    """
    # Where a graph breaks, every layer has graphs of its own, all counted at one place.
    limit = COMPILED_SHAPES * max(1, sum(isinstance(m, nn.LayerNorm) for m in model.modules()))
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, limit)
    forward: Callable[..., Tensor] = torch.compile(model, dynamic=False)
    return forward


def class_loss(logits: Tensor, part: Batch) -> Tensor:
    """Return the share of a micro-batch in the mean cross-entropy of its batch, a scalar.

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
    """Add to the gradients those of a batch's mean loss, and return it, a scalar.

    Args:
        forward: The model, compiled or not.
        parts: The micro-batches of the batch, or the batch itself.
        precision: See `autocast`.
        scaler: See `scaler_for`.
        loss_of: See `Objective.loss`.
        stops: Asked before each micro-batch but the first whether to go on.

    Raises:
        UnfinishedError: `stops` said so; the gradients are of a part of the batch.
    """
    total = torch.zeros((), device=parts[0].tokens.device)
    with _sharing(forward, parts):
        for number, part in enumerate(parts):
            if number and stops():
                raise UnfinishedError("asked to stop in the middle of an update")
            with autocast(part.tokens.device, precision):
                answers = forward(part.tokens, part.mask)
            # At least float32, but float64 stays what it is.
            answers = answers.to(torch.promote_types(answers.dtype, torch.float32))
            loss = loss_of(answers, part)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            total += loss.detach()
    return total


def _sharing(
    forward: Callable[..., Tensor], parts: Sequence[Batch]
) -> AbstractContextManager[None]:
    """Let state-space layers make one kernel for all micro-batches of an update.

    Not in a compiled model, whose graphs make it within them.
    """
    # Asking torch._dynamo would import it, which takes a second.
    is_compiled = hasattr(forward, "_orig_mod")
    if len(parts) > 1 and isinstance(forward, nn.Module) and not is_compiled:
        return kernels_shared(forward)
    return nullcontext()


def apply(
    optimiser: torch.optim.Optimizer, train: TrainConfig, scaler: torch.amp.GradScaler
) -> None:
    """Move the parameters by their gradients, clipped where `train.clip_norm` asks for it."""
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
    """Make one update from a batch and return its loss, a scalar.

    Args:
        forward: The model, compiled or not.
        optimiser: Of the model's parameters.
        parts: The micro-batches of the batch, or the batch itself.
        train: Optimisation.
        scaler: See `scaler_for`.
    """
    optimiser.zero_grad()
    loss = accumulate(forward, parts, train.precision, scaler)
    apply(optimiser, train, scaler)
    return loss
