"""Which weights of a model are scale-invariant, and per what, by their names.

A probe measures it, a file keeps it, a person may write it; parameter groups take it from here.
"""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from torch import nn
from torch.nn.parameter import is_lazy

from hf_adamp.optim.scale_invariance import ScaleInvariant, check_scale_invariant, vectors_of

__all__ = ["Granularities", "declared_weights", "granularities_of", "read_granularities"]


class Report(Protocol):
    """The result of a probe."""

    @property
    def granularities(self) -> Mapping[str, Any]:
        """For each weight None or a value of `scale_invariant`."""


Granularities: TypeAlias = Mapping[str, Any] | Report

# torch.compile and activation checkpointing put these in front of the names of what they wrap.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


def granularities_of(report: Granularities) -> dict[str, ScaleInvariant]:
    """What a report says, as values of `scale_invariant`; None, not invariant, becomes False.

    Raises:
        TypeError: it is no report, or holds a value of the wrong type.
        ValueError: it holds a value that `scale_invariant` does not take.
    """
    mapping = report if isinstance(report, Mapping) else getattr(report, "granularities", None)
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"scale_invariance must be a mapping from weights' names to granularities, or an "
            f"object that has one in `.granularities`, not {type(report).__name__}."
        )
    declared: dict[str, ScaleInvariant] = {}
    for name, value in mapping.items():
        value = False if value is None else value
        declared[name] = check_scale_invariant(f"scale_invariance[{name!r}]", value)
    return declared


def read_granularities(path: str | Path) -> dict[str, ScaleInvariant]:
    """Read a JSON file: names and granularities, or a probe's report, which has them inside.

    Args:
        path: holds an object of names and granularities; or one with such an object under
            `granularities`; or one with a list under `weights`, each entry of which has a `name`
            and a `granularity`.

    Raises:
        OSError: the file cannot be read.
        TypeError: as `granularities_of`.
        ValueError: it is not such a file, or as `granularities_of`.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must hold an object.")
    # A weight may bear either name, but then its value is a granularity.
    inside, entries = content.get("granularities"), content.get("weights")
    if isinstance(inside, dict):
        content = inside
    elif isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
        if not all({"name", "granularity"} <= entry.keys() for entry in entries):
            raise ValueError(f"{path} has `weights` that lack a `name` or a `granularity`.")
        content = {entry["name"]: entry["granularity"] for entry in entries}
    return granularities_of(content)


def declared_weights(model: nn.Module, report: Granularities) -> dict[int, ScaleInvariant]:
    """What a report says of a model's weights, by their identity; vectors are left out.

    Raises:
        TypeError: as `granularities_of`.
        ValueError: as `granularities_of`; or a name is unknown to the model, a tied weight is
            declared in two ways, or heads do not divide the rows.
    """
    params = {_plain(n): p for n, p in model.named_parameters(remove_duplicate=False)}
    declared = {_plain(name): value for name, value in granularities_of(report).items()}
    if unknown := [name for name in declared if name not in params]:
        close = get_close_matches(unknown[0], params, n=1)
        hint = f', did you mean "{close[0]}"' if close else ""
        raise ValueError(
            f'scale_invariance names "{unknown[0]}", which {type(model).__name__} does not have'
            f"{hint} ({len(unknown)} of {len(declared)} names are unknown); use names of "
            "model.named_parameters()."
        )
    by_weight: dict[int, ScaleInvariant] = {}
    for name, value in declared.items():
        param = params[name]
        # What a lazy module has not given a shape yet is checked when it is stepped.
        has_shape = not is_lazy(param)
        if has_shape and param.ndim < 2:
            continue
        if has_shape and param.numel():
            vectors_of(value, param.shape, name)
        if by_weight.setdefault(id(param), value) != value:
            raise ValueError(
                f"scale_invariance declares {name} {value!r} and, under another name of the same "
                f"tied weight, {by_weight[id(param)]!r}; declare it once."
            )
    return by_weight


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name
