"""One cell in several processes, as `torchrun --nproc_per_node=2 -m lra.train ...` starts them.

Every process holds the whole model and computes a share of each batch. Gradients are added up over
the processes before the update, so that the update is, up to rounding, that of the whole batch, and
all processes keep the same parameters. Only the first process writes.

`DistributedDataParallel` is not used: it averages the means of equal shares during the backward
pass, whereas here the micro-batches of each share have their own number and length, and a parameter
that no example of a share uses keeps no gradient.
"""

import logging
import multiprocessing
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lra.config import ConfigError
from lra.signals import StoppedError

log = logging.getLogger(__name__)

# How long one process waits for the others, which may be building data or saving.
PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class Processes:
    """The processes that train a cell together.

    Args:
        rank: Number of this process; process 0 writes.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes checkpoints, records and curves."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def total(self, counts: Tensor) -> Tensor:
        """Return the sum of counts over the processes."""
        if self.size > 1:
            dist.all_reduce(counts)
        return counts

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether a flag is set in any process; every process has to call this."""
        if self.size == 1:
            return flag
        return bool(self.total(torch.tensor(int(flag), device=device)).item())

    def add_up(
        self, parameters: Iterable[nn.Parameter], loss: Tensor, stop: bool, save: bool
    ) -> tuple[bool, bool]:
        """Replace gradients and loss by their sums over the processes.

        Args:
            parameters: Those of the model, in the same order everywhere.
            loss: A scalar, which is changed in place.
            stop: Whether this process is asked to stop.
            save: Whether it is time to save, by the clock of this process.

        Returns:
            Whether any process is asked to stop, and whether it is time to save for any.
        """
        if self.size == 1:
            return stop, save
        trained = [each for each in parameters if each.requires_grad]
        there = loss.new_tensor([each.grad is not None for each in trained] + [stop, save])
        # One message for everything, as each message costs a round of communication.
        flat = torch.cat(
            [
                loss.reshape(1).float(),
                there.float(),
                *(
                    (torch.zeros_like(each) if each.grad is None else each.grad).flatten()
                    for each in trained
                ),
            ]
        )
        dist.all_reduce(flat)
        loss.copy_(flat[0])
        used = flat[1 : 3 + len(trained)].tolist()
        start = 3 + len(trained)
        for each, count in zip(trained, used, strict=False):
            # A parameter that no process has used keeps no gradient, and gets no weight decay.
            if count:
                each.grad = flat[start : start + each.numel()].view_as(each).clone()
            start += each.numel()
        return bool(used[-2]), bool(used[-1])


ALONE = Processes()


def asked_for() -> int:
    """Return how many processes torchrun has started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device(name: str) -> str:
    """Return the device of this process: its own GPU, if several processes share the machine.

    These are the processes of torchrun, or the workers of a sweep that runs cells side by side. A
    worker keeps its GPU for all of its cells; one that replaces it may share another's.

    Args:
        name: The key `device`.

    Raises:
        ConfigError: Processes of torchrun would have to share a GPU.
    """
    worker = re.fullmatch(r"LokyProcess-(\d+)", multiprocessing.current_process().name)
    alone, is_numbered = asked_for() == 1, name.startswith("cuda:")
    if not (name in ("auto", "cuda") or is_numbered) or (alone and worker is None):
        return name
    if not torch.cuda.is_available():
        return name
    gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not alone and here > 1 and (here > gpus or is_numbered):
        raise ConfigError(
            f"device={name}: each of the {here} processes that torchrun starts here needs a GPU of"
            f" its own, which device=auto gives it, and there are {gpus}"
        )
    if is_numbered or (alone and gpus == 1):
        return name
    number = int(worker[1]) - 1 if alone and worker else int(os.environ["LOCAL_RANK"])
    return f"cuda:{number % gpus}"


@contextmanager
def joined(device: torch.device, batch_size: int) -> Iterator[Processes]:
    """Join the processes that torchrun has started; without torchrun, there is only this one.

    Args:
        device: Where this process computes.
        batch_size: Examples per batch, at least one per process.

    On GPUs, an error ends this process: to leave the group, NCCL would wait for the others, which
    wait for this one. torchrun then ends them. What the caller would do after an error is not done.

    Raises:
        ConfigError: There are more processes than examples in a batch.
    """
    if (size := asked_for()) == 1:
        yield ALONE
        return
    if batch_size < size:
        raise ConfigError(
            f"train.batch_size={batch_size}: must be at least {size}, the number of processes"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    before = logging.root.manager.disable
    if dist.get_rank():
        # What all processes do alike is logged once.
        logging.disable(logging.INFO)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    except StoppedError:
        # All processes stop after the same update.
        raise
    except BaseException as error:
        if device.type == "cuda":
            _end(error)
        raise
    finally:
        logging.disable(before)
        dist.destroy_process_group()


def _end(error: BaseException) -> NoReturn:
    """End this process at once, and say why."""
    if isinstance(error, ConfigError):
        log.error("%s", error)
    else:
        log.error("this process failed", exc_info=error)
    logging.shutdown()
    os._exit(2 if isinstance(error, ConfigError) else 1)
