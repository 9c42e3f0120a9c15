"""The schedule that AdamP replaces: Adam for the first epochs, then SGD with falling rates.

Won, Chun, Nieto and Serra, "Data-Driven Harmonic Filters", ICASSP 2020, section 4; numbers from
https://github.com/minzwon/data-driven-harmonic-filters, training/solver.py: of 200 epochs 60 with
Adam at 1e-4, 20 with SGD at 1e-3, 20 at 1e-4 and the rest at 1e-5, weight decay 1e-4 throughout.
The repository means to go back to the best weights at each change but does not; nor does this.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["AdamThenSGD", "published_schedule"]

# Share of the training after which a phase ends, and its rate relative to Adam's.
PHASES = ((60 / 200, 1.0), (80 / 200, 10.0), (100 / 200, 1.0), (1.0, 0.1))


class AdamThenSGD(Optimizer):
    """Adam for a number of steps, then SGD with Nesterov momentum, over the same parameters.

    Both see the same groups, so a scheduler and a checkpoint know one optimizer. At the change the
    moments are forgotten. Weight decay is added to the gradient, in either phase.

    Args:
        params: parameters or groups.
        lr: learning rate; a scheduler may change it at any step.
        adam_steps: steps before SGD takes over, from 0 up.
        weight_decay: coefficient, from 0 up. Default: 0.
        momentum: of SGD, in (0, 1). Default: 0.9.

    Raises:
        ValueError: `adam_steps` is negative, or what Adam and SGD refuse.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        adam_steps: int,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
    ) -> None:
        if adam_steps < 0:
            raise ValueError(f"adam_steps={adam_steps} must be 0 or more.")
        super().__init__(
            params, {"lr": lr, "weight_decay": weight_decay, "steps": 0, "adam_steps": adam_steps}
        )
        # They add their own defaults to our groups, which they share.
        self._adam = Adam(self.param_groups, lr=lr, weight_decay=weight_decay)
        self._sgd = SGD(
            self.param_groups, lr=lr, momentum=momentum, nesterov=True, weight_decay=weight_decay
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with the optimizer whose turn it is."""
        first = self.param_groups[0]
        if first["steps"] == first["adam_steps"]:
            self.state.clear()
        inner = self._adam if first["steps"] < first["adam_steps"] else self._sgd
        # Loading a checkpoint replaces both.
        inner.param_groups, inner.state = self.param_groups, self.state
        for group in self.param_groups:
            group["steps"] += 1
        return inner.step(closure)


def published_schedule(
    model: nn.Module, *, lr: float, weight_decay: float, total_steps: int
) -> tuple[AdamThenSGD, LambdaLR]:
    """Return optimizer and scheduler for `Trainer(optimizers=...)`, the phases scaled to the run.

    Args:
        model: its parameters are trained, all with weight decay, as published.
        lr: Adam's rate; SGD's are 10, 1 and 0.1 times it.
        weight_decay: of both.
        total_steps: of the run.
    """
    ends = [round(share * total_steps) for share, _ in PHASES]

    def rate(step: int) -> float:
        return next((r for end, (_, r) in zip(ends, PHASES, strict=True) if step < end), 0.0)

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamThenSGD(trained, lr, ends[0], weight_decay)
    return optimizer, LambdaLR(optimizer, rate)
