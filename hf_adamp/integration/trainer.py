"""AdamP and SGDP for a ``Trainer``: the subclass and the mixin."""

import copy
from contextlib import suppress
from typing import Any

from torch.optim import Optimizer
from transformers import Trainer
from transformers.utils import logging

from hf_adamp.integration.options import OPTIMIZER_NAMES
from hf_adamp.integration.registration import optimizer_name, register

__all__ = ["AdamPMixin", "AdamPTrainer"]

# Where this fails, `AdamPMixin` repeats it and raises.
with suppress(RuntimeError):
    register()

# A child of Transformers' own logger: it has the handlers and follows the user's verbosity.
logger = logging.get_logger("transformers.hf_adamp")

_DEFAULT_NAMES = ("adamw_torch", "adamw_torch_fused")


class AdamPMixin:
    """Makes AdamP the default optimizer of the ``Trainer`` class to its right.

    If ``args.optim`` is ``adamp`` or ``sgdp``, it is used. Any other value, also the default,
    becomes ``adamp`` in the trainer's own copy of the arguments, so that its logs and model card
    name the optimizer that was used. Optimizers passed to the constructor (``optimizers``,
    ``optimizer_cls_and_kwargs``) take precedence, as in ``Trainer``.

    Example:
        >>> class Seq2SeqAdamPTrainer(AdamPMixin, Seq2SeqTrainer):
        ...     pass
    """

    def create_optimizer(self: Any, *args: Any, **kwargs: Any) -> Optimizer:
        """Set up the optimizer; arguments and result are those of the class to the right."""
        given = self.optimizer is not None or self.optimizer_cls_and_kwargs is not None
        name = getattr(self.args.optim, "value", self.args.optim)
        if not given and name not in OPTIMIZER_NAMES:
            if name not in _DEFAULT_NAMES:
                logger.warning(
                    f"{type(self).__name__} trains with adamp instead of optim={name}; "
                    "use Trainer for that, or optim=sgdp for SGDP."
                )
            self.args = copy.copy(self.args)
            self.args.optim = optimizer_name("adamp")
        optimizer: Optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        return optimizer


class AdamPTrainer(AdamPMixin, Trainer):
    """A ``Trainer`` that trains with AdamP, or SGDP if ``args.optim`` is ``sgdp``.

    It differs from ``Trainer`` only in this default. Learning rate, betas, eps and weight decay
    come from ``TrainingArguments``; delta, wd_ratio and the rest come from ``optim_args``. For
    another trainer class, put `AdamPMixin` before it.

    Args:
        The same as those of ``transformers.Trainer``.

    Raises:
        ValueError: When training starts, if ``optim_args`` is wrong.

    Example:
        >>> args = TrainingArguments("out", weight_decay=0.01, optim_args="delta=0.05")
        >>> trainer = AdamPTrainer(model, args, train_dataset=dataset)
        >>> trainer.train()
    """
