"""Where rows live when weights are sharded, and which kinds of shards the projection refuses.

The projection of a weight needs its rows. A shard that was flattened to one dimension has none
left, so AdamP would turn into AdamW without a word; it says so instead.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["refuse_flattened"]

_REMEDY = (
    "shard with FSDP2 (`fully_shard`), which keeps the shape of weights, or train with "
    "torch.optim.AdamW, which is what flattened AdamP amounts to"
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
    if any(attribute.startswith("ds_") for attribute in vars(param)) or hasattr(
        param, "_hp_mapping"
    ):
        raise RuntimeError(
            f"{name} is partitioned by DeepSpeed ZeRO: its rows cannot be seen, so nothing would "
            f"ever be projected; {_REMEDY}."
        )
