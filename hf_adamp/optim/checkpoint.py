"""Checkpoints of these and of other optimizers, on their way through torch's `load_state_dict`.

Understood are adamp 0.3.0, timm's AdamP and SGDP, torch.optim's Adam, AdamW and SGD, and our own.
torch loads; here its input is adapted, after the hooks of the user, and what it rounds is restored,
before them. Which state belongs to which weight is decided in `checkpoint_matching`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from .checkpoint_matching import Source, match_weights, names_of
from .options import check_options

__all__ = ["adapted_loading", "with_names"]

logger = logging.getLogger(__name__)

# Options of torch.optim that these optimizers do not have.
_FOREIGN_OPTIONS = ("amsgrad", "decoupled_weight_decay")
# How another optimizer computed its steps says nothing of how ours can.
_PATH_OPTIONS = ("foreach", "fused", "capturable", "differentiable")

# Beside `state` and `param_groups`, where torch.optim does not look: a group with names would keep
# groups without from being added to its optimizer.
_NAMES = "param_names"

_Aliases = Mapping[str, Sequence[str]]
_State = dict[Hashable, Any]


@contextmanager
def adapted_loading(
    optimizer: Optimizer,
    aliases: _Aliases,
    *,
    source: Source | None = None,
    check: Callable[[int, Mapping[str, Any]], None],
    restore: Callable[[str, Tensor, Tensor, Mapping[str, Any]], Tensor],
) -> Iterator[None]:
    """Within, torch's `Optimizer.load_state_dict` loads a checkpoint in our names and precision.

    Hooks of the user come first on the way in and last on the way out: what they return and edit
    is what counts. Everything is checked on the way in, before anything is changed.

    Args:
        optimizer: the optimizer that loads.
        aliases: what a weight's state consists of: for each name, those that it has elsewhere.
        source: of the optimizer's weights, see `match_weights`.
        check: raises unless the weights of the group of this index suit these options.
        restore: from a moment's name, its value in the checkpoint, its weight and the group, the
            moment as that group keeps it.

    Raises:
        ValueError: inside, for a checkpoint that does not suit the optimizer.
        TypeError: inside, for a state or an option of the wrong type.
    """
    loaded: list[tuple[list[Hashable], _State]] = []
    # torch's documentation shows hooks that match weights by name; nobody may undo what they did.
    hooked = bool(optimizer._optimizer_load_state_dict_pre_hooks)

    def before(_: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        adapted = _adapt(state_dict, optimizer.param_groups, aliases, source, hooked=hooked)
        for index, group in enumerate(adapted["param_groups"]):
            check(index, group)
            loaded.append((group["params"], adapted["state"]))
        return adapted

    def after(_: Optimizer) -> None:
        # torch casts state to the weight's dtype; ours is in a precision of its own.
        for group, (keys, state) in zip(optimizer.param_groups, loaded, strict=True):
            for key, param in zip(keys, group["params"], strict=True):
                for name, value in (state.get(key) or {}).items():
                    if name in aliases and name != "step":
                        optimizer.state[param][name] = restore(name, value, param, group)

    handles = (
        optimizer.register_load_state_dict_pre_hook(before),
        optimizer.register_load_state_dict_post_hook(after, prepend=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def with_names(
    state_dict: dict[str, Any], groups: Sequence[Mapping[str, Any]], source: Source | None
) -> dict[str, Any]:
    """A state dict with the names of the weights, where their source knows them."""
    names = names_of(groups, source) if source is not None else None
    return state_dict if names is None else {**state_dict, _NAMES: names}


def _adapt(
    state_dict: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    aliases: _Aliases,
    source: Source | None,
    *,
    hooked: bool,
) -> dict[str, Any]:
    """The checkpoint in our names, its groups those of the optimizer, its options checked."""
    saved = state_dict["param_groups"]
    _look_at_foreign_options(saved)
    state = {key: _renamed(value, aliases) for key, value in state_dict["state"].items()}
    shapes = {key: _shape(value, aliases) for key, value in state.items()}
    matched = match_weights(
        saved,
        groups,
        shapes,
        saved_names=state_dict.get(_NAMES),
        source=source,
        trust_positions=hooked,
    )
    adapted = [_options(group, now) for group, now in zip(matched, groups, strict=True)]
    is_ours = all("delta" in group for group in saved)
    known: set[Hashable] = set()
    for group, now in zip(adapted, groups, strict=True):
        for key, param in zip(group["params"], now["params"], strict=True):
            known.add(key)
            if state.get(key):
                _check_state(state[key], param, aliases, is_ours=is_ours)
    if state and not known & state.keys():
        raise ValueError(
            f"the checkpoint has state of {_listed(state)}, but its groups have the weights "
            f"{_listed(known)}; the keys of its state must be those in `params`."
        )
    return {**state_dict, "state": state, "param_groups": adapted}


def _look_at_foreign_options(saved: Sequence[Mapping[str, Any]]) -> None:
    if any(group.get("amsgrad") for group in saved):
        raise ValueError(
            "the checkpoint was trained with amsgrad=True, which AdamP does not have; "
            "start from the model's weights without the optimizer's state."
        )
    if any(
        group.get("decoupled_weight_decay") is False and group["weight_decay"] for group in saved
    ):
        logger.warning(
            "The checkpoint is of torch.optim.Adam with weight_decay, an L2 penalty there; here "
            "weight decay is decoupled as in AdamW, so training continues differently."
        )


def _options(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """A group of the checkpoint; options that it lacks are those of the current group."""
    dropped = _FOREIGN_OPTIONS if "delta" in saved else (*_FOREIGN_OPTIONS, *_PATH_OPTIONS)
    options = {name: value for name, value in now.items() if name not in ("params", "param_names")}
    options |= {name: value for name, value in saved.items() if name not in dropped}
    return check_options(options)


def _renamed(state: Any, aliases: _Aliases) -> Any:
    """A weight's state in our names; the count of steps as torch keeps it."""
    if not isinstance(state, Mapping):
        return state
    renamed: dict[str, Any] = {}
    for key, value in state.items():
        ours = next((name for name, others in aliases.items() if key in others), key)
        # torch.optim.SGD stores None where no momentum has been gathered yet.
        if value is not None:
            renamed[ours] = _step_count(value) if ours == "step" else value
    return renamed


