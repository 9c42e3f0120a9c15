"""Checkpoints of other optimizers, brought into this project's form before they are loaded.

Understood are adamp 0.3.0, timm's AdamP and SGDP, torch.optim's Adam, AdamW and SGD, and our own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["adapt"]

logger = logging.getLogger(__name__)

# Options of torch.optim that these optimizers do not have.
_FOREIGN_OPTIONS = ("amsgrad", "decoupled_weight_decay")


def adapt(
    state_dict: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    aliases: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """The same checkpoint with our names; options that it lacks are those of the current groups.

    Args:
        state_dict: an optimizer's `state_dict()`.
        groups: the current param groups.
        aliases: state key → its names elsewhere.

    Raises:
        ValueError: for a checkpoint with `amsgrad=True`, whose state has no counterpart.
    """
    saved = state_dict["param_groups"]
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
    # zip may end early: torch.optim reports a different number of groups in its own words.
    adapted = [
        {**{k: v for k, v in now.items() if k not in ("params", "param_names")}, **group}
        for group, now in zip(saved, groups, strict=False)
    ] + list(saved[len(groups) :])
    for group in adapted:
        for option in _FOREIGN_OPTIONS:
            group.pop(option, None)
    state = {key: _rename(value, aliases) for key, value in state_dict["state"].items()}
    return {**state_dict, "state": state, "param_groups": adapted}


def _rename(state: Any, aliases: Mapping[str, Sequence[str]]) -> Any:
    if not isinstance(state, Mapping):
        return state
    renamed = {}
    for key, value in state.items():
        ours = next((name for name, others in aliases.items() if key in others), key)
        # torch.optim.SGD stores None where no momentum has been gathered yet.
        if value is not None:
            renamed[ours] = value.clone() if isinstance(value, Tensor) and ours == "step" else value
    return renamed
