"""Train, validate, keep the best parameters, and be able to resume at any moment.

The loop is a pure function of configuration and data: batches come from (seed, step), dropout
from generators whose states are saved, and the checkpoint holds the rest. A run that was killed and
started again ends with the same bits as one that was not.
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

from lra import checkpoint, memory, side_by_side
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
from lra.machine import described, synchronise
from lra.objective import Objective
from lra.optimiser import optimiser_for
from lra.precision import NotFiniteError, scaler_for
from lra.processes import ALONE, Processes
from lra.seeds import derive
from lra.signals import Stop, UnfinishedError
from lra.speed import WINDOW, Speed
from lra.update import accumulate, apply, compiled

log = logging.getLogger(__name__)

# Updates between log entries: reading the running loss waits for the device.
LOG_EVERY = WINDOW


@dataclass
class Progress:
    """The progress of a run.

    Args:
        step: Number of updates made.
        train_seconds: Seconds that they took, without validation.
        seconds: Seconds in total.
        tokens: Number of real tokens seen.
        best_accuracy: Best measure of a validation; -1 before the first one.
        best_step: Number of updates made before that validation.
        validations: Number of updates made and the measure, for each validation.
        micro_batches: Number of micro-batches in which the updates were computed.
        compiled_shapes: Largest number of micro-batch shapes that one process compiled.
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
        """Return a count per second of training; 0 before any training."""
        return count / self.train_seconds if self.train_seconds else 0.0


