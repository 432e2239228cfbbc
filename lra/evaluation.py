"""The answers of a model on a whole split."""

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lra import side_by_side
from lra.batches import Batch, Batches
from lra.config import TrainConfig
from lra.division import WHOLE, Division, division_for, is_out_of_memory
from lra.precision import NotFiniteError, autocast
from lra.predictions import Predictions
from lra.processes import ALONE, Processes
from lra.signals import UnfinishedError, never

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: Batches,
    train: TrainConfig,
    processes: Processes = ALONE,
    stops: Callable[[], bool] = never,
) -> Predictions:
    """Return the model's answer to every example of a split, in the split's order.

    A batch that does not fit into memory is computed in halves.

    Args:
        model: The network.
        batches: The split.
        train: Batch size and precision.
        processes: The processes that share the work; all return the same.
        stops: Called before each batch; if it returns True in any process, all processes stop.

    Raises:
        NotFiniteError: An answer is infinite or NaN.
        UnfinishedError: `stops` returned True.
    """
    device = next(model.parameters()).device
    not_finite = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), device=device)
    # The answers stay on the device until all are complete.
    predicted = torch.zeros(len(batches), dtype=torch.int64, device=device)
    division = evaluation_division(train, model, processes)
    groups = batches.groups(train.eval_batch_size, division)

    def answer(part: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        return _answer(model, batches.gather(part), train.precision)

    with evaluating(model), closing(answered(groups, answer, model, processes, stops)) as answers:
        for part, found in answers:
            classes, losses, wrong = found
            predicted[batches.on_device(part)] = classes
            loss += losses
            not_finite += wrong
    if processes.total(not_finite).item():
        # The argmax of NaNs is class 0, which is sometimes right by chance.
        raise NotFiniteError("the model's answers in evaluation are not finite")
    mean = float(processes.total(loss)) / len(batches)
    return Predictions(processes.total(predicted).cpu().numpy(), batches.labels, loss=mean)


def evaluation_division(train: TrainConfig, model: nn.Module, processes: Processes) -> Division:
    """Return how batches are divided, which is the same in all processes.

    Unless the configuration decides, the memory of a GPU does, and that may differ between
    processes; a batch that is too large for one of them is computed in halves there.
    """
    device = next(model.parameters()).device
    if train.micro_batch is None and processes.size > 1 and device.type == "cuda":
        return WHOLE
    return division_for(train.micro_batch, model, device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and then back into its previous mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def answered(
    groups: Sequence[NDArray[np.int64]],
    answer: Callable[[NDArray[np.int64]], Answer],
    model: nn.Module,
    processes: Processes,
    stops: Callable[[], bool],
) -> Generator[tuple[NDArray[np.int64], Answer], None, None]:
    """Yield examples and their answers, for this process's share of all groups.

    Args:
        groups: The examples of every batch; a batch that does not fit into memory is divided.
        answer: Called with examples, without gradients.
        model: The model that `answer` calls.
        processes: The processes that share the work.
        stops: Called before each batch; if it returns True in any process, all processes stop.

    Raises:
        UnfinishedError: `stops` returned True.
    """
    device = next(model.parameters()).device

    def ask() -> None:
        if processes.any(stops(), device):
            raise UnfinishedError("asked to stop in the middle of an evaluation")

    @torch.inference_mode()
    def answers(group: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], Answer]]:
        return list(_in_parts(group, answer))

    def asked(group: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], Answer]]:
        ask()
        return answers(group)

    done = 0
    if processes.size == 1 and side_by_side.suits(model, len(groups), device):
        try:
            with closing(side_by_side.in_order(asked, groups)) as results:
                for found in results:
                    yield from found
                    done += 1
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        side_by_side.one_after_another(model)
        log.warning("out of memory in evaluation; continuing with one batch after another")
    # Each process makes equally many rounds, the last one perhaps without a batch.
    for start in range(done, len(groups), processes.size):
        ask()
        for group in groups[start + processes.rank :][:1]:
            yield from answers(group)


def _in_parts(
    group: NDArray[np.int64], answer: Callable[[NDArray[np.int64]], Answer]
) -> Iterator[tuple[NDArray[np.int64], Answer]]:
    """Yield examples and their answers, all at once or in parts that fit."""
    left = [group]
    while left:
        part = left.pop()
        try:
            found = answer(part)
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not is_out_of_memory(error):
                raise
            log.warning(
                "out of memory with %d examples in evaluation; retrying in halves", len(part)
            )
            left += [part[len(part) // 2 :], part[: len(part) // 2]]
            continue
        yield part, found


def _answer(model: nn.Module, batch: Batch, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the predicted classes, `(B,)`, the summed loss, and the count of non-finite logits."""
    with autocast(batch.tokens.device, precision):
        logits = model(batch.tokens, batch.mask)
    loss = F.cross_entropy(logits.float(), batch.labels, reduction="sum")
    return logits.argmax(-1), loss, (~logits.isfinite()).sum()
