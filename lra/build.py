"""From a configuration to its parts: task, backend, model, device, batches."""

import inspect
from functools import partial

import torch
from torch import nn

from lra import custom
from lra.batches import Batches
from lra.config import AttentionConfig, Config, ConfigError, TaskConfig, backend_name, bind
from lra.seeds import derive
from lra.tasks import Split, Task
from lra.tasks.registry import STAND_INS, TASKS
from models import ATTENTION
from models.encoder import Attention, Classifier, PairClassifier
from models.encoder import BackendError as BackendError

Model = Classifier | PairClassifier
# Levels of the built-in tasks' grey values.
GREY_LEVELS = 256


def build_task(config: Config) -> Task:
    """Return the task with its options checked.

    Raises:
        ConfigError: There is no such task or option, or a value is out of range.
    """
    kind = find_task(config.task)
    options = bind(kind, config.task.options, "task.options")
    try:
        task = kind(**options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.task.path is not None:
        custom.check_facts(task, f"task.path={config.task.path}")
    _check_grey(config, task)
    return task


def _check_grey(config: Config, task: Task) -> None:
    """Refuse to read the ids of a task as grey values if they are not.

    Grey values are not shifted, and a task of the user's own may have fewer levels.

    Raises:
        ConfigError: The ids stand for something else.
    """
    is_own, levels = config.task.path is not None, config.task.num_symbols
    if task.id_shift == 0 and (is_own or levels == GREY_LEVELS):
        return
    if config.model.inputs == "values":
        raise ConfigError(
            f"model.inputs=values: {config.task.name} has symbols, not grey values; use"
            " model.inputs=tokens"
        )
    if config.pretrain.loss == "l1":
        raise ConfigError(
            f"pretrain.loss=l1: {config.task.name} has symbols, not grey values; use"
            " pretrain.loss=cross_entropy"
        )


def find_task(config: TaskConfig) -> type[Task]:
    """Return the class of a task, from the registry by name or from the user's code by path.

    Raises:
        ConfigError: There is no such task, or the class cannot be a task.
    """
    tasks, name = STAND_INS if config.stand_in else TASKS, config.name
    if name in tasks:
        if config.path is not None:
            raise ConfigError(
                f"task.path={config.path}: {name} is built in and has no path; for a task of your"
                " own use task=custom"
            )
        return tasks[name]
    if config.path is None and name != "custom":
        kind = "stand-in for" if config.stand_in else "task"
        raise ConfigError(
            f"task.name={name}: no such {kind}; choose one of {', '.join(tasks)}, or task=custom"
            f" with task.path={custom.TASK_EXAMPLE}"
        )
    task = custom.load_task(config.path)
    if name != (own := backend_name(config.path)):
        raise ConfigError(f"task.name={name}: for task.path={config.path} it must be {own}")
    return task


def find_backend(config: AttentionConfig, where: str = "attention") -> type[nn.Module]:
    """Return the class of a backend, from the registry by name or from the user's code by path.

    Raises:
        ConfigError: There is no such backend, or the class cannot be a backend.
    """
    if config.name in ATTENTION:
        if config.path is not None:
            raise ConfigError(
                f"{where}.path={config.path}: {config.name} is built in and has no path; for a"
                f" backend of your own use {_group(where)}=custom"
            )
        return ATTENTION[config.name]
    if config.path is None and config.name != "custom":
        raise ConfigError(
            f"{where}.name={config.name}: no such backend; choose one of {', '.join(ATTENTION)}, or"
            f" {_group(where)}=custom with {where}.path={custom.EXAMPLE}"
        )
    backend = custom.load(config.path, f"{where}.path")
    if config.name != (name := backend_name(config.path)):
        raise ConfigError(
            f"{where}.name={config.name}: for {where}.path={config.path} it must be {name}"
        )
    return backend


def _group(where: str) -> str:
    """Return Hydra's name for the group of backends at a key such as `attention.inner`."""
    return where if where == "attention" else f"attention@{where}"


def build_attention(config: AttentionConfig, where: str = "attention") -> Attention:
    """Return a callable that builds a backend from its shape, with the options checked.

    Raises:
        ConfigError: There is no such backend or option.
    """
    backend = find_backend(config, where)
    options = bind(backend, config.options, f"{where}.options")
    nests = "inner" in inspect.signature(backend).parameters
    if nests != (config.inner is not None):
        inside = f"{_group(f'{where}.inner')}=softmax"
        state = f"needs a backend: +{inside}" if nests else "takes no inner backend"
        raise ConfigError(f"{where}.inner: {config.name} {state}")
    if config.inner is not None:
        options["inner"] = build_attention(config.inner, f"{where}.inner")
    return partial(backend, **options)


def build_model(config: Config) -> Model:
    """Return the classifier of a cell, its parameters drawn from the seed.

    Raises:
        ConfigError: The backend rejects its options, or lacks `pad_invariant`.
    """
    attention = build_attention(config.attention)
    torch.manual_seed(derive(config.seed, "parameters"))
    classifier = PairClassifier if config.task.sequences == 2 else Classifier
    try:
        return classifier(config.model, attention, config.task.num_classes)
    except ValueError as error:
        raise ConfigError(f"attention {config.attention.name}: {error}") from error
    except SystemExit as error:
        raise ConfigError(f"attention {config.attention.name}: its __init__ calls exit") from error


def batches_for(config: Config, task: Task, model: Model, split: Split) -> Batches:
    """Return the batches of a split as a cell reads them."""
    device = next(model.parameters()).device
    return batches_of(config, task, split, trim=model.encoder.pad_invariant, device=device)


def batches_of(
    config: Config, task: Task, split: Split, *, trim: bool, device: torch.device
) -> Batches:
    """Return the batches of a split as a cell reads them, trimmed or not, on a device."""
    return Batches(
        split,
        padded_length=config.model.max_length,
        truncate=config.task.truncate,
        id_shift=task.id_shift,
        zero_is_padding=config.model.zero_is_padding,
        trim=trim,
        device=device,
    )


def num_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
