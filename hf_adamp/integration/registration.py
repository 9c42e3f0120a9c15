"""`adamp` and `sgdp` as optimizer names of Transformers.

Two places are extended, each as soon as its module is loaded. So nothing here imports Transformers
before the program does:

- ``transformers.training_args.OptimizerNames``, from which ``--help``, ``HfArgumentParser`` and
  ``TrainingArguments`` take the names they accept;
- ``Trainer.get_optimizer_cls_and_kwargs``, which turns ``TrainingArguments`` into an optimizer. It
  is wrapped, instead of extending the table behind it, because it is public, exists in every
  supported version, and still has ``optim_args`` as the user wrote them.
"""

import sys
from collections.abc import Callable
from difflib import get_close_matches
from enum import Enum
from functools import wraps
from typing import Any

from hf_adamp.integration.import_hook import when_imported
from hf_adamp.integration.options import OPTIMIZER_NAMES

__all__ = ["add_dispatch", "add_names", "optimizer_name", "register"]

_SUPPORTED = (
    "hf_adamp works with transformers 4.57 and 5.x; "
    "install one of these, or pass optimizers=(hf_adamp.create_optimizer(model, args), None)."
)


def register() -> None:
    """Make ``adamp`` and ``sgdp`` valid values of ``TrainingArguments.optim``.

    Call it anywhere before the names are used: before or after importing Transformers, once or
    many times. It imports nothing itself. If Transformers is not loaded yet, it acts when the
    program loads it. An installed package registers automatically, unless
    ``TORCH_DEVICE_BACKEND_AUTOLOAD=0``. So a script needs this call only to be independent of
    that, or to see the error if the automatic registration has failed silently.

    Raises:
        RuntimeError: This version of Transformers cannot be extended, or has an optimizer of the
            same name. If Transformers is not loaded yet, importing it raises the error.

    Example:
        >>> import hf_adamp
        >>> hf_adamp.register()
        >>> from transformers import TrainingArguments
        >>> args = TrainingArguments("out", optim="adamp", optim_args="delta=0.05")
    """
    when_imported("transformers.training_args", add_names)
    when_imported("transformers.trainer", add_dispatch)


def add_names() -> None:
    """Add our members to the loaded ``OptimizerNames``; a second call does nothing."""
    names: Any = getattr(sys.modules["transformers.training_args"], "OptimizerNames", None)
    try:
        taken = {value: names(value) for value in OPTIMIZER_NAMES if value in _values(names)}
        foreign = [value for value, member in taken.items() if not _is_ours(member)]
        if not foreign:
            for value in OPTIMIZER_NAMES:
                if value not in taken:
                    _add_member(names, value)
            _suggest(names)
    except (AttributeError, TypeError) as error:
        raise RuntimeError(
            f"transformers.training_args.OptimizerNames cannot be extended ({error}); {_SUPPORTED}"
        ) from error
    if foreign:
        raise RuntimeError(
            f"OptimizerNames already has another {' and '.join(foreign)}; to use this package's, "
            "pass optimizers=(hf_adamp.create_optimizer(model, args), None)."
        )


def _values(names: Any) -> dict[str, Enum]:
    mapping: dict[str, Enum] = names._value2member_map_
    return mapping


def _suggest(names: Any) -> None:
    """Let the enum's own error for an unknown name suggest one of ours."""
    original = names._missing_.__func__
    if hasattr(original, "_hf_adamp"):
        return

    def missing(cls: Any, value: object) -> Any:
        try:
            return original(cls, value)
        except ValueError as error:
            close = get_close_matches(str(value).lower(), OPTIMIZER_NAMES, 1, 0.5)
            if not close:
                raise
            raise ValueError(f"{error}; did you mean {close[0]}?") from None

    missing._hf_adamp = True  # type: ignore[attr-defined]
    type.__setattr__(names, "_missing_", classmethod(missing))


def _is_ours(member: Enum) -> bool:
    return "__reduce_ex__" in vars(member)


def _add_member(names: Any, value: str) -> None:
    """Add a name to a finished string enum, as its metaclass does for each name in the body."""
    member = str.__new__(names, value)
    member._name_ = value.upper()
    member._value_ = value
    member.__objclass__ = names
    member._sort_order_ = len(names._member_names_)
    # training_args.bin contains this member. Pickled by value, it would not load in a process that
    # has not registered the name. So the pickle calls the function that registers and looks it up.
    member.__reduce_ex__ = lambda protocol: (optimizer_name, (value,))
    names._member_names_.append(member._name_)
    names._member_map_[member._name_] = member
    names._value2member_map_[value] = member
    getattr(names, "_hashable_values_", []).append(value)  # Python 3.13 and newer
    type.__setattr__(names, member._name_, member)


def optimizer_name(value: str) -> Any:
    """Return the member of ``OptimizerNames``, registering it first if necessary.

    Pickles refer to this function by its full name, so it must not move between releases.
    """
    from transformers.training_args import OptimizerNames  # noqa: PLC0415  not before the program

    register()
    return OptimizerNames(value)


def add_dispatch() -> None:
    """Let the loaded ``Trainer`` build our optimizers; a second call does nothing."""
    trainer_class: Any = getattr(sys.modules["transformers.trainer"], "Trainer", None)
    original = getattr(trainer_class, "get_optimizer_cls_and_kwargs", None)
    if original is None:
        raise RuntimeError(
            f"transformers.Trainer.get_optimizer_cls_and_kwargs is missing; {_SUPPORTED}"
        )
    if not hasattr(original, "_hf_adamp"):
        trainer_class.get_optimizer_cls_and_kwargs = staticmethod(_dispatching(original))


def _dispatching(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> Any:
        if args.optim not in OPTIMIZER_NAMES:
            return original(args, model)
        # Needs torch and Transformers, which may not have been loaded when this module was.
        from hf_adamp.integration.factory import optimizer_cls_and_kwargs  # noqa: PLC0415

        return optimizer_cls_and_kwargs(args, model)

    get_optimizer_cls_and_kwargs._hf_adamp = True  # type: ignore[attr-defined]
    return get_optimizer_cls_and_kwargs
