"""Weights that a framework has flattened (FSDP1, DeepSpeed ZeRO): recognised, and refused.

Their rows cannot be seen, so nothing would ever be projected.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["flattened_message", "refuse_flattened"]

_REMEDY = (
    "shard with FSDP2 (`fully_shard`), which keeps the shape of weights, or set delta=0, which "
    "is AdamW (or SGD) by request"
)


def flattened_message(name: str) -> str:
    """What to say where a framework has put flat weights in the place of the optimizer's own."""
    return (
        f"{name} and its group had weights with rows when the optimizer was made and have none "
        "now: they were flattened, as DeepSpeed ZeRO does. Their rows cannot be seen, so nothing "
        f"would ever be projected; {_REMEDY}."
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
    if "_hp_mapping" in attributes or any(name.startswith("ds_") for name in attributes):
        raise RuntimeError(
            f"{name} is partitioned by DeepSpeed ZeRO: its rows cannot be seen, so nothing would "
            f"ever be projected; {_REMEDY}."
        )
