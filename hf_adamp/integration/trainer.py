"""AdamP and SGDP for a ``Trainer``: the subclass, the mixin and the ``create_optimizer`` hook."""

import copy
import inspect
from contextlib import suppress
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainingArguments
from transformers.utils import logging

from hf_adamp.integration.options import OPTIMIZER_NAMES, OPTIONS, Options, read_options
from hf_adamp.integration.registration import optimizer_name, register
from hf_adamp.optim.adamp import AdamP
from hf_adamp.optim.sgdp import SGDP
from hf_adamp.param_groups import decay_parameter_names, get_param_groups

__all__ = ["AdamPMixin", "AdamPTrainer", "create_optimizer", "optimizer_cls_and_kwargs"]

# create_optimizer needs no registration; AdamPMixin repeats it, and raises where it fails.
with suppress(RuntimeError):
    register()

# A child of Transformers' own logger: it has the handlers and follows the user's verbosity.
logger = logging.get_logger("transformers.hf_adamp")

_CLASSES: dict[str, type[Optimizer]] = {"adamp": AdamP, "sgdp": SGDP}
_DEFAULT_NAMES = ("adamw_torch", "adamw_torch_fused")


def create_optimizer(model: nn.Module, args: TrainingArguments) -> Optimizer:
    """Build AdamP or SGDP for a model as ``--optim adamp`` would.

    Use it where a ``Trainer`` takes a finished optimizer, and in training loops of one's own. The
    optimizer is SGDP if ``args.optim`` is ``sgdp``, AdamP otherwise; parameter groups come from
    `hf_adamp.get_param_groups`, or follow Transformers' rule with
    ``optim_args="groups=transformers"``. With FSDP or DeepSpeed prefer ``--optim adamp``: the
    ``Trainer`` then builds the optimizer after it has wrapped the model.

    Args:
        model: Model whose trainable parameters are optimized.
        args: Training arguments; ``learning_rate``, ``weight_decay``, ``adam_beta1``,
            ``adam_beta2``, ``adam_epsilon``, ``optim`` and ``optim_args`` are read.

    Raises:
        ValueError: ``optim_args`` has an unknown key or an unreadable value, a value is out of the
            range the optimizer allows, or ``scale_invariant`` does not suit the model's weights.

    Example:
        >>> args = TrainingArguments("out", learning_rate=1e-3, optim_args="delta=0.05")
        >>> optimizer = create_optimizer(model, args)
        >>> trainer = Trainer(model, args, optimizers=(optimizer, None))
    """
    options = read_options(args)
    groups = _groups(options, model, args)
    optimizer = _CLASSES[options.name](groups, **options.kwargs)
    _log_configuration(options, groups, model, args)
    return optimizer


def optimizer_cls_and_kwargs(
    args: TrainingArguments, model: nn.Module | None = None
) -> tuple[type[Optimizer], dict[str, Any]]:
    """Answer for ``Trainer.get_optimizer_cls_and_kwargs``, and its parameter of that name.

    The keyword arguments have a ``params`` entry, which a ``Trainer`` uses instead of its own
    groups, if there is a model and `args` does not ask for Transformers' groups.
    """
    options = read_options(args)
    kwargs = dict(options.kwargs)
    if model is None and options.scale_invariance is not None:
        raise ValueError(
            "--optim_args has the scale_invariant of single weights, which cannot be found without "
            "the model; pass it, or group its weights with hf_adamp.get_param_groups(model, "
            "weight_decay, scale_invariance=...)."
        )
    if model is not None:
        groups = _groups(options, model, args)
        _log_configuration(options, groups, model, args)
        if options.groups == "hf_adamp":
            kwargs["params"] = groups
    return _CLASSES[options.name], kwargs


class AdamPMixin:
    """Makes AdamP the default optimizer of a ``Trainer`` class to its right.

    ``args.optim`` is respected where it names ``adamp`` or ``sgdp``; any other value, the default
    included, becomes ``adamp`` in a copy of the arguments that the trainer then owns, so that its
    logs and model card name the optimizer it used. Optimizers passed to the constructor
    (``optimizers``, ``optimizer_cls_and_kwargs``) win over both, as in ``Trainer``.

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

    It differs from ``Trainer`` in that default only. Learning rate, betas, eps and weight decay
    come from ``TrainingArguments``; delta, wd_ratio and the rest from ``optim_args``. To do the
    same to another trainer class, put `AdamPMixin` before it.

    Args:
        As ``transformers.Trainer``.

    Raises:
        ValueError: When training starts, if ``optim_args`` is wrong.

    Example:
        >>> args = TrainingArguments("out", weight_decay=0.01, optim_args="delta=0.05")
        >>> trainer = AdamPTrainer(model, args, train_dataset=dataset)
        >>> trainer.train()
    """


def _groups(options: Options, model: nn.Module, args: TrainingArguments) -> list[dict[str, Any]]:
    return get_param_groups(
        model,
        args.weight_decay,
        rule=options.groups,
        scale_invariance=options.scale_invariance,
    )


def _log_configuration(
    options: Options, groups: list[dict[str, Any]], model: nn.Module, args: TrainingArguments
) -> None:
    """Log one INFO line on the main process.

    Transformers' default verbosity hides INFO, and a user who never sees which rule decayed what
    cannot notice a wrong one: the line is let through unless the user asked for errors only.
    """
    if not args.should_log or logging.get_verbosity() > logging.WARNING:
        return
    logger.setLevel(logging.INFO)
    shown = _shown_options(options)
    decayed = "; ".join(_describe_group(group) for group in groups)
    differing = set(decay_parameter_names(model)) ^ set(
        decay_parameter_names(model, rule="transformers")
    )
    logger.info(
        f"{_CLASSES[options.name].__name__}({shown}), groups={options.groups}: {decayed}. "
        f"The rules hf_adamp and transformers differ on {len(differing)} weights."
    )


def _shown_options(options: Options) -> str:
    parameters = inspect.signature(_CLASSES[options.name]).parameters
    # What is declared is seen at the groups; where nothing is, it needs no word.
    known = OPTIONS[options.name].keys() - {"scale_invariant"}
    names = [name for name in parameters if name in known or name in options.kwargs]
    return ", ".join(f"{n}={options.kwargs.get(n, parameters[n].default)}" for n in names)


def _describe_group(group: dict[str, Any]) -> str:
    # A ZeRO-3 weight is empty until gathered and keeps its size beside.
    elements = sum(getattr(p, "ds_numel", p.numel()) for p in group["params"])
    weights = f"{len(group['params'])} weights ({elements:,} elements)"
    declared = f", scale_invariant={group['scale_invariant']}" if "scale_invariant" in group else ""
    return f"weight_decay={group['weight_decay']}{declared} on {weights}"
