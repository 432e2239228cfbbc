"""Train, validate, keep the best, and be able to continue at any moment.

The loop is a pure function of configuration and data: batches come from (seed, step), dropout
from generators that are saved, and the checkpoint holds the rest. A run that was killed and
started again ends with the bits of one that was not.
"""

import copy
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lra import checkpoint, side_by_side
from lra.bar import FORMAT, progress_bar, shortened
from lra.batches import Batch
from lra.checkpoint import BEST, CHECKPOINT, PREVIOUS, DamagedError, Identity
from lra.config import TrainConfig
from lra.division import (
    Division,
    division_for,
    is_out_of_memory,
    needs_whole_batch,
)
from lra.events import GRADIENT_NORM, Events
from lra.machine import synchronise
from lra.objective import Objective
from lra.optimiser import optimiser_for
from lra.precision import NotFiniteError, scaler_for
from lra.processes import ALONE, Processes
from lra.seeds import derive
from lra.signals import Stop, UnfinishedError
from lra.speed import WINDOW, Speed
from lra.update import accumulate, apply, compiled

log = logging.getLogger(__name__)

# Updates between lines of the log: to read the running loss waits for the device.
LOG_EVERY = WINDOW


@dataclass
class Progress:
    """How far a run has come.

    Args:
        step: Updates made.
        train_seconds: Seconds they took, without validation.
        seconds: Seconds in all.
        tokens: Real tokens seen.
        best_accuracy: Best measure of a validation; -1 before the first one.
        best_step: Updates made at that validation.
        validations: Updates made and the measure, of each validation.
        micro_batches: Micro-batches they were computed in.
        compiled_shapes: Shapes of micro-batches that one process compiled, at most.
    """

    step: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    best_accuracy: float = -1.0
    best_step: int = 0
    validations: list[tuple[int, float]] = field(default_factory=list)
    micro_batches: int = 0
    compiled_shapes: int = 0

    def per_second(self, count: float) -> float:
        """Return a count per second of training; 0 before anything was trained."""
        return count / self.train_seconds if self.train_seconds else 0.0


