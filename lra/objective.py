"""What a run learns: which batches, what of them it minimises, and what tells how good it is.

The loop knows no more of a task than this, so that pretraining is the same loop with another
objective.
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
        """Return the tokens of the sequences of a whole batch."""


class Objective(Protocol):
    """What is minimised over which batches, and how the result is measured."""

    @property
    def train(self) -> Stream:
        """The batches that it is trained on."""

    @property
    def measure(self) -> str:
        """The curve among those of `validate` by which checkpoints are chosen."""

    @property
    def shown(self) -> str:
        """Its name beside a progress bar."""

    def loss(self, answers: Tensor, part: Batch) -> Tensor:
        """Return the share of a micro-batch in the mean loss of its batch, a scalar.

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
        """Return measures over everything that validation reads, by the names of their curves.

        Args are those of `lra.evaluation.predict`.

        Raises:
            NotFiniteError: An answer is infinite or no number.
            UnfinishedError: `stops` said so.
        """

    def is_better(self, measured: float, best: float) -> bool:
        """Tell whether one measure is better than the best before it."""
