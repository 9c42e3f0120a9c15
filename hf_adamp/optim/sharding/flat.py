"""Weights that a framework has flattened or cut (FSDP1, DeepSpeed): recognised, and refused.

Their rows cannot be seen, so nothing would ever be projected, or they are parts of rows, whose
cosines would be wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed

__all__ = ["cut_message", "flattened_message", "is_spread", "refuse_flattened"]

_REMEDY = (
    "shard with FSDP2 (`fully_shard`), which keeps the shape of weights, or use DeepSpeed's stage "
    "0, or set delta=0, which is AdamW (or SGD) by request"
)
# What DeepSpeed's automatic tensor parallelism and Megatron leave on a weight that they have cut.
_CUT_MARKS = ("tensor_model_parallel", "ds_is_replaced_module", "_tp_partition")


def flattened_message(name: str) -> str:
    """What to say where a framework has put flat weights in the place of the optimizer's own."""
    return (
        f"{name} and its group had weights with rows when the optimizer was made and have none "
        "now: they were flattened, as DeepSpeed ZeRO does in stages 1 and 2. Their rows cannot be "
        f"seen, so nothing would ever be projected; {_REMEDY}."
    )


def cut_message(name: str, before: torch.Size, now: torch.Size) -> str:
    """What to say where a weight has another shape than when it was added."""
    return (
        f"{name} had shape {tuple(before)} when it was added and has {tuple(now)} now: a framework "
        "has cut it, and parts of rows cannot be tested. Make the optimizer from the cut weights "
        f"only if they are whole rows; {_REMEDY}."
    )


def is_spread() -> bool:
    """Whether there are other processes that could hold the rest of a weight."""
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def refuse_flattened(param: Tensor, name: str) -> None:
    """Raise if the rows of this weight cannot be seen.

    Raises:
        RuntimeError: for the flat shards of FSDP1 and DeepSpeed ZeRO.
    """
    # Marks that the frameworks leave on a weight; neither has to be importable to be recognised.
    if getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False):
        raise RuntimeError(
            f"{name} is a flattened FSDP1 shard: its rows cannot be seen, so nothing would ever be "
            f"projected; {_REMEDY}."
        )
    attributes = vars(param)
    if marks := [mark for mark in _CUT_MARKS if attributes.get(mark)]:
        raise RuntimeError(
            f"{name} is cut between processes without being a DTensor ({marks[0]} is set): a row "
            f"of it may be a part of one, whose cosine would be wrong; {_REMEDY}."
        )
    if "_hp_mapping" in attributes or any(name.startswith("ds_") for name in attributes):
        raise RuntimeError(
            f"{name} is partitioned by DeepSpeed ZeRO (any stage above 0): its rows cannot be "
            f"seen, so nothing would ever be projected; {_REMEDY}."
        )
