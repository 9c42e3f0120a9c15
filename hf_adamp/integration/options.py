"""``--optim_args`` and ``TrainingArguments`` to keyword arguments of the optimizers, strictly.

Transformers itself passes strings on: ``bool("False")`` is True there, and a misspelt key has no
effect. Here every key stands in one table with the reader of its value, and whatever is not in the
table is an error. Ranges are checked once, by the optimizer's constructor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainingArguments

__all__ = ["OPTIMIZER_NAMES", "OPTIONS", "Options", "parse_optim_args", "read_options"]

_TRUE = ("true", "yes", "1")
_FALSE = ("false", "no", "0")


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError("a number")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError("a number") from None


def _bool(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in _TRUE + _FALSE:
        raise ValueError("true or false")
    return text in _TRUE


def _bool_or_none(value: Any) -> bool | None:
    if str(value).strip().lower() == "none":
        return None
    try:
        return _bool(value)
    except ValueError:
        raise ValueError("true, false or none") from None


def _betas(value: Any) -> tuple[float, float]:
    parts = value.split(":") if isinstance(value, str) else value
    try:
        beta1, beta2 = parts
        return _float(beta1), _float(beta2)
    except (TypeError, ValueError):
        raise ValueError("two numbers joined by a colon, as in betas=0.9:0.99") from None


def _groups(value: Any) -> str:
    if value not in ("hf_adamp", "transformers"):
        raise ValueError("hf_adamp or transformers")
    return str(value)


def _scale_invariant(value: Any) -> Any:
    # Not at the top: torch is half loaded when this module is.
    from hf_adamp.granularities import granularities_of, read_granularities  # noqa: PLC0415
    from hf_adamp.optim.scale_invariance import check_scale_invariant  # noqa: PLC0415

    if isinstance(value, Mapping):
        return granularities_of(value)
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.endswith(".json"):
        try:
            return read_granularities(text)
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"a JSON file of names and granularities ({error})") from None
    try:
        return check_scale_invariant("scale_invariant", "false" if text in _FALSE else text)
    except (ValueError, TypeError):
        unit, colon, rest = text.lower().partition(":")
        close = get_close_matches(unit, ("head", "head_dim", "rows", "experts", "row", "tensor"), 1)
        hint = f" (did you mean {close[0]}{colon}{rest}?)" if close and close[0] != unit else ""
        raise ValueError(
            "auto, row, tensor, head:HEADS, head_dim:ROWS, rows:ROWS+ROWS, experts:out_in, "
            f"experts:in_out, false or a file FILE.json{hint}"
        ) from None


_Readers = dict[str, Callable[[Any], Any]]

_SHARED: _Readers = {
    "delta": _float,
    "wd_ratio": _float,
    "nesterov": _bool,
    "foreach": _bool_or_none,
    "fused": _bool_or_none,
    "groups": _groups,
    "rounding": str,
    "scale_invariant": _scale_invariant,
    "state_dtype": str,
}

OPTIONS: dict[str, _Readers] = {
    "adamp": {**_SHARED, "betas": _betas, "beta1": _float, "beta2": _float},
    "sgdp": {**_SHARED, "momentum": _float, "dampening": _float},
}
"""Keys of ``--optim_args`` for each optimizer name; a reader says what it wants by ValueError."""

OPTIMIZER_NAMES = tuple(OPTIONS)

_FLAGS = {
    "lr": "--learning_rate",
    "learning_rate": "--learning_rate",
    "weight_decay": "--weight_decay",
    "eps": "--adam_epsilon",
    "adam_epsilon": "--adam_epsilon",
    "adam_beta1": "--adam_beta1",
    "adam_beta2": "--adam_beta2",
}
"""What people write into ``--optim_args`` although ``TrainingArguments`` has a field for it."""


@dataclass(frozen=True)
class Options:
    """What a run asked for: optimizer name, keyword arguments, how to group the parameters."""

    name: str
    kwargs: dict[str, Any]
    groups: str
    scale_invariance: Mapping[str, Any] | None = None


# What an object has that is not TrainingArguments: theirs.
_DEFAULTS: dict[str, Any] = {
    "optim": "adamp",
    "optim_args": None,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
}


def read_options(args: TrainingArguments) -> Options:
    """Collect the options of an optimizer from ``TrainingArguments``.

    Learning rate, betas and eps are fields of `args`; everything else is in ``args.optim_args``,
    where betas may be given too and then win. A name that is not ours reads as ``adamp``.

    Args:
        args: Training arguments, or any object with a ``learning_rate``; ``optim``,
            ``optim_args``, ``adam_beta1``, ``adam_beta2`` and ``adam_epsilon`` are read where they
            are there.

    Raises:
        TypeError: `args` has no learning rate.
        ValueError: ``optim_args`` is not as `parse_optim_args` wants it.
    """
    if not hasattr(args, "learning_rate"):
        raise TypeError(
            f"args is a {type(args).__name__} without learning_rate; pass TrainingArguments, or an "
            "object with learning_rate, weight_decay and, if they are not to have their defaults, "
            f"{', '.join(_DEFAULTS)}."
        )
    given = {name: getattr(args, name, default) for name, default in _DEFAULTS.items()}
    name = str(getattr(given["optim"], "value", given["optim"]))
    if name not in OPTIMIZER_NAMES:
        name = "adamp"
    options = parse_optim_args(given["optim_args"], name)
    groups = options.pop("groups", "hf_adamp")
    # Of single weights it is the groups' business; one value for all is the optimizer's.
    by_name = isinstance(options.get("scale_invariant"), Mapping)
    scale_invariance = options.pop("scale_invariant") if by_name else None
    if by_name and groups != "hf_adamp":
        raise ValueError(
            f"--optim_args has groups={groups} beside the scale_invariant of single weights, which "
            "needs groups of its own; use groups=hf_adamp."
        )
    kwargs = {"lr": args.learning_rate, "eps": given["adam_epsilon"]}
    if name == "sgdp":
        # The paper's SGDP is a momentum optimizer: without, there is no momentum to slow down.
        kwargs["momentum"] = 0.9
    if name == "adamp":
        betas = options.pop("betas", (given["adam_beta1"], given["adam_beta2"]))
        kwargs["betas"] = (options.pop("beta1", betas[0]), options.pop("beta2", betas[1]))
    return Options(name, {**kwargs, **options}, groups, scale_invariance)


def parse_optim_args(optim_args: str | Mapping[str, Any] | None, optimizer: str) -> dict[str, Any]:
    """Parse ``--optim_args`` into typed values.

    Args:
        optim_args: ``"key=value,key=value"``, a mapping (from YAML or JSON arguments), or None.
        optimizer: ``adamp`` or ``sgdp``.

    Raises:
        ValueError: A key is unknown, given twice, or belongs to another flag; a value cannot be
            read; ``betas`` stands beside ``beta1`` or ``beta2``. The message names key, value and
            what is known.

    Example:
        >>> parse_optim_args("delta=0.05,nesterov=false", "adamp")
        {'delta': 0.05, 'nesterov': False}
    """
    options: dict[str, Any] = {}
    for key, value in _pairs(optim_args):
        if key in options:
            raise ValueError(f'--optim_args has key "{key}" twice; give it once.')
        options[key] = _read(key, value, optimizer)
    for key in ("beta1", "beta2"):
        if "betas" in options and key in options:
            raise ValueError(f"--optim_args has both betas and {key}; give one of them.")
    return options


def _pairs(optim_args: str | Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    if isinstance(optim_args, Mapping):
        return list(optim_args.items())
    if optim_args is None or not optim_args.strip():
        return []
    pairs: list[tuple[str, Any]] = []
    for item in optim_args.split(","):
        key, equals, value = item.partition("=")
        if not (equals and key.strip() and value.strip()):
            remedy = "write key=value,key=value"
            if pairs and pairs[-1][0] == "betas":
                remedy = "a comma separates options: write betas=0.9:0.99"
            raise ValueError(f'--optim_args has "{item.strip()}", not key=value; {remedy}.')
        pairs.append((key.strip(), value.strip()))
    return pairs


def _read(key: str, value: Any, optimizer: str) -> Any:
    readers = OPTIONS[optimizer]
    if key in readers:
        try:
            return readers[key](value)
        except ValueError as wanted:
            raise ValueError(f"--optim_args {key}={value} must be {wanted}.") from None
    if key in _FLAGS:
        raise ValueError(f"--optim_args cannot set {key}={value}; use {_FLAGS[key]} {value}.")
    message = f'--optim_args has unknown key "{key}"'
    close = get_close_matches(key, readers, n=1)
    if any(key in others for others in OPTIONS.values()):
        message += f", which {optimizer} does not have"
    elif close:
        message += f', did you mean "{close[0]}"'
    raise ValueError(f"{message}; known keys: {', '.join(sorted(readers))}.")
