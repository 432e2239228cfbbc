"""What a model answers on a whole split."""

import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lra.batches import Batch, Batches
from lra.config import TrainConfig
from lra.division import division_for, is_out_of_memory
from lra.precision import NotFiniteError, autocast
from lra.predictions import Predictions
from lra.processes import ALONE, Processes

log = logging.getLogger(__name__)


class UnfinishedError(Exception):
    """An evaluation was asked to stop before its last batch."""


def _never() -> bool:
    return False


def count_correct(
    model: nn.Module,
    batches: Batches,
    train: TrainConfig,
    processes: Processes = ALONE,
    stops: Callable[[], bool] = _never,
) -> int:
    """Return how many examples of the whole split the model classifies rightly; see `predict`."""
    return predict(model, batches, train, processes, stops).num_correct


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: Batches,
    train: TrainConfig,
    processes: Processes = ALONE,
    stops: Callable[[], bool] = _never,
) -> Predictions:
    """Return the model's answer to every example of a split, in the split's order.

    A batch that does not fit the memory is computed in halves.

    Args:
        model: The network.
        batches: The split.
        train: Batch size and precision.
        processes: Those that share the work; all return the same.
        stops: Asked before each batch whether to go on; where any process's says so, none does.

    Raises:
        NotFiniteError: An answer is infinite or no number.
        UnfinishedError: `stops` said so.
    """
    device = next(model.parameters()).device
    not_finite = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), device=device)
    # They stay on the device until all are there.
    predicted = torch.zeros(len(batches), dtype=torch.int64, device=device)
    groups = batches.groups(train.eval_batch_size, division_for(train.micro_batch, model, device))
    was_training = model.training
    model.eval()
    try:
        # As many rounds in each process, the last of them perhaps without a batch.
        for start in range(0, len(groups), processes.size):
            if processes.any(stops(), device):
                raise UnfinishedError("asked to stop in the middle of an evaluation")
            for group in groups[start + processes.rank :][:1]:
                for part, answer, losses, wrong in _in_parts(
                    model, batches, group, train.precision
                ):
                    predicted[torch.from_numpy(part.copy()).to(device)] = answer
                    loss += losses
                    not_finite += wrong
    finally:
        model.train(was_training)
    if processes.total(not_finite).item():
        # The largest of NaNs is class 0, which is sometimes right by chance.
        raise NotFiniteError("the model's answers in evaluation are not finite")
    mean = float(processes.total(loss)) / len(batches)
    return Predictions(processes.total(predicted).cpu().numpy(), batches.labels, loss=mean)


def _in_parts(
    model: nn.Module, batches: Batches, group: NDArray[np.int64], precision: str
) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor, Tensor]]:
    """Yield examples and what `_answer` returns for them: all at once, or in parts that fit."""
    left = [group]
    while left:
        part = left.pop()
        try:
            answer, loss, wrong = _answer(model, batches.gather(part), precision)
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not is_out_of_memory(error):
                raise
            log.warning("out of memory with %d examples in evaluation: in halves", len(part))
            left += [part[len(part) // 2 :], part[: len(part) // 2]]
            continue
        yield part, answer, loss, wrong


def _answer(model: nn.Module, batch: Batch, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the classes answered, `(B,)`, the summed loss, and how many logits are not finite."""
    with autocast(batch.tokens.device, precision):
        logits = model(batch.tokens, batch.mask)
    loss = F.cross_entropy(logits.float(), batch.labels, reduction="sum")
    return logits.argmax(-1), loss, (~logits.isfinite()).sum()
