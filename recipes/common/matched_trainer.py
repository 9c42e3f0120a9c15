"""A `Trainer` whose optimizers can be compared: the arms of `recipes.common.arms` by `--optim`.

    trainer = MatchedTrainer(model, args, train_dataset=data)

with `--optim sgd | sgdp | adamw_torch | adamp` in the arguments, or `--adam_l2 true`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from transformers import Trainer, TrainingArguments

import hf_adamp
from hf_adamp.param_groups import decay_parameter_names

__all__ = ["MatchedArguments", "MatchedTrainer"]

# For scripts that are started without `-m hf_adamp`, and for worker processes.
hf_adamp.register()


@dataclass
class MatchedArguments(TrainingArguments):
    """Arguments of a `Trainer`, with an arm and a schedule that it does not know.

    Raises:
        ValueError: `decay_factor` is not above 0.
    """

    adam_l2: bool = field(
        default=False,
        metadata={"help": "Adam with the weight decay in the gradient, in place of --optim."},
    )
    decay_epochs: list[float] = field(
        default_factory=list,
        metadata={"help": "When the rate falls, in place of --lr_scheduler_type's schedule."},
    )
    decay_factor: float = field(
        default=0.1, metadata={"help": "What the rate is multiplied by each time."}
    )

    def __post_init__(self) -> None:
        """Check what is added."""
        super().__post_init__()
        if not self.decay_factor > 0:
            raise ValueError(f"decay_factor={self.decay_factor} must be above 0, such as 0.1.")

    @property
    def arm(self) -> str:
        """The arm's name, a key of `recipes.common.arms.ARMS` where it is one of these."""
        return "adam_l2" if self.adam_l2 else str(getattr(self.optim, "value", self.optim))


class MatchedTrainer(Trainer):
    """Trainer that decays the same weights with every optimizer, and gives SGD its momentum.

    AdamP and SGDP choose by `hf_adamp.get_param_groups`, Transformers' own optimizers by another
    rule, which decays some normalizations' gains. Here all follow the first. `--optim sgd` reads
    `momentum` and `nesterov` from `--optim_args`, as `--optim sgdp` does; releases of Transformers
    before 5 would ignore them. `MatchedArguments` add Adam with L2, and a rate that falls by steps.
    """

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the weights that decay."""
        return decay_parameter_names(model)

    @staticmethod
    def get_optimizer_cls_and_kwargs(
        args: TrainingArguments, model: nn.Module | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return class and arguments of the optimizer that `--optim` names."""
        if getattr(args, "adam_l2", False):
            betas = (args.adam_beta1, args.adam_beta2)
            adam = {"lr": args.learning_rate, "betas": betas, "eps": args.adam_epsilon}
            return torch.optim.Adam, adam
        if str(getattr(args.optim, "value", args.optim)) != "sgd":
            return Trainer.get_optimizer_cls_and_kwargs(args, model)
        kwargs: dict[str, Any] = {"lr": args.learning_rate}
        for pair in filter(None, (args.optim_args or "").replace(" ", "").split(",")):
            name, _, value = pair.partition("=")
            if name in ("momentum", "dampening"):
                kwargs[name] = float(value)
            elif name == "nesterov" and value.lower() in ("true", "false"):
                kwargs[name] = value.lower() == "true"
            else:
                raise ValueError(
                    f"--optim_args has {pair!r}; --optim sgd knows momentum=NUMBER, "
                    "dampening=NUMBER and nesterov=true or false."
                )
        return torch.optim.SGD, kwargs

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """Make the schedule, once."""
        epochs = getattr(self.args, "decay_epochs", [])
        if epochs and self.lr_scheduler is None:
            per_epoch = num_training_steps / self.args.num_train_epochs
            self.lr_scheduler = MultiStepLR(
                self.optimizer if optimizer is None else optimizer,
                milestones=[round(epoch * per_epoch) for epoch in epochs],
                gamma=self.args.decay_factor,
            )
        return super().create_scheduler(num_training_steps, optimizer)
