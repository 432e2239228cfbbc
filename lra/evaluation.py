"""What a model answers on a whole split."""

import logging

import torch
from torch import Tensor, nn

from lra.batches import Batch, Batches
from lra.config import TrainConfig
from lra.division import division_for, is_out_of_memory
from lra.precision import NotFiniteError, autocast
from lra.predictions import Predictions
from lra.processes import ALONE, Processes

log = logging.getLogger(__name__)


def count_correct(
    model: nn.Module, batches: Batches, train: TrainConfig, processes: Processes = ALONE
) -> int:
    """Return how many examples of the whole split the model classifies rightly; see `predict`."""
    return predict(model, batches, train, processes).num_correct


@torch.inference_mode()
def predict(
    model: nn.Module, batches: Batches, train: TrainConfig, processes: Processes = ALONE
) -> Predictions:
    """Return the model's answer to every example of a split, in the split's order.

    A batch that does not fit the memory is computed in halves.

    Args:
        model: The network.
        batches: The split.
        train: Batch size and precision.
        processes: Those that share the work; all return the same.

    Raises:
        NotFiniteError: An answer is infinite or no number.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    not_finite = torch.zeros((), dtype=torch.int64, device=device)
    # They stay on the device until all are there.
    predicted = torch.zeros(len(batches), dtype=torch.int64, device=device)
    division = division_for(train.micro_batch, model, device)
    groups = batches.groups(train.eval_batch_size, division)
    groups = groups[processes.rank :: processes.size][::-1]
    while groups:
        group = groups.pop()
        try:
            answer, wrong = _answer(model, batches.gather(group), train.precision)
            predicted[torch.from_numpy(group.copy()).to(device)] = answer
            not_finite += wrong
            continue
        except (RuntimeError, MemoryError) as error:
            if len(group) == 1 or not is_out_of_memory(error):
                raise
            log.warning("out of memory with %d examples in evaluation: in halves", len(group))
        groups += [group[len(group) // 2 :], group[: len(group) // 2]]
    model.train(was_training)
    if processes.total(not_finite).item():
        # The largest of NaNs is class 0, which is sometimes right by chance.
        raise NotFiniteError("the model's answers in evaluation are not finite")
    return Predictions(processes.total(predicted).cpu().numpy(), batches.labels)


def _answer(model: nn.Module, batch: Batch, precision: str) -> tuple[Tensor, Tensor]:
    """Return the classes answered, `(B,)`, and the number of logits that are not finite."""
    with autocast(batch.tokens.device, precision):
        logits = model(batch.tokens, batch.mask)
    return logits.argmax(-1), (~logits.isfinite()).sum()
