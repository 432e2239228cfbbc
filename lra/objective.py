"""What a run learns: its batches, the loss that it minimises, and the measure of its quality.

The loop knows nothing else about a task, so pretraining is the same loop with another objective.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from lra.batches import Batch
from lra.config import TrainConfig
from lra.division import Division
from lra.processes import Processes


class Stream(Protocol):
    """Training batches, a pure function of seed and step; see `Batches`."""

    def divided(
        self,
        step: int,
        batch_size: int,
        seed: int,
        division: Division,
        share: tuple[int, int] = (0, 1),
    ) -> list[Batch]:
        """Return the batch of a training step in micro-batches; see `Batches.divided`."""

    def num_tokens(self, step: int, batch_size: int, seed: int) -> int:
        """Return the number of tokens in the sequences of a whole batch."""


class Objective(Protocol):
    """Which loss is minimised over which batches, and how the result is measured."""

    @property
    def train(self) -> Stream:
        """The batches to train on."""

    @property
    def measure(self) -> str:
        """The curve of `validate` by which checkpoints are chosen."""

    @property
    def shown(self) -> str:
        """The name of that measure beside a progress bar."""

    def loss(self, answers: Tensor, part: Batch) -> Tensor:
        """Return what a micro-batch contributes to the mean loss of its batch, a scalar.

        Args:
            answers: What the model returns for it, at least float32.
            part: The micro-batch.
        """

    def validate(
        self,
        model: nn.Module,
        train: TrainConfig,
        processes: Processes,
        stops: Callable[[], bool],
    ) -> dict[str, float]:
        """Return measures over all data that validation reads, by the names of their curves.

        The arguments are those of `lra.evaluation.predict`.

        Raises:
            NotFiniteError: An answer is infinite or NaN.
            UnfinishedError: `stops` returned true.
        """

    def is_better(self, measured: float, best: float) -> bool:
        """Return whether a measure is better than the best before it."""
