"""A `Trainer` whose optimizers can be compared: the arms of `recipes.common.arms` by `--optim`.

    trainer = MatchedTrainer(model, args, train_dataset=data)

with `--optim sgd | sgdp | adamw_torch | adamp` in the arguments.
"""

from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import hf_adamp
from hf_adamp.param_groups import decay_parameter_names

__all__ = ["MatchedTrainer"]

# For scripts that are started without `-m hf_adamp`, and for worker processes.
hf_adamp.register()


class MatchedTrainer(Trainer):
    """Trainer that decays the same weights with every optimizer, and gives SGD its momentum.

    AdamP and SGDP choose by `hf_adamp.get_param_groups`, Transformers' own optimizers by another
    rule, which decays some normalizations' gains. Here all follow the first. `--optim sgd` reads
    `momentum` and `nesterov` from `--optim_args`, as `--optim sgdp` does; releases of Transformers
    before 5 would ignore them.
    """

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the weights that decay."""
        return decay_parameter_names(model)

    @staticmethod
    def get_optimizer_cls_and_kwargs(
        args: TrainingArguments, model: nn.Module | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return class and arguments of the optimizer that `--optim` names."""
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
