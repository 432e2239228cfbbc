"""Curves for TensorBoard; what cannot be written is warned of once and never ends a training."""

import logging
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


class Events:
    """Scalars of a run over its steps.

    Args:
        folder: Run folder.
        purge_step: First step of what follows; later ones of an interrupted run are dropped.
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

    def add(self, name: str, value: float, step: int) -> None:
        """Append a point to a curve."""
        if self._writer is not None:
            try:
                self._writer.add_scalar(name, value, step)
            except OSError as error:
                # Raised by the writing thread at some earlier point.
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        log.warning("no more TensorBoard events in %s (%s); the run goes on", self._folder, error)
