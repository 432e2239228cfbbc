"""Measure a backend at one length, in training or inference."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from lra import memory
from lra.batches import Batch
from lra.bench.measured import Cell, Mode
from lra.build import Model
from lra.config import Config
from lra.division import is_out_of_memory
from lra.machine import seconds_of
from lra.optimiser import optimiser_for
from lra.precision import autocast, scaler_for
from lra.update import compiled, update

# Approximate seconds that a timing lasts; short steps are repeated within it.
MIN_SECONDS = 0.1


@dataclass
class Measurement:
    """A backend at a length in a mode, being measured.

    Args:
        name: The backend and the options chosen for it.
        length: Tokens per sequence.
        mode: Training or inference.
        step: Performs one step.
        flops: Operations per step.
        parameters: Number of parameters of the model.
        calls: Steps per timing.
        seconds: Seconds per step, one value per timing.
        peak: Bytes that a step adds.
        failed: Why the measurement failed; empty if it did not.
    """

    name: str
    length: int
    mode: Mode
    step: Callable[[], object]
    flops: int
    parameters: int
    calls: int = 1
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    failed: str = ""

    def prepare(self, device: torch.device) -> None:
        """Run the first step; determine the number of steps per timing and the peak memory."""
        self._unless_out_of_memory(lambda: self._prepare(device))

    def _prepare(self, device: torch.device) -> None:
        self.step()
        once = seconds_of(self.step, device)
        self.calls = max(1, round(MIN_SECONDS / once))
        self.peak = memory.peak_of(self.step, device)

    def time(self, device: torch.device) -> None:
        """Take one timing."""
        self._unless_out_of_memory(lambda: self.seconds.append(self._timed(device)))

    def _timed(self, device: torch.device) -> float:
        def steps() -> None:
            for _ in range(self.calls):
                self.step()

        return seconds_of(steps, device) / self.calls

    def _unless_out_of_memory(self, act: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            act()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.failed = "out of memory"

    @property
    def cell(self) -> Cell:
        """The measurement as stored."""
        failed = bool(self.failed)
        return Cell(
            attention=self.name,
            length=self.length,
            mode=self.mode,
            seconds=[] if failed else self.seconds,
            calls=self.calls,
            peak_memory_bytes=0 if failed else self.peak,
            flops=self.flops,
            parameters=self.parameters,
            failed=self.failed,
        )


def steps_of(
    model: Model, config: Config, batch_size: int, device: torch.device
) -> dict[Mode, Callable[[], object]]:
    """Return functions that perform an update and a forward pass on random tokens of full length.

    Args:
        model: The model, which is moved to the device.
        config: Its configuration.
        batch_size: Sequences per step.
        device: Device to compute on.
    """
    model.to(device)
    optimiser, _ = optimiser_for(model, config.train)
    scaler = scaler_for(device, config.train.precision)
    forward = compiled(model) if config.train.compile else model
    generator = torch.Generator().manual_seed(0)
    shape = shape_of(config, batch_size)
    tokens = torch.randint(1, config.task.num_symbols, shape, generator=generator).to(device)
    labels = torch.randint(config.task.num_classes, (batch_size,), generator=generator).to(device)
    batch = Batch(tokens, None, labels, tokens.numel())

    def training() -> None:
        model.train()
        update(forward, optimiser, [batch], config.train, scaler)

    @torch.inference_mode()
    def inference() -> None:
        model.eval()
        with autocast(device, config.train.precision):
            forward(tokens, None)

    return {"training": training, "inference": inference}


def shape_of(config: Config, batch_size: int) -> tuple[int, ...]:
    """Return the shape of a batch of tokens, `(B, N)` or `(B, 2, N)`."""
    return (batch_size, *[2] * (config.task.sequences == 2), config.model.max_length)
