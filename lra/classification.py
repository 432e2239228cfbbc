"""Classify examples: minimise the cross-entropy of their classes, measured by accuracy."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lra.batches import Batch, Batches
from lra.config import TrainConfig
from lra.evaluation import predict
from lra.events import ACCURACY, LOSS
from lra.processes import Processes
from lra.update import class_loss


@dataclass(frozen=True)
class Classification:
    """The objective of every task; see `lra.objective`.

    Args:
        train: The training batches.
        validation: The split that checkpoints are chosen on.
    """

    train: Batches
    validation: Batches
    measure: str = ACCURACY
    shown: str = "accuracy"

    def loss(self, answers: Tensor, part: Batch) -> Tensor:
        """Return a micro-batch's share of the mean cross-entropy of its batch."""
        return class_loss(answers, part)

    def validate(
        self,
        model: nn.Module,
        train: TrainConfig,
        processes: Processes,
        stops: Callable[[], bool],
    ) -> dict[str, float]:
        """Return the share of the validation split that is classified correctly, and the loss."""
        answers = predict(model, self.validation, train, processes, stops)
        return {ACCURACY: answers.num_correct / len(self.validation), LOSS: answers.loss}

    def is_better(self, measured: float, best: float) -> bool:
        """Return whether an accuracy is above the previous best."""
        return measured > best
