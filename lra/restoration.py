"""Restore hidden tokens: the objective of self-pretraining, alongside `lra.classification`.

Following Amos, Berant and Gupta (arXiv 2310.02980, appendix C.1), a share of the tokens of the
task's own training inputs is hidden, each token independently, and the encoder predicts them. The
loss is the cross-entropy; for grey values, it may be the absolute error. An encoder that sees no
later tokens predicts the next token instead.
"""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lra.batches import Batch, Batches
from lra.build import Model
from lra.config import Config, PretrainConfig, TrainConfig
from lra.evaluation import answered, evaluating, evaluation_division
from lra.events import LOSS
from lra.hidden import NOTHING, HiddenBatches
from lra.precision import NotFiniteError, autocast
from lra.processes import Processes
from lra.seeds import derive
from models.restorer import Restorer, is_causal


@dataclass(frozen=True)
class Restoration:
    """The objective of pretraining; see `lra.objective`.

    Args:
        train: Batches to learn from.
        validation: Batches of the split on which the pretrained parameters are chosen.
        grey: Mean and standard deviation of grey values from 0 to 1, if the absolute error of
            normalised values is minimised; None for cross-entropy.
        asks: Which tokens are predicted: the `hidden` ones, or the `next` of each.
    """

    train: HiddenBatches
    validation: HiddenBatches
    grey: tuple[float, float] | None
    asks: str = "hidden"
    measure: str = LOSS
    shown: str = "validation"

    def loss(self, answers: Tensor, part: Batch) -> Tensor:
        """Return what a micro-batch contributes to the mean loss over its batch's predictions.

        Args:
            answers: `(B, N, outputs)` or `(B, S, N, outputs)`.
            part: The micro-batch.
        """
        assert part.whole is not None
        labels = part.labels
        if self.grey is None:
            flat = answers.flatten(0, -2)
            total = F.cross_entropy(flat, labels.flatten(), ignore_index=NOTHING, reduction="sum")
        else:
            mean, std = self.grey
            wanted = (labels / 255 - mean) / std
            errors = (answers.squeeze(-1) - wanted).abs()
            total = errors.masked_fill(labels == NOTHING, 0.0).sum()
        return total / part.whole

    @torch.inference_mode()
    def validate(
        self,
        model: nn.Module,
        train: TrainConfig,
        processes: Processes,
        stops: Callable[[], bool],
    ) -> dict[str, float]:
        """Return the mean loss over all predictions for the validation split.

        Raises:
            NotFiniteError: It is infinite or NaN.
            UnfinishedError: `stops` returned true.
        """
        device = next(model.parameters()).device
        division = evaluation_division(train, model, processes)
        groups = self.validation.groups(train.eval_batch_size, division)

        def loss(examples: NDArray[np.int64]) -> Tensor:
            part = self.validation.gather(examples)
            with autocast(device, train.precision):
                answers = model(part.tokens, part.mask)
            return self.loss(answers.float(), part).double()

        total = torch.zeros((), dtype=torch.float64, device=device)
        shares = answered(groups, loss, model, processes, stops)
        with evaluating(model), closing(shares):
            for _, share in shares:
                total += share
        mean = float(processes.total(total))
        if not math.isfinite(mean):
            raise NotFiniteError(f"the loss in validation is {mean}")
        return {LOSS: mean}

    def is_better(self, measured: float, best: float) -> bool:
        """Return whether a loss is below the best before it."""
        return measured < best


def restoration(
    config: Config, model: Model, train: Batches, validation: Batches
) -> tuple[Restorer, Restoration]:
    """Return the network that pretrains the encoder of a model in place, and its objective.

    Args:
        config: The cell.
        model: Its classifier, on its device.
        train: Batches to learn from.
        validation: Batches of the split on which the pretrained parameters are chosen.
    """
    pretrain, device = config.pretrain, next(model.parameters()).device
    torch.manual_seed(derive(config.seed, "restorer"))
    grey = None
    if pretrain.loss == "l1":
        grey = (config.model.value_mean, config.model.value_std)
    outputs = config.task.num_symbols if grey is None else 1
    restorer = Restorer(model.encoder, outputs, config.model.embedding_std).to(device)
    asks = "next" if is_causal(model.encoder) else "hidden"
    share = None if asks == "next" else pretrain.hidden_share
    hiding = derive(config.seed, "pretraining")
    shown, held_out = (HiddenBatches(each, share, hiding) for each in (train, validation))
    return restorer, Restoration(shown, held_out, grey, asks)


def optimisation(pretrain: PretrainConfig, train: TrainConfig) -> TrainConfig:
    """Return the settings of pretraining: those of training after it, except for its own values."""
    return replace(
        train,
        steps=pretrain.steps,
        batch_size=pretrain.batch_size,
        learning_rate=pretrain.learning_rate,
        warmup_steps=pretrain.warmup_steps,
        schedule="constant",
        weight_decay=pretrain.weight_decay,
        validate_every=pretrain.validate_every,
    )
