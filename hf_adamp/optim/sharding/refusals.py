"""Weights that a framework has flattened or cut in a way that cannot be read: refused.

Their rows cannot be seen, so nothing would ever be projected, or they are parts of rows, whose
cosines would be wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed

__all__ = [
    "REMEDY",
    "cut_message",
    "flattened_message",
    "is_spread",
    "refuse_cut",
    "refuse_flattened",
    "refuse_fsdp1",
]

_BY_REQUEST = "or set delta=0, which is AdamW (or SGD) by request"
REMEDY = (
    "shard with FSDP2 (`fully_shard`), which keeps the shape of weights, or use DeepSpeed's stage "
    f"0, {_BY_REQUEST}"
)
_CUT_REMEDY = (
    "cut weights as DTensors (`tp_plan` of Transformers, torch's `parallelize_module`), shard with "
    f"FSDP2 (`fully_shard`), {_BY_REQUEST}"
)
# What DeepSpeed's automatic tensor parallelism and Megatron leave on a weight that they have cut.
_CUT_MARKS = ("tensor_model_parallel", "ds_is_replaced_module", "_tp_partition")


def flattened_message(name: str) -> str:
    """What to say where unknown flat weights have taken the place of the optimizer's own."""
    return (
        f"{name} and its group had weights with rows when the optimizer was made and have none "
        "now: they were flattened. Their rows cannot be seen, so nothing would ever be projected. "
        "DeepSpeed ZeRO is understood if it is imported before the optimizer is made; else "
        f"{REMEDY}."
    )


def cut_message(name: str, before: torch.Size, now: torch.Size) -> str:
    """What to say where a weight has another shape than when it was added."""
    return (
        f"{name} had shape {tuple(before)} when it was added and has {tuple(now)} now: a framework "
        "has cut it, and parts of rows cannot be tested. Make the optimizer from the cut weights "
        f"only if they are whole rows; {_CUT_REMEDY}."
    )


def is_spread() -> bool:
    """Whether there are other processes that could hold the rest of a weight."""
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def refuse_cut(param: Tensor, name: str) -> None:
    """Raise if this weight bears the mark of having been cut into plain tensors.

    Raises:
        RuntimeError: for the weights of DeepSpeed's AutoTP and of Megatron.
    """
    attributes = vars(param)
    if marks := [mark for mark in _CUT_MARKS if attributes.get(mark)]:
        raise RuntimeError(
            f"{name} is cut between processes without being a DTensor ({marks[0]} is set): a row "
            f"of it may be a part of one, whose cosine would be wrong; {_CUT_REMEDY}."
        )


def refuse_flattened(param: Tensor, name: str) -> None:
    """Raise if the rows of this weight cannot be seen.

    Raises:
        RuntimeError: for the flat shards of FSDP1, and for weights of DeepSpeed ZeRO that are to
            be stepped as they are.
    """
    refuse_fsdp1(param, name)
    refuse_cut(param, name)
    attributes = vars(param)
    if "_hp_mapping" in attributes or any(name.startswith("ds_") for name in attributes):
        raise RuntimeError(
            f"{name} is partitioned by DeepSpeed ZeRO (any stage above 0): its rows cannot be "
            "seen, so nothing would ever be projected. Make the optimizer from the model's weights "
            "after `import deepspeed` and before `deepspeed.initialize`, and give it to that; else "
            f"{REMEDY}."
        )


def refuse_fsdp1(param: Tensor, name: str) -> None:
    """Raise if this is a flat shard, or a weight in one.

    Raises:
        RuntimeError: for what FSDP1 has wrapped.
    """
    # Marks that it leaves on a weight; it does not have to be imported to be recognised.
    if getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False):
        raise RuntimeError(
            f"{name} is a flattened FSDP1 shard: its rows cannot be seen, so nothing would ever be "
            f"projected; {REMEDY}."
        )