def _step_count(value: Any) -> Tensor:
    """A count of steps as a 0-d tensor of its own; adamp 0.3.0 and timm count in integers.

    float32 whatever the checkpoint was converted to: 256 + 1 is 256 in bfloat16.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        dtype = value.dtype if value.dtype == torch.float64 else torch.float32
        return value.detach().reshape(()).to(dtype, copy=True)
    try:
        count = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"the checkpoint has step={value!r}, which is not a number.") from None
    if not (math.isfinite(count) and count >= 0):
        raise ValueError(f"the checkpoint has step={value!r}; it must be at least 0 and finite.")
    return torch.tensor(count, dtype=torch.float32, device="cpu")


def _shape(state: Any, aliases: _Aliases) -> torch.Size | None:
    """The shape of the weight that a state is of, where that can be seen."""
    if isinstance(state, Mapping):
        for name in aliases:
            if name != "step" and isinstance(value := state.get(name), Tensor):
                return value.shape
    return None


def _check_state(state: Any, param: Tensor, aliases: _Aliases, *, is_ours: bool) -> None:
    """Refuse state that a step could not start from."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"the checkpoint has a {type(state).__name__} as a weight's state, not a mapping."
        )
    missing = [name for name in aliases if name not in state]
    if is_ours and len(missing) == len(aliases):
        return  # Not begun; what else is there somebody keeps for himself.
    if missing:
        raise ValueError(
            f"the checkpoint has {_listed(state)} as a weight's state and lacks "
            f"{_listed(missing)}: it is of another optimizer, or not complete; start from the "
            "model's weights without the optimizer's state."
        )
    for name in aliases:
        value = state[name]
        if not isinstance(value, Tensor):
            raise TypeError(
                f"the checkpoint has a {type(value).__name__} as {name}; it must be a tensor."
            )
        if name != "step" and not is_lazy(param) and value.shape != param.shape:
            raise ValueError(
                f"the checkpoint has {name} of shape {tuple(value.shape)} for a weight of shape "
                f"{tuple(param.shape)}."
            )


def _listed(names: Any) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
