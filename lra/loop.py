"""Train, validate, keep the best, and be able to continue at any moment.

The loop is a pure function of configuration and data: batches come from (seed, step), dropout
from generators that are saved, and the checkpoint holds the rest. A run that was killed and
started again ends with the bits of one that was not.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lra import checkpoint
from lra.batches import Batch, Batches
from lra.cell import Identity
from lra.checkpoint import BEST, CHECKPOINT, PREVIOUS
from lra.config import TrainConfig, resolve_precision
from lra.events import Events
from lra.optimiser import optimiser_for
from lra.signals import Stop

log = logging.getLogger(__name__)

# Updates between lines of the log: to read the running loss waits for the device.
LOG_EVERY = 20


class NotFiniteError(RuntimeError):
    """The loss, a parameter or an answer became infinite or no number."""


@dataclass
class Progress:
    """How far a run has come.

    Args:
        step: Updates made.
        train_seconds: Seconds they took, without validation.
        seconds: Seconds in all.
        tokens: Real tokens seen.
        best_accuracy: Best validation accuracy; -1 before the first validation.
        best_step: Updates made at that validation.
    """

    step: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    best_accuracy: float = -1.0
    best_step: int = 0


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Compute in `precision`, as `TrainConfig` explains it: all but float32 by autocast."""
    halves = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    half = halves.get(resolve_precision(precision, device.type))
    with torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
        yield


def update(
    forward: Callable[..., Tensor],
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    train: TrainConfig,
    scaler: torch.amp.GradScaler,
) -> Tensor:
    """Make one update from a batch and return its loss, a scalar.

    Args:
        forward: The model, compiled or not.
        optimiser: Of the model's parameters.
        batch: Examples.
        train: Optimisation.
        scaler: See `scaler_for`.
    """
    with autocast(batch.tokens.device, train.precision):
        logits = forward(batch.tokens, batch.mask)
    loss = F.cross_entropy(logits.float(), batch.labels)
    optimiser.zero_grad()
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    if train.clip_norm:
        scaler.unscale_(optimiser)
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, train.clip_norm)
    scaler.step(optimiser)
    scaler.update()
    return loss.detach()


