"""A Trainer for embeddings: Recall@K by embeddings alone, and the published steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, Sampler
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState

from recipes.common.batches import NoBatchOfOne
from recipes.common.matched_trainer import MatchedArguments, MatchedTrainer

from .batches import ClassSampler, RetrievalSet
from .modeling_embedder import PROXIES
from .recall import recall_at

__all__ = ["PublishedSteps", "RetrievalArguments", "RetrievalTrainer"]


@dataclass
class RetrievalArguments(MatchedArguments):
    """Arguments of a `Trainer`, with what is particular to metric learning.

    Raises:
        ValueError: a number is out of its range, or gradients in fp16 are to be clipped by value.
    """

    proxy_lr_scale: float = field(
        default=100.0, metadata={"help": "Rate of the proxies, in those of the network."}
    )
    warm_epochs: int = field(
        default=0, metadata={"help": "First epochs, in which the backbone stands still."}
    )
    clip_value: float = field(
        default=0.0, metadata={"help": "Largest absolute entry of a gradient; 0 clips none."}
    )
    per_class: int = field(
        default=0, metadata={"help": "Images of each class in a batch; 0 draws all alike."}
    )
    recall_at: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8], metadata={"help": "Numbers of neighbours."}
    )

    def __post_init__(self) -> None:
        """Check what is added."""
        super().__post_init__()
        if not self.proxy_lr_scale > 0:
            raise ValueError(f"proxy_lr_scale={self.proxy_lr_scale} must be above 0.")
        for name in ("warm_epochs", "clip_value", "per_class"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more.")
        if self.fp16 and self.clip_value:
            raise ValueError(
                f"clip_value={self.clip_value} would meet the scaled gradients of fp16; use bf16, "
                "or clip_value=0 with max_grad_norm."
            )


class PublishedSteps(TrainerCallback):
    """Before each step: the backbone's gradients away in the first epochs, the others clipped.

    Optimizers pass over a weight whose gradient is None: it does not decay, and has no moments yet.
    """

    def on_pre_optimizer_step(
        self,
        args: RetrievalArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Change the gradients of the step that is about to be taken."""
        assert model is not None
        if (state.epoch or 0) < args.warm_epochs:
            for name, parameter in model.named_parameters():
                if name.removeprefix("module.").startswith("backbone."):
                    parameter.grad = None
        if args.clip_value:
            nn.utils.clip_grad_value_(model.parameters(), args.clip_value)


class RetrievalTrainer(NoBatchOfOne, MatchedTrainer):
    """Trainer whose evaluation is Recall@K, and whose proxies have a rate of their own.

    Args:
        kwargs: of `MatchedTrainer`; datasets are `RetrievalSet`.
    """

    def __init__(
        self,
        model: nn.Module,
        args: RetrievalArguments,
        *,
        callbacks: Sequence[Any] = (),
        **kw: Any,
    ) -> None:
        # Roles are no argument of the model.
        args.remove_unused_columns = False
        super().__init__(
            model,
            args,
            callbacks=[PublishedSteps(), *callbacks],
            compute_metrics=self._recall,
            **kw,
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Set up the optimizer, the proxies in a group of their own."""
        made_here = self.optimizer is None
        optimizer: Optimizer = super().create_optimizer(*args, **kwargs)
        proxies = dict(self.model.named_parameters()).get(PROXIES)
        if made_here and proxies is not None:
            separate(optimizer, proxies, self.args.learning_rate * self.args.proxy_lr_scale)
        return optimizer

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        if not self.args.per_class:
            sampler: Sampler[int] | None = super()._get_train_sampler()
            return sampler
        dataset = self.train_dataset
        assert isinstance(dataset, RetrievalSet)
        labels = [item.label for item in dataset.items]
        # Several processes are dealt whole batches.
        seed = self.args.data_seed or self.args.seed
        return ClassSampler(labels, self.args.per_class, self.args.train_batch_size, seed)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Tensor, Tensor]:
        """Return embeddings, and labels beside roles; the loss knows no class of the test."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            embeddings = model(pixel_values=inputs["pixel_values"])["embeddings"]
        return None, embeddings, torch.stack([inputs["labels"], inputs["roles"]], dim=-1)

    def _recall(self, prediction: EvalPrediction) -> Mapping[str, float]:
        embeddings, about = (
            torch.as_tensor(array, device=self.args.device)
            for array in (prediction.predictions, prediction.label_ids)
        )
        found = recall_at(self.args.recall_at, embeddings, *about.unbind(-1))
        return {f"recall_at_{k}": share for k, share in found.items()}


def separate(optimizer: Optimizer, parameter: nn.Parameter, lr: float) -> None:
    """Move a parameter to a param group of its own that differs in the rate only."""
    for group in list(optimizer.param_groups):
        kept = [other for other in group["params"] if other is not parameter]
        if len(kept) < len(group["params"]):
            group["params"] = kept
            optimizer.add_param_group({**group, "params": [parameter], "lr": lr})
            return
    raise ValueError("the optimizer does not have the parameter.")
