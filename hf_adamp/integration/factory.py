"""AdamP and SGDP from training arguments: what ``--optim adamp`` builds, and `create_optimizer`."""

import inspect
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainingArguments
from transformers.utils import logging

from hf_adamp.integration.options import OPTIONS, Options, read_options
from hf_adamp.optim.adamp import AdamP
from hf_adamp.optim.sgdp import SGDP
from hf_adamp.param_groups import decay_parameter_names, get_param_groups

__all__ = ["create_optimizer", "optimizer_cls_and_kwargs"]

# A child of Transformers' own logger: it has the handlers and follows the user's verbosity.
logger = logging.get_logger("transformers.hf_adamp")

_CLASSES: dict[str, type[Optimizer]] = {"adamp": AdamP, "sgdp": SGDP}


def create_optimizer(model: nn.Module, args: TrainingArguments) -> Optimizer:
    """Build AdamP or SGDP for a model as ``--optim adamp`` would.

    Use it to pass a finished optimizer to a ``Trainer``, or in your own training loop. It builds
    SGDP if ``args.optim`` is ``sgdp``, and AdamP otherwise. Parameter groups come from
    `hf_adamp.get_param_groups`, or follow Transformers' rule with
    ``optim_args="groups=transformers"``. With FSDP or DeepSpeed use ``--optim adamp`` instead: the
    ``Trainer`` then builds the optimizer after it has wrapped the model.

    Args:
        model: Model whose trainable parameters are optimized.
        args: Training arguments, or any object with a ``learning_rate``, such as the namespace of
            ``argparse`` in a script without ``Trainer``. ``weight_decay``, ``adam_beta1``,
            ``adam_beta2``, ``adam_epsilon``, ``optim`` and ``optim_args`` are optional.

    Raises:
        TypeError: `args` has no learning rate.
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
            "--optim_args sets scale_invariant for single weights, which cannot be found without "
            "the model; pass the model, or group its weights with "
            "hf_adamp.get_param_groups(model, weight_decay, scale_invariance=...)."
        )
    if model is not None:
        groups = _groups(options, model, args)
        _log_configuration(options, groups, model, args)
        if options.groups == "hf_adamp":
            kwargs["params"] = groups
    return _CLASSES[options.name], kwargs


def _groups(options: Options, model: nn.Module, args: TrainingArguments) -> list[dict[str, Any]]:
    return get_param_groups(
        model,
        getattr(args, "weight_decay", 0.0),
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
    if not getattr(args, "should_log", True) or logging.get_verbosity() > logging.WARNING:
        return
    logger.setLevel(logging.INFO)
    shown = _shown_options(options)
    decayed = "; ".join(_describe_groups(groups))
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


def _describe_groups(groups: list[dict[str, Any]]) -> list[str]:
    """Words for what the groups say; groups that say the same are counted together."""
    alike: dict[str, list[Any]] = {}
    for group in groups:
        declared = group.get("scale_invariant")
        options = f"weight_decay={group['weight_decay']}"
        options += "" if declared is None else f", scale_invariant={declared}"
        alike.setdefault(options, []).extend(group["params"])
    return [f"{options} on {_count(weights)}" for options, weights in alike.items()]


def _count(weights: list[Any]) -> str:
    # A ZeRO-3 weight is empty until gathered and keeps its size beside.
    elements = sum(getattr(p, "ds_numel", p.numel()) for p in weights)
    return f"{len(weights)} weights ({elements:,} elements)"
