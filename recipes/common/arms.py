"""The optimizers that recipes compare, with settings that match.

    optimizer = make_optimizer("adamp", model, lr=1e-2, weight_decay=0.1)

An arm is named as `--optim` names it, but for `adam_l2`, which Transformers does not have. What
makes two arms comparable stands here once:

- **The same weights decay** in all of them: those of `hf_adamp.get_param_groups`.
- **`momentum`** is that of SGD and SGDP, and the first beta of the Adams.
- **`weight_decay`** is decoupled in AdamW and AdamP. In SGD it is added to the gradient, as is
  usual, and with momentum m each step then decays by lr * weight_decay / (1 - m) in the long run;
  SGDP decays by that as it is. In `adam_l2` it is added to the gradient, too, and divided with it:
  the same number means something else there.
- AdamP and SGDP decay what they project by `wd_ratio` (0.1) of it, as published.

A `Trainer` gets the same arms from `recipes.common.matched_trainer`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hf_adamp import SGDP, AdamP, get_param_groups

__all__ = ["ARMS", "BASELINES", "make_optimizer"]

# Titles for tables and pictures, by the name of the arm.
ARMS: Mapping[str, str] = {
    "sgd": "SGD",
    "sgdp": "SGDP",
    "adam_l2": "Adam + L2",
    "adamw_torch": "AdamW",
    "adamp": "AdamP",
}
# What each of ours is held against.
BASELINES: Mapping[str, str] = {"sgdp": "sgd", "adamp": "adamw_torch"}


def make_optimizer(
    arm: str,
    model: nn.Module | Sequence[dict[str, Any]],
    *,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    beta2: float = 0.999,
    eps: float = 1e-8,
    **options: Any,
) -> Optimizer:
    """Build the optimizer of an arm.

    Args:
        arm: a key of `ARMS`.
        model: the module to train, or param groups where some weights need a setting of their own.
        lr: learning rate.
        weight_decay: of the weights that `get_param_groups` chooses; groups have their own.
        momentum: of SGD and SGDP, and the Adams' first beta. Default: 0.9.
        nesterov: of all arms but Adam's and AdamW's, which have none. Default: False.
        beta2: the Adams' second beta. Default: 0.999.
        eps: of the Adams. Default: 1e-8.
        options: further ones of AdamP and SGDP, such as `delta`.

    Raises:
        ValueError: the arm is unknown, or cannot do Nesterov's momentum.
    """
    if arm not in ARMS:
        raise ValueError(f"arm={arm!r} is unknown; known arms: {', '.join(ARMS)}.")
    if nesterov and arm in ("adam_l2", "adamw_torch"):
        raise ValueError(f"arm={arm!r} has no nesterov=True; use torch.optim.NAdam yourself.")
    groups: Any = model
    if isinstance(model, nn.Module):
        groups = get_param_groups(model, weight_decay)
    if arm in ("sgd", "sgdp"):
        of_sgd: Any = torch.optim.SGD if arm == "sgd" else SGDP
        return of_sgd(groups, lr=lr, momentum=momentum, nesterov=nesterov, **options)
    options |= {"lr": lr, "betas": (momentum, beta2), "eps": eps}
    if arm == "adamp":
        return AdamP(groups, nesterov=nesterov, **options)
    of_adam: Any = torch.optim.Adam if arm == "adam_l2" else torch.optim.AdamW
    return of_adam(groups, **options)