class Run:
    """The training run of one cell.

    Args:
        model: The network, on `device`, with its initial parameters.
        train: Optimisation.
        objective: The batches, the loss to minimise, and the measure that chooses checkpoints.
        device: The device of the model.
        folder: Run folder, for checkpoints and TensorBoard events.
        seed: Seed of data order and dropout.
        identity: Identity of the cell; a checkpoint with another identity is rejected.
        label: The cell's name, for the bar and the log.
        stop: Signals when the run is asked to stop.
        processes: The processes that train it together; the first one writes.
        to_continue: How to continue the run once it has stopped, for messages.
        about: Properties by which it is compared with other cells, such as its task and seed.
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
        # Whether it has been possible to write curves so far.
        self.has_curves = True
        # Whether any process is asked to stop, or by its clock has to save, which all learn after
        # the same update.
        self._stops = self._saves = False
        self._saved_at = time.perf_counter()
        # Whether the validation that is due after the last update has yet to be done.
        self._unvalidated = False
        # Versions of the code that trained before this one, and where, if the run was continued.
        self.earlier_code: list[str] = []
        self.earlier_machines: list[str] = []
        # Largest use of memory of the processes before this one, in bytes.
        self._earlier_peak = 0
        self._saved_step = 0
        # Whether the run continues from the checkpoint before the last, which cannot be read.
        self._last_is_damaged = False
        self._changes = sorted(model.state_dict().keys() - dict(model.named_parameters()).keys())
        # The loss of every update; NaN for updates by an earlier version, which kept no losses.
        self._losses = torch.full((train.steps,), torch.nan, dtype=torch.float32, device="cpu")
        self.progress, self.speed = Progress(), Speed()
        self.division = division_for(train.micro_batch, model, device, train.compile)
        # The division of the first updates, and their number, if it changed after them.
        self.first_division, self.first_divided = self.division, 0
        # Shapes already computed in this process: a new shape may need setting up.
        self.shapes: set[tuple[int, ...]] = set()
        self.best_model: dict[str, Tensor] = {}
        self._shown: dict[str, str] = {}
        self._forward = compiled(model) if train.compile else model

    def fit(self) -> Progress:
        """Train to the last step, continuing from a checkpoint if there is one.

        Writes the parameters that validation chose to `best.pt`, and loads them into the model.

        Raises:
            ConfigError: The existing checkpoint belongs to another configuration, or a folder
                cannot be written to.
            NotFiniteError: The loss, a parameter or an answer in validation is not finite.
            StoppedError: A signal arrived; the checkpoint is written.
        """
        self._resume()
        train, progress, to_continue = self.train_config, self.progress, self.to_continue
        writer = Events(self.folder, progress.step + 1, self.processes.writes)
        bar = self._bar(train.steps)
        self._saved_at = started = time.perf_counter()
        before = progress.seconds
        with self.stop.deferred(), bar, writer:
            if self._about:
                writer.describe(self._about)

            def interrupted() -> bool:
                return self._stops or self._saves

            while progress.step < train.steps or self._unvalidated:
                try:
                    if not self._unvalidated:
                        loss = self._updates(self._next_log(), interrupted, bar)
                        if loss is not None:
                            self._log(writer, bar, loss)
                            due = progress.step % train.validate_every == 0
                            self._unvalidated = due or progress.step == train.steps
                    if self._unvalidated and not self._stops:
                        self._validate(writer, bar)
                finally:
                    progress.seconds = before + time.perf_counter() - started
                if interrupted():
                    self._save()
                if self._stops:
                    self._stops = False
                    self.stop.answer(f"stopped at step {progress.step}; {to_continue}")
            # Saved now, because the test that follows may also take long.
            self._save()
            # A signal may have arrived since the last check, during this save.
            if self.processes.any(self.stop.requested, self.device):
                self.stop.answer(f"stopped at step {progress.step}; {to_continue}")
        self.has_curves = writer.works
        self.model.load_state_dict(self.best_model)
        if self.processes.writes:
            checkpoint.save(self.folder / BEST, {"model": self.best_model})
        return progress

    def first_losses(self, updates: int) -> NDArray[np.float32]:
        """Make the first updates of the run, write nothing, and return the loss of each.

        Validates at the same steps as the run, as a backend may draw random numbers there too.

        Args:
            updates: Number of updates, at most that of the run.

        Returns:
            `(updates,)`; fewer if one of the last losses, a parameter or an answer is not finite.
        """
        progress, until = self.progress, min(updates, self.train_config.steps)
        with self._bar(until) as bar, Events(self.folder, 1, written=False) as writer:
            while progress.step < until:
                try:
                    loss = self._updates(min(until, self._next_log()), lambda: False, bar)
                    # No signal can interrupt the updates here.
                    assert loss is not None
                    self._log(writer, bar, loss)
                    due = progress.step % self.train_config.validate_every == 0
                    if due and progress.step < until:
                        self._validate(writer, bar)
                except NotFiniteError:
                    break
        return self.losses

    def _bar(self, steps: int) -> Any:
        """Return a progress bar of updates up to step `steps`, filled up to the current step."""
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

        Returns None if a signal interrupted the first of them before it was complete.
        """
        train, progress = self.train_config, self.progress
        started, first, tokens = time.perf_counter(), progress.step, progress.tokens
        plain, first_seconds = 0, 0.0
        # The losses stay on the device until all are read at once, which waits for the device.
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
        """Return an error that says when it occurred, and which checkpoint is still good."""
        rate, saved = float(self.schedule.get_last_lr()[0]), self._saved_step
        last = (
            f"the last good checkpoint is from step {saved}" if saved else "there is no checkpoint"
        )
        return NotFiniteError(f"{what}, learning rate {rate:.3g}; {last}")

    def _check_parameters(self) -> None:
        """Raise an error if a parameter is not finite, whatever the preceding loss."""
        for name, parameter in self.model.named_parameters():
            if not parameter.isfinite().all():
                raise self._not_finite(f"{name} is not finite at step {self.progress.step}")

    def _update(self) -> tuple[Tensor, float]:
        """Make an update; return its loss, and its seconds if something was set up during it."""
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
        overdue = time.perf_counter() - self._saved_at >= train.checkpoint_seconds
        self._stops, self._saves = self.processes.add_up(
            self.model.parameters(), loss, self._stops or self.stop.requested, overdue
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
        """Return the number of tokens in the whole batch, given this process's share `parts`."""
        if self.processes.size == 1:
            return sum(part.num_tokens for part in parts)
        step, size = self.progress.step, self.train_config.batch_size
        return self.objective.train.num_tokens(step, size, self.seed)

    def _accumulate(self, parts: list[Batch]) -> Tensor:
        """Compute the gradients of a batch, halving its micro-batches if memory runs out."""
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
            # After the handler, as it keeps the tensors of the failed attempt alive.
            if together:
                side_by_side.one_after_another(self.model)
                now = "one micro-batch after another"
            else:
                self._divide(self.division.halved(most))
                now = str(self.division)
            log.warning(
                "%s step %d: out of memory with %d examples at once; retrying with %s (%s)",
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

    def _divide(self, division: Division) -> None:
        """Compute the following updates with another division, and keep what the first ones had."""
        if division != self.division and not self.first_divided:
            self.first_division, self.first_divided = self.division, self.progress.step
        self.division = division

    def _stops_within(self) -> bool:
        """Return whether to stop in mid-update: only a single process, as others would wait."""
        return self.processes.size == 1 and self.stop.requested

    def _changing(self) -> dict[str, Any]:
        """Return a copy of the model state that a forward pass may change: all but parameters."""
        if not self._changes:
            return {}
        state = self.model.state_dict()
        return {name: copy.deepcopy(state[name]) for name in self._changes}

    def _undo(self, random: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Discard a partial update, so that the repeated one is what it would have been."""
        self.optimiser.zero_grad()
        self.model.load_state_dict(state, strict=False)
        checkpoint.set_random_state(random, self.device)

    def _advance_schedule(self) -> None:
        """Advance to the next learning rate, even after an update that loss scaling skipped.

        The published code does so too; torch warns about it if the first update is skipped.
        """
        if self.progress.step > 1 or not self.scaler.is_enabled():
            self.schedule.step()
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.schedule.step()

    @property
    def steps_per_second(self) -> float:
        """Updates per second: the median over windows, or the mean before the first window."""
        return self.speed.steps_per_second or self.progress.per_second(self.progress.step)

    @property
    def tokens_per_second(self) -> float:
        """Real tokens per second, computed in the same way."""
        return self.speed.tokens_per_second or self.progress.per_second(self.progress.tokens)

    @property
    def peak_memory(self) -> int:
        """Largest use of memory in the run so far, in bytes; see `lra.memory.peak`."""
        return max(self._earlier_peak, memory.peak(self.device))

    @property
    def losses(self) -> NDArray[np.float32]:
        """Loss of every update so far, `(steps,)`; NaN if an earlier version kept none."""
        losses: NDArray[np.float32] = self._losses[: self.progress.step].numpy()
        return losses

    @property
    def num_skipped(self) -> int:
        """Number of updates that loss scaling skipped because a gradient was not finite."""
        applied = [int(state["step"]) for state in self.optimiser.state.values()]
        return self.progress.step - max(applied, default=0)

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
            # It is repeated from the start, with the random draws of an uninterrupted validation.
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
            self.best_model = {k: copy.deepcopy(v) for k, v in self.model.state_dict().items()}
        norms = {
            f"{GRADIENT_NORM}/{name}": parameter.grad.norm().float()
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }
        for name, value in measures.items():
            writer.add(name, value, progress.step)
        # Read all at once: each separate read would wait for the device.
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
        # Parameters that are not finite stay so: the last good checkpoint is worth more.
        self._check_parameters()
        self._saved_step, self._saves = self.progress.step, False
        self._saved_at = time.perf_counter()
        if not self.processes.writes:
            return
        state = {
            "identity": self.identity.hash,
            "config": self.identity.config,
            "code": [*self.earlier_code, self.identity.code],
            "machines": [*self.earlier_machines, described(self.device)],
            "peak_memory": self.peak_memory,
            "progress": asdict(self.progress),
            "speed": asdict(self.speed),
            "losses": self._losses[: self.progress.step].clone(),
            # It also depends on the memory that was available; it must not change within a run.
            "division": asdict(self.division),
            "first_division": asdict(self.first_division),
            "first_divided": self.first_divided,
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
        # A damaged checkpoint must not take the place of the good one before it.
        previous = None if self._last_is_damaged else self.folder / PREVIOUS
        checkpoint.save(self.folder / CHECKPOINT, state, previous)
        self._last_is_damaged = False

    def _resume(self) -> None:
        # All processes read what the first one finds, and have read it before it writes.
        self.processes.wait()
        self._load()
        self.processes.wait()
        if not self.processes.writes:
            # The saved generator states are those of the first process.
            stream = ("dropout", self.processes.rank, self.progress.step)
            torch.manual_seed(derive(self.seed, *stream))

    def _load(self) -> None:
        found = checkpoint.load_last(self.folder, self.device)
        if found is None:
            return
        file, state = found
        self._last_is_damaged = file.name != CHECKPOINT
        self.identity.check(file, state, self.train_config.steps)
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
            # Older checkpoints lack these, and the losses too.
            self.speed = Speed(**state.get("speed", {}))
            if "division" in state:
                asked, self.division = self.division, Division(**state["division"])
                # Older checkpoints do not say whether it has changed.
                self.first_division = Division(**state.get("first_division", state["division"]))
                self.first_divided = state.get("first_divided", 0)
                if not same:
                    self._divide(asked)
        except TypeError as error:
            raise DamagedError(f"{file}: written by a later version ({error})") from error
        self._saved_step = self.progress.step
        # Present only if a signal arrived before or during a validation.
        self._unvalidated = state.get("unvalidated", False)
        # Older checkpoints do not say where they were made.
        self.earlier_code = _before(state.get("code", []), self.identity.code)
        self.earlier_machines = _before(state.get("machines", []), described(self.device))
        self._earlier_peak = state.get("peak_memory", 0)
        if "losses" in state:
            self._losses[: self.progress.step] = state["losses"].cpu()
        log.info("%s continues at step %d", self.label, self.progress.step)
        if self.earlier_code:
            was = ", ".join(self.earlier_code)
            log.warning("%s was started by other code, %s; its record says so", self.label, was)


def _before(versions: list[str], now: str) -> list[str]:
    """Return the versions in order, without the last if it is the one now."""
    return versions[:-1] if versions[-1:] == [now] else versions
