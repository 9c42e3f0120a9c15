"""A Trainer that attacks every batch: training on attacked images, evaluation on both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import EvalPrediction

from recipes.common.matched_trainer import MatchedTrainer

from .attacks import Logits, ThreatModel, frozen, pgd, total_cross_entropy

__all__ = ["OBJECTIVES", "AdversarialTrainer", "InnerAttack", "accuracies", "trades_loss"]

OBJECTIVES = ("pgd", "trades")
TRADES_START = 1e-3  # standard deviation of the first images' noise
TEST_SEED = 20060  # of the evaluation's random starts: every model meets the same


@dataclass(frozen=True)
class InnerAttack:
    """The maximisation within the training.

    Args:
        threat: what the attacker may do.
        steps: number of steps in training.
        test_steps: number of steps in evaluation.
        step_size: length of a training step in the threat's norm. Default: None, 2.5 radii over
            the number of steps; evaluation always has that of its own steps.
        objective: "pgd" trains on the attacked images' cross-entropy (Madry et al.); "trades" adds
            `trades_beta` times the divergence of both predictions to the clean one's.
        trades_beta: weight of the divergence. Default: 6.

    Raises:
        ValueError: a setting is out of its range.
    """

    threat: ThreatModel
    steps: int
    test_steps: int
    step_size: float | None = None
    objective: str = "pgd"
    trades_beta: float = 6.0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"objective={self.objective!r} is unknown; known: {', '.join(OBJECTIVES)}."
            )
        for name in ("steps", "test_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size={self.step_size} must be above 0, or None.")

    def length(self, steps: int) -> float:
        """Return the usual length of a step, by which an attacker can cross the ball."""
        return 2.5 * self.threat.radius / steps

    def against_labels(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return images that raise the cross-entropy, from a random start."""
        classify = Logits(model)
        return pgd(
            lambda shown: total_cross_entropy(classify(shown), labels),
            images,
            self.threat,
            steps=self.steps,
            step_size=self.step_size or self.length(self.steps),
            start=self.threat.random(images),
        )

    def against_prediction(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return images whose prediction is far from their own; TRADES asks no label."""
        classify = Logits(model)
        with torch.no_grad():
            wanted = classify(images).softmax(-1)
        noise = TRADES_START * torch.randn_like(images)
        return pgd(
            lambda shown: divergence(wanted, classify(shown)).sum(),
            images,
            self.threat,
            steps=self.steps,
            step_size=self.step_size or self.length(self.steps),
            start=self.threat.project(images, images + noise),
        )

    def in_evaluation(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the evaluation's attacked images; the generator makes them repeatable."""
        classify = Logits(model)
        return pgd(
            lambda shown: total_cross_entropy(classify(shown), labels),
            images,
            self.threat,
            steps=self.test_steps,
            step_size=self.length(self.test_steps),
            start=self.threat.random(images, generator),
        )


def divergence(wanted: Tensor, logits: Tensor) -> Tensor:
    """Return KL(wanted ‖ softmax(logits)) of each image, (N,)."""
    return functional.kl_div(logits.log_softmax(-1), wanted, reduction="none").sum(-1)


def trades_loss(clean: Tensor, attacked: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Return the loss of TRADES from the logits of clean and attacked images, (N, classes).

    Source: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy",
    ICML 2019, equation 5; `beta` is its 1/λ, and the surrogate is the divergence.
    """
    apart = divergence(clean.softmax(-1), attacked).mean()
    return functional.cross_entropy(clean, labels) + beta * apart


class AdversarialTrainer(MatchedTrainer):
    """Trainer whose batches are attacked, in evaluation mode, before the loss is taken.

    Args:
        attack: the inner maximisation.
        kwargs: of `MatchedTrainer`.
    """

    def __init__(self, *args: Any, attack: InnerAttack, **kwargs: Any) -> None:
        super().__init__(*args, compute_metrics=accuracies, **kwargs)
        self.attack = attack
        self._noise = torch.Generator()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss on a batch attacked for it."""
        images, labels = inputs["pixel_values"], inputs["labels"]
        # Past DistributedDataParallel: the attack's passes are no part of its step.
        bare = self.accelerator.unwrap_model(model)
        with frozen(bare):
            if self.attack.objective == "pgd":
                attacked = self.attack.against_labels(bare, images, labels)
            else:
                attacked = self.attack.against_prediction(bare, images)
        logits = model(pixel_values=attacked)["logits"]
        if self.attack.objective == "pgd":
            loss = functional.cross_entropy(logits, labels)
        else:
            clean = model(pixel_values=images)["logits"]
            loss = trades_loss(clean, logits, labels, self.attack.trades_beta)
        return (loss, {"logits": logits}) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate with the same random starts each time, none of them the training's."""
        self._noise.manual_seed(TEST_SEED + self.args.process_index)
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Any, Any]:
        """Return the attacked images' loss, both sorts of logits, and the labels."""
        inputs = self._prepare_inputs(inputs)
        images, labels = inputs["pixel_values"], inputs["labels"]
        bare = self.accelerator.unwrap_model(model)
        with self.compute_loss_context_manager(), frozen(bare):
            attacked = self.attack.in_evaluation(bare, images, labels, self._noise)
            with torch.no_grad():
                classify = Logits(bare)
                logits = (classify(images), classify(attacked))
        loss = functional.cross_entropy(logits[1], labels)
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)


def accuracies(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share classified rightly of clean and of attacked images."""
    return {
        name: float((logits.argmax(-1) == prediction.label_ids).mean())
        for name, logits in zip(
            ("clean_accuracy", "attacked_accuracy"), prediction.predictions, strict=True
        )
    }
