"""A Trainer for image classifiers: matched arms, mixed labels, step schedules, averaged weights."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import EvalPrediction

from recipes.common.batches import NoBatchOfOne
from recipes.common.matched_trainer import MatchedTrainer

from .averaging import WeightAverage
from .schedules import step_schedule

__all__ = ["ImageTrainer", "best_five", "top_accuracies"]


class ImageTrainer(NoBatchOfOne, MatchedTrainer):
    """Trainer with what ImageNet recipes need beside Transformers' own.

    Args:
        label_smoothing: of the training loss; evaluation has none.
        step_epochs: epochs between two steps of the learning rate; None keeps `lr_scheduler_type`.
        step_factor: what each step multiplies the rate by.
        average: evaluated in place of the weights, where there is one.
        kwargs: of `Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        label_smoothing: float = 0.0,
        step_epochs: float | None = None,
        step_factor: float = 0.1,
        average: WeightAverage | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, compute_loss_func=self._loss, **kwargs)
        self._smoothing = label_smoothing
        self._step_epochs = step_epochs
        self._step_factor = step_factor
        self._average = average
        if average is not None:
            self.add_callback(average)

    def _loss(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Cross-entropy with labels (batch,) or, mixed, shares (batch, num_labels)."""
        smoothing = self._smoothing if self.model.training else 0.0
        losses = functional.cross_entropy(
            outputs["logits"].float(), labels, reduction="none", label_smoothing=smoothing
        )
        if num_items_in_batch is None:
            return losses.mean()
        # Images of the whole step, accumulated passes included. Trainer counts a mixed label's
        # shares one by one.
        return losses.sum() / (num_items_in_batch / labels[0].numel())

    def create_scheduler(
        self, num_training_steps: int, optimizer: Optimizer | None = None
    ) -> LRScheduler:
        """Make the step schedule where there is one."""
        if self._step_epochs is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = step_schedule(
            self.optimizer if optimizer is None else optimizer,
            steps_per_epoch=num_training_steps / self.args.num_train_epochs,
            epochs=self._step_epochs,
            factor=self._step_factor,
            warmup_steps=self.args.get_warmup_steps(num_training_steps),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the averaged weights, where there are any."""
        if self._average is None or self._average.average is None:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        with self._average.applied_to(self.accelerator.unwrap_model(self.model)):
            return super().evaluation_loop(dataloader, *args, **kwargs)


def best_five(logits: Any, labels: Tensor) -> Tensor:
    """Keep the five likeliest classes (batch, 5) of the logits, the likeliest first."""
    scores = logits[0] if isinstance(logits, tuple) else logits
    best: Tensor = torch.topk(scores, min(5, scores.shape[-1]), dim=-1).indices
    return best


def top_accuracies(prediction: EvalPrediction) -> dict[str, float]:
    """Return the shares of images whose label is the likeliest class, and one of the first five."""
    right = prediction.predictions == prediction.label_ids[:, None]
    return {"accuracy": float(right[:, 0].mean()), "accuracy_top5": float(right.any(1).mean())}
