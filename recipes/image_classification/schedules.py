"""Learning rates by epoch that Transformers has no name for: steps, with a warm-up before them."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["scaled_rate", "step_schedule"]


def step_schedule(
    optimizer: Optimizer,
    *,
    steps_per_epoch: float,
    epochs: float,
    factor: float,
    warmup_steps: int = 0,
) -> LambdaLR:
    """Multiply the learning rate by `factor` every so many epochs, counted from the first step.

    Args:
        optimizer: whose rates are changed.
        steps_per_epoch: optimizer steps.
        epochs: between two changes; need not be whole, as in EfficientNet's 2.4.
        factor: 0.1 for ResNets, 0.97 for EfficientNets.
        warmup_steps: of a linear rise from 0 first. Default: 0.

    Raises:
        ValueError: `epochs` or `factor` is not positive.
    """
    if epochs <= 0 or factor <= 0:
        raise ValueError(f"step_epochs={epochs} and step_factor={factor} must be positive.")

    def share(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        # A rounding error must not put a change off by a step.
        return float(factor ** int((step + 1e-6) / (steps_per_epoch * epochs)))

    return LambdaLR(optimizer, share)


def scaled_rate(lr: float, *, batch: int, base_batch: int, rule: str) -> float:
    """Return the learning rate for a batch of another size.

    Args:
        lr: the rate that suits `base_batch`.
        batch: images in an optimizer step, over all processes and accumulated passes.
        base_batch: images in the step that `lr` is for.
        rule: "none"; "linear", usual for SGD (Goyal et al., 2017); "sqrt", usual for Adam, whose
            steps do not grow with the gradient (Malladi et al., 2022).

    Raises:
        ValueError: the rule is unknown.
    """
    exponents = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}
    if rule not in exponents:
        raise ValueError(f"lr_scaling={rule!r} is unknown; known rules: {', '.join(exponents)}.")
    return float(lr * (batch / base_batch) ** exponents[rule])
