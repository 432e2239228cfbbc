"""Curves for TensorBoard; a failure to write them causes one warning and never ends a training run.

TensorBoard expands the first two groups of curves by name, here `train` and `validation`, and
leaves the others collapsed: `weights` has a curve for each tensor of a model.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboard.plugins.hparams import summary_v2 as hparams
from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

# Test accuracy is in the validation group: a group of its own would be expanded in its place.
ACCURACY, LOSS = "validation/accuracy", "validation/loss"
BEST_ACCURACY, TEST_ACCURACY = "validation/best_accuracy", "validation/test_accuracy"
GRADIENT_NORM = "weights/gradient_norm"
# The measures by which cells are compared on TensorBoard's page of hyperparameters.
METRICS = {TEST_ACCURACY: "test accuracy", BEST_ACCURACY: "validation accuracy"}


class Events:
    """Scalars of a run over its steps.

    Args:
        folder: Run folder.
        purge_step: First step that follows; an interrupted run's points from there on are dropped.
        written: Whether anything is written at all.
    """

    def __init__(self, folder: Path, purge_step: int, written: bool = True) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        if not written:
            return
        try:
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        except OSError as error:
            self._give_up(error)

    def __enter__(self) -> "Events":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as refused:
                self._give_up(refused)

    @property
    def works(self) -> bool:
        """Whether added points are written; False once a write has failed."""
        return self._writer is not None

    def add(self, name: str, value: float, step: int) -> None:
        """Append a point to a curve."""
        if self._writer is not None:
            try:
                self._writer.add_scalar(name, value, step)
            except OSError as error:
                # The writing thread raised it at an earlier point.
                self._give_up(error)

    def describe(self, values: Mapping[str, str]) -> None:
        """Describe the cell for the page of hyperparameters.

        Args:
            values: Its properties by name, such as its task and seed.
        """
        columns = [hparams.HParam(name) for name in values]
        metrics = [hparams.Metric(tag, display_name=name) for tag, name in METRICS.items()]
        self._add(hparams.hparams_config_pb(columns, metrics))
        self._add(hparams.hparams_pb(dict(values), trial_id=" ".join(values.values())))

    def _add(self, summary: Any) -> None:
        if self._writer is not None:
            try:
                self._writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        log.warning("no more TensorBoard events in %s (%s); the run continues", self._folder, error)