class Run:
    """One cell in training.

    Args:
        model: The network, on `device`, its parameters as initialised.
        train: Optimisation.
        objective: Which batches, what of them is minimised, and what checkpoints are chosen by.
        device: Where the model is.
        folder: Run folder, for checkpoints and TensorBoard events.
        seed: Seed of data order and dropout.
        identity: What the cell is known by; a checkpoint of another one is refused.
        label: The cell's name, for the bar and the log.
        stop: Tells when the run is asked to stop.
        processes: Those that train it together; the first one writes.
        to_continue: What continues it once it has stopped, for messages.
        about: What it is compared with other cells by, such as its task and seed.
    """

    def __init__(
        self,
        model: nn.Module,
        train: TrainConfig,
        objective: Objective,
        device: torch.device,
        folder: Path,
        seed: int,
        identity: Identity,
        label: str,
        stop: Stop | None = None,
        processes: Processes = ALONE,
        to_continue: str = "start again to continue",
        about: Mapping[str, str] | None = None,
    ) -> None:
        self.model, self.train_config, self.objective, self.device = model, train, objective, device
        self.folder, self.seed, self.identity, self.label = folder, seed, identity, label
        self.optimiser, self.schedule = optimiser_for(model, train)
        self.scaler = scaler_for(device, train.precision)
        self.stop, self.processes, self.to_continue = stop or Stop(), processes, to_continue
        self._about = about or {}
        # Whether curves could be written, so far.
        self.has_curves = True
        # Asked of any process, after the same update of all.
        self._stops = False
        # Whether the validation that is due after the last update has yet to be made.
        self._unvalidated = False
        # Versions of the code that trained before this one, where the run was continued.
        self.earlier_code: list[str] = []
        self._saved_step = 0
        self._changes = sorted(model.state_dict().keys() - dict(model.named_parameters()).keys())
        # Of every update; NaN for those that an earlier version made, which kept none.
        self._losses = torch.full((train.steps,), torch.nan, dtype=torch.float32, device="cpu")
        self.progress, self.speed = Progress(), Speed()
        self.division = division_for(train.micro_batch, model, device, train.compile)
        # Shapes that were computed in this process: a new one may have to be set up.
        self.shapes: set[tuple[int, ...]] = set()
        self.best_model: dict[str, Tensor] = {}
        self._shown: dict[str, str] = {}
        self._forward = compiled(model) if train.compile else model

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
        train, progress, to_continue = self.train_config, self.progress, self.to_continue
        writer = Events(self.folder, progress.step + 1, self.processes.writes)
        bar = self._bar(train.steps)
        saved = started = time.perf_counter()
        before = progress.seconds
        with self.stop.deferred(), bar, writer:
            if self._about:
                writer.describe(self._about)

            def interrupted() -> bool:
                overdue = time.perf_counter() - saved >= train.checkpoint_seconds
                return overdue or self._stops

            while progress.step < train.steps or self._unvalidated:
                if not self._unvalidated:
                    loss = self._updates(self._next_log(), interrupted, bar)
                    if loss is not None:
                        self._log(writer, bar, loss)
                        due = progress.step % train.validate_every == 0
                        self._unvalidated = due or progress.step == train.steps
                if self._unvalidated and not self._stops:
                    self._validate(writer, bar)
                progress.seconds = before + time.perf_counter() - started
                if interrupted():
                    self._save()
                    saved = time.perf_counter()
                if self._stops:
                    self._stops = False
                    self.stop.answer(f"stopped at step {progress.step}; {to_continue}")
            # The test that follows may be long too.
            self._save()
            # A signal may have come since it was last asked for: while this was saved.
            if self.processes.any(self.stop.requested, self.device):
                self.stop.answer(f"stopped at step {progress.step}; {to_continue}")
        self.has_curves = writer.works
        self.model.load_state_dict(self.best_model)
        if self.processes.writes:
            checkpoint.save(self.folder / BEST, {"model": self.best_model})
        return progress

    def first_losses(self, updates: int) -> NDArray[np.float32]:
        """Make the first updates of the run, write nothing, and return the loss of each.

        Validates where the run does, as a backend may draw random numbers there too.

        Args:
            updates: How many, at most those of the run.

        Returns:
            `(updates,)`; fewer where one of the last, a parameter or an answer is not finite.
        """
        progress, until = self.progress, min(updates, self.train_config.steps)
        with self._bar(until) as bar, Events(self.folder, 1, written=False) as writer:
            while progress.step < until:
                try:
                    loss = self._updates(min(until, self._next_log()), lambda: False, bar)
                    # Nobody is listening for a signal.
                    assert loss is not None
                    self._log(writer, bar, loss)
                    due = progress.step % self.train_config.validate_every == 0
                    if due and progress.step < until:
                        self._validate(writer, bar)
                except NotFiniteError:
                    break
        return self.losses

    def _bar(self, steps: int) -> Any:
        """Return a bar of updates up to step `steps`, those that are made filled in."""
        return progress_bar(
            total=steps,
            initial=self.progress.step,
            desc=shortened(self.label),
            unit="step",
            dynamic_ncols=True,
            bar_format=FORMAT,
        )

    def _next_log(self) -> int:
        """Return the next step at which something is logged or validated."""
        step, train = self.progress.step, self.train_config
        strides = (LOG_EVERY, train.validate_every)
        return min(train.steps, *(step - step % stride + stride for stride in strides))

    def _updates(self, until: int, interrupted: Callable[[], bool], bar: Any) -> float | None:
        """Make the updates up to step `until` or an interruption; return their mean loss.

        None where a signal ended the first of them before it was made.
        """
        train, progress = self.train_config, self.progress
        started, first, tokens = time.perf_counter(), progress.step, progress.tokens
        plain, first_seconds = 0, 0.0
        # They stay on the device until all are read at once, which waits for it.
        losses: list[Tensor] = []
        self.model.train()
        while progress.step < until:
            before = progress.tokens
            try:
                loss, apart = self._update()
            except UnfinishedError:
                self._stops = True
                break
            losses.append(loss)
            progress.step += 1
            if progress.step < train.steps:
                self._advance_schedule()
            if apart:
                first_seconds += apart
                tokens += progress.tokens - before
            else:
                plain += 1
            bar.update()
            if interrupted():
                break
        if not losses:
            return None
        self._losses[first : progress.step] = torch.stack(losses).float().cpu()
        mean = float(self._losses[first : progress.step].mean())
        seconds = time.perf_counter() - started
        progress.train_seconds += seconds
        self.speed.first_seconds += first_seconds
        if plain:
            self.speed.add(plain, progress.tokens - tokens, seconds - first_seconds)
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

    def _update(self) -> tuple[Tensor, float]:
        """Make an update; return its loss, and its seconds where something is set up in it."""
        train, progress = self.train_config, self.progress
        parts = self._parts()
        shapes = {tuple(part.tokens.shape) for part in parts}
        is_first = not self.shapes or (train.compile and not shapes <= self.shapes)
        if is_first:
            synchronise(self.device)
            self.shapes |= shapes
        started = time.perf_counter()
        self.optimiser.zero_grad()
        loss = self._accumulate(parts)
        self._stops = self.processes.add_up(
            self.model.parameters(), loss, self._stops or self.stop.requested
        )
        apply(self.optimiser, train, self.scaler)
        progress.tokens += self._num_tokens(parts)
        if train.compile:
            progress.compiled_shapes = max(progress.compiled_shapes, len(self.shapes))
        if not is_first:
            return loss, 0.0
        synchronise(self.device)
        return loss, time.perf_counter() - started

    def _parts(self) -> list[Batch]:
        """Return the micro-batches of the next update."""
        step, size = self.progress.step, self.train_config.batch_size
        share = (self.processes.rank, self.processes.size)
        return self.objective.train.divided(step, size, self.seed, self.division, share)

    def _num_tokens(self, parts: list[Batch]) -> int:
        """Return the tokens of the whole batch, of which `parts` are the share of this process."""
        if self.processes.size == 1:
            return sum(part.num_tokens for part in parts)
        step, size = self.progress.step, self.train_config.batch_size
        return self.objective.train.num_tokens(step, size, self.seed)

    def _accumulate(self, parts: list[Batch]) -> Tensor:
        """Compute the gradients of a batch, in halves of its micro-batches where memory ends."""
        while True:
            random, state = checkpoint.random_state(self.device), self._changing()
            try:
                precision, loss_of = self.train_config.precision, self.objective.loss
                loss = accumulate(
                    self._forward, parts, precision, self.scaler, loss_of, self._stops_within
                )
                self.progress.micro_batches += len(parts)
                return loss
            except UnfinishedError:
                self._undo(random, state)
                raise
            except (RuntimeError, MemoryError) as error:
                most = max(len(part.labels) for part in parts)
                together = side_by_side.suits(
                    self._forward, len(parts), self.device, self.scaler.is_enabled()
                )
                whole = most == 1 or needs_whole_batch(self.model)
                if (whole and not together) or not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            # After the handler, which keeps the tensors of the failed attempt alive.
            if together:
                side_by_side.one_after_another(self.model)
                now = "one micro-batch after another"
            else:
                self.division = self.division.halved(most)
                now = str(self.division)
            log.warning(
                "%s step %d: out of memory with %d examples at once; again with %s (%s)",
                self.label,
                self.progress.step,
                most,
                now,
                reason,
            )
            self._undo(random, state)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            parts = self._parts()

    def _stops_within(self) -> bool:
        """Tell whether to stop in the middle of an update: alone, as others would wait for it."""
        return self.processes.size == 1 and self.stop.requested

    def _changing(self) -> dict[str, Any]:
        """Return a copy of what a forward pass may change in the model: all but its parameters."""
        if not self._changes:
            return {}
        state = self.model.state_dict()
        return {name: copy.deepcopy(state[name]) for name in self._changes}

    def _undo(self, random: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Forget the half of an update, so that the whole is the one that it would have been."""
        self.optimiser.zero_grad()
        self.model.load_state_dict(state, strict=False)
        checkpoint.set_random_state(random, self.device)

    def _advance_schedule(self) -> None:
        """Go to the next learning rate, after an update that loss scaling skipped too.

        So does the published code; torch warns of it where the first update is skipped.
        """
        if self.progress.step > 1 or not self.scaler.is_enabled():
            self.schedule.step()
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.schedule.step()

    @property
    def steps_per_second(self) -> float:
        """Updates per second: the median of windows, or before there is one the mean."""
        return self.speed.steps_per_second or self.progress.per_second(self.progress.step)

    @property
    def tokens_per_second(self) -> float:
        """Real tokens per second, in the same way."""
        return self.speed.tokens_per_second or self.progress.per_second(self.progress.tokens)

    @property
    def losses(self) -> NDArray[np.float32]:
        """Loss of every update so far, `(steps,)`; NaN where an earlier version kept none."""
        losses: NDArray[np.float32] = self._losses[: self.progress.step].numpy()
        return losses

    @property
    def num_skipped(self) -> int:
        """Updates that loss scaling skipped, because a gradient was not finite."""
        made = [int(state["step"]) for state in self.optimiser.state.values()]
        return self.progress.step - max(made, default=0)

    def _log(self, writer: Events, bar: Any, loss: float) -> None:
        progress = self.progress
        scalars = {
            "train/loss": loss,
            "train/learning_rate": float(self.schedule.get_last_lr()[0]),
            "train/steps_per_second": self.steps_per_second,
        }
        if self.scaler.is_enabled():
            scalars["train/loss_scale"] = self.scaler.get_scale()
            scalars["train/skipped_updates"] = self.num_skipped
        for name, value in scalars.items():
            writer.add(name, value, progress.step)
        self._shown["loss"] = f"{loss:.4f}"
        bar.set_postfix(self._shown)

    def _validate(self, writer: Events, bar: Any) -> None:
        train, progress, objective = self.train_config, self.progress, self.objective
        self._check_parameters()
        random = checkpoint.random_state(self.device)
        try:
            measures = objective.validate(
                self.model, train, self.processes, lambda: self.stop.requested
            )
        except NotFiniteError as error:
            raise self._not_finite(f"{error}, at step {progress.step}") from error
        except UnfinishedError:
            # It is made again from its beginning, with the draws of one that was not interrupted.
            checkpoint.set_random_state(random, self.device)
            self._stops = True
            return
        self._unvalidated = False
        measured = measures[objective.measure]
        progress.validations.append((progress.step, measured))
        self._shown[objective.shown] = f"{measured:.4f}"
        bar.set_postfix(self._shown)
        if not progress.best_step or objective.is_better(measured, progress.best_accuracy):
            progress.best_accuracy, progress.best_step = measured, progress.step
            self.best_model = {k: v.clone() for k, v in self.model.state_dict().items()}
        norms = {
            f"{GRADIENT_NORM}/{name}": parameter.grad.norm().float()
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }
        for name, value in measures.items():
            writer.add(name, value, progress.step)
        # Read at once: each by itself would wait for the device.
        values = torch.stack([*norms.values()]).tolist() if norms else []
        for name, norm in zip(norms, values, strict=True):
            writer.add(name, norm, progress.step)
        log.info(
            "%s step %d/%d: validation %.4f, best %.4f at %d, %.2f steps/s",
            self.label,
            progress.step,
            train.steps,
            measured,
            progress.best_accuracy,
            progress.best_step,
            self.steps_per_second,
        )

    def _save(self) -> None:
        # What is not finite now stays so: the last good checkpoint is worth more.
        self._check_parameters()
        self._saved_step = self.progress.step
        if not self.processes.writes:
            return
        state = {
            "identity": self.identity.hash,
            "config": self.identity.config,
            "code": [*self.earlier_code, self.identity.code],
            "progress": asdict(self.progress),
            "speed": asdict(self.speed),
            "losses": self._losses[: self.progress.step].clone(),
            # Of the memory there was, too; what it leads to must not change in the middle of a run.
            "division": asdict(self.division),
            "micro_batch": self.train_config.micro_batch,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": checkpoint.random_state(self.device),
            "best_model": self.best_model,
        }
        if self._unvalidated:
            state["unvalidated"] = True
        checkpoint.save(self.folder / CHECKPOINT, state, self.folder / PREVIOUS)

    def _resume(self) -> None:
        # All read what the first one found, and go on before it writes.
        self.processes.wait()
        self._load()
        self.processes.wait()
        if not self.processes.writes:
            # The generators that are saved are the first one's.
            stream = ("dropout", self.processes.rank, self.progress.step)
            torch.manual_seed(derive(self.seed, *stream))

    def _load(self) -> None:
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
        same = state.get("micro_batch", ...) == self.train_config.micro_batch
        try:
            self.progress = Progress(**state["progress"])
            # These are absent from older checkpoints, as the losses are.
            self.speed = Speed(**state.get("speed", {}))
            self.division = Division(**state["division"]) if same else self.division
        except TypeError as error:
            file = self.folder / CHECKPOINT
            raise DamagedError(f"{file}: written by a later version ({error})") from error
        self._saved_step = self.progress.step
        # There only where a signal came before or in a validation.
        self._unvalidated = state.get("unvalidated", False)
        self.earlier_code = [each for each in state.get("code", []) if each != self.identity.code]
        if "losses" in state:
            self._losses[: self.progress.step] = state["losses"].cpu()
        log.info("%s continues at step %d", self.label, self.progress.step)
        if self.earlier_code:
            was = ", ".join(self.earlier_code)
            log.warning("%s was begun by other code, %s; its record says so", self.label, was)