def scaler_for(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Return the loss scaling of a precision; for all but float16 it passes everything through."""
    scaled = resolve_precision(precision, device.type) == "float16"
    return torch.amp.GradScaler(device.type, enabled=scaled)


@torch.inference_mode()
def count_correct(model: nn.Module, batches: Batches, train: TrainConfig) -> int:
    """Return how many examples of the whole split the model classifies rightly.

    Raises:
        NotFiniteError: An answer is infinite or no number.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for batch in batches.once(train.eval_batch_size):
        with autocast(device, train.precision):
            logits = model(batch.tokens, batch.mask)
        correct += (logits.argmax(-1) == batch.labels).sum()
        finite &= logits.isfinite().all()
    model.train(was_training)
    if not finite:
        # The largest of numbers that are none is the first, which is right by chance.
        raise NotFiniteError("the model's answers in evaluation are not finite")
    return int(correct)


class Run:
    """One cell in training.

    Args:
        model: The network, on `device`, its parameters as initialised.
        train: Optimisation.
        batches: `train`, and what checkpoints are chosen on as `validation`.
        device: Where the model is.
        folder: Run folder, for checkpoints and TensorBoard events.
        seed: Seed of data order and dropout.
        identity: What the cell is known by; a checkpoint of another one is refused.
        label: The cell's name, for the bar and the log.
        stop: Tells when the run is asked to stop.
    """

    def __init__(
        self,
        model: nn.Module,
        train: TrainConfig,
        batches: Mapping[str, Batches],
        device: torch.device,
        folder: Path,
        seed: int,
        identity: Identity,
        label: str,
        stop: Stop | None = None,
    ) -> None:
        self.model, self.train_config, self.batches, self.device = model, train, batches, device
        self.folder, self.seed, self.identity, self.label = folder, seed, identity, label
        self.optimiser, self.schedule = optimiser_for(model, train)
        self.scaler = scaler_for(device, train.precision)
        self.progress = Progress()
        self.stop = stop or Stop()
        # Versions of the code that trained before this one, where the run was continued.
        self.earlier_code: list[str] = []
        self._saved_step = 0
        self.best_model: dict[str, Tensor] = {}
        self._shown: dict[str, str] = {}
        self._forward = torch.compile(model) if train.compile else model

    def fit(self) -> Progress:
        """Train to the last step, continuing from a checkpoint where there is one.

        Leaves `best.pt`, the parameters that validation chose, and loads them into the model.

        Raises:
            ConfigError: The checkpoint there is belongs to another configuration, or a folder
                cannot be written to.
            NotFiniteError: The loss, a parameter or an answer in validation is not finite.
            StoppedError: A signal came; the checkpoint is written.
        """
        self._resume()
        train, progress = self.train_config, self.progress
        writer = Events(self.folder, progress.step + 1)
        bar = tqdm(
            total=train.steps,
            initial=progress.step,
            desc=self.label,
            unit="step",
            disable=None,
            dynamic_ncols=True,
        )
        saved = started = time.perf_counter()
        before = progress.seconds
        with self.stop.deferred(), bar, writer:

            def interrupted() -> bool:
                overdue = time.perf_counter() - saved >= train.checkpoint_seconds
                return overdue or self.stop.requested

            while progress.step < train.steps:
                self._log(writer, bar, self._updates(self._next_log(), interrupted, bar))
                if progress.step % train.validate_every == 0 or progress.step == train.steps:
                    self._validate(writer, bar)
                progress.seconds = before + time.perf_counter() - started
                if interrupted():
                    self._save()
                    saved = time.perf_counter()
                if self.stop.requested:
                    self.stop.answer(f"stopped at step {progress.step}; start again to continue")
            # The test that follows may be long too.
            self._save()
        self.model.load_state_dict(self.best_model)
        checkpoint.save(self.folder / BEST, {"model": self.best_model})
        return progress

    def _next_log(self) -> int:
        """Return the next step at which something is logged or validated."""
        step, train = self.progress.step, self.train_config
        strides = (LOG_EVERY, train.validate_every)
        return min(train.steps, *(step - step % stride + stride for stride in strides))

    def _updates(self, until: int, interrupted: Callable[[], bool], bar: "tqdm[Any]") -> float:
        """Make the updates up to step `until` or an interruption; return their mean loss."""
        train, progress = self.train_config, self.progress
        started, first = time.perf_counter(), progress.step
        total = torch.zeros((), device=self.device)
        self.model.train()
        while progress.step < until:
            batch = self.batches["train"].shuffled(progress.step, train.batch_size, self.seed)
            total += update(self._forward, self.optimiser, batch, train, self.scaler)
            progress.step += 1
            if progress.step < train.steps:
                self._advance_schedule()
            progress.tokens += batch.num_tokens
            bar.update()
            if interrupted():
                break
        mean = float(total) / (progress.step - first)
        progress.train_seconds += time.perf_counter() - started
        if not math.isfinite(mean):
            raise self._not_finite(f"loss {mean} in steps {first + 1} to {progress.step}")
        return mean

    def _not_finite(self, what: str) -> NotFiniteError:
        """Return an error that says when it was, and where the run was still good."""
        rate, saved = float(self.schedule.get_last_lr()[0]), self._saved_step
        last = f"the last good checkpoint is of step {saved}" if saved else "there is no checkpoint"
        return NotFiniteError(f"{what}, learning rate {rate:.3g}; {last}")

    def _check_parameters(self) -> None:
        """Raise where a parameter is not finite, whatever the loss before it was."""
        for name, parameter in self.model.named_parameters():
            if not parameter.isfinite().all():
                raise self._not_finite(f"{name} is not finite at step {self.progress.step}")

    def _advance_schedule(self) -> None:
        """Go to the next learning rate, after an update that loss scaling skipped too.

        So does the published code; torch warns of it where the first update is skipped.
        """
        if not self.scaler.is_enabled():
            self.schedule.step()
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.schedule.step()

    @property
    def num_skipped(self) -> int:
        """Updates that loss scaling skipped, because a gradient was not finite."""
        made = [int(state["step"]) for state in self.optimiser.state.values()]
        return self.progress.step - max(made, default=0)

    def _log(self, writer: Events, bar: "tqdm[Any]", loss: float) -> None:
        progress = self.progress
        scalars = {
            "train/loss": loss,
            "train/learning_rate": float(self.schedule.get_last_lr()[0]),
            "train/steps_per_second": progress.step / progress.train_seconds,
        }
        if self.scaler.is_enabled():
            scalars["train/loss_scale"] = self.scaler.get_scale()
            scalars["train/skipped_updates"] = self.num_skipped
        for name, value in scalars.items():
            writer.add(name, value, progress.step)
        self._shown["loss"] = f"{loss:.4f}"
        bar.set_postfix(self._shown)

    def _validate(self, writer: Events, bar: "tqdm[Any]") -> None:
        train, progress, batches = self.train_config, self.progress, self.batches["validation"]
        self._check_parameters()
        try:
            correct = count_correct(self.model, batches, train)
        except NotFiniteError as error:
            raise self._not_finite(f"{error}, at step {progress.step}") from error
        accuracy = correct / len(batches)
        self._shown["accuracy"] = f"{accuracy:.4f}"
        bar.set_postfix(self._shown)
        if accuracy > progress.best_accuracy:
            progress.best_accuracy, progress.best_step = accuracy, progress.step
            self.best_model = {k: v.clone() for k, v in self.model.state_dict().items()}
        writer.add("validation/accuracy", accuracy, progress.step)
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                norm = float(parameter.grad.norm())
                writer.add(f"gradient_norm/{name}", norm, progress.step)
        log.info(
            "%s step %d/%d: validation %.4f, best %.4f at %d, %.2f steps/s",
            self.label,
            progress.step,
            train.steps,
            accuracy,
            progress.best_accuracy,
            progress.best_step,
            progress.step / progress.train_seconds,
        )

    def _save(self) -> None:
        # What is not finite now stays so: the last good checkpoint is worth more.
        self._check_parameters()
        state = {
            "identity": self.identity.hash,
            "config": self.identity.config,
            "code": [*self.earlier_code, self.identity.code],
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": checkpoint.random_state(self.device),
            "best_model": self.best_model,
        }
        checkpoint.save(self.folder / CHECKPOINT, state, self.folder / PREVIOUS)
        self._saved_step = self.progress.step

    def _resume(self) -> None:
        state = checkpoint.load_last(self.folder, self.device)
        if state is None:
            return
        self.identity.check(self.folder / CHECKPOINT, state, self.train_config.steps)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        # Absent from older checkpoints, which were made without loss scaling.
        self.scaler.load_state_dict(state.get("scaler", {}))
        checkpoint.set_random_state(state["random"], self.device)
        self.best_model = state["best_model"]
        self.progress = Progress(**state["progress"])
        self._saved_step = self.progress.step
        self.earlier_code = [each for each in state.get("code", []) if each != self.identity.code]
        log.info("%s continues at step %d", self.label, self.progress.step)
        if self.earlier_code:
            was = ", ".join(self.earlier_code)
            log.warning("%s was begun by other code, %s; its record says so", self.label, was)
