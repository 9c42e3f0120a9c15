"""DTensor: which rows of a sharded weight are here, and with whom its sums are added up.

A row of a weight may be split between processes (`Shard(1)` and higher, tensor parallelism by
columns): then its statistics are sums of parts, added before the cosines. Or whole rows may be
spread over them (`Shard(0)`, FSDP2): then a weight's totals are.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, TypeGuard, cast

from torch import Tensor

from ..layout import Claim, Extent, Peers, Placement, Slots, has_rows
from ..scale_invariance import (
    ScaleInvariant,
    matrix_dims,
    rows_of_vectors,
    stacked_pieces,
    vectors_of,
)

__all__ = ["is_sharded", "local_part", "place_dtensor", "shard_number"]


def is_sharded(tensor: Tensor) -> TypeGuard[Any]:
    """Whether this is a DTensor."""
    # There is none before its module is loaded, which takes half a second that others may save.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def place_dtensor(
    param: Any, scale_invariant: ScaleInvariant, claim_rows: Claim, claim_segments: Claim
) -> Placement:
    """Where the rows of a DTensor lie.

    Args:
        param: the weight.
        scale_invariant: what its group declares.
        claim_rows: takes peers and a number of rows, and returns their places in the peers' sum.
        claim_segments: the same for segments.

    Raises:
        RuntimeError: for a placement that is no weight, or that heads cannot be found in.
    """
    shape, mesh = param.shape, param.device_mesh
    if any(placement.is_partial() for placement in param.placements):
        raise RuntimeError(
            f"a weight of shape {tuple(shape)} is placed {param.placements}: partial sums are "
            "not a weight; redistribute it to Replicate() or Shard()."
        )
    # A mesh without this process: the weight is other processes' business.
    if not has_rows(shape) or mesh.get_coordinate() is None:
        return Placement()
    row_dims, column_dims = matrix_dims(scale_invariant, shape)
    local = param.to_local().shape
    rows = _product(local, row_dims)
    vectors = _vectors_here(param, rows, vectors_of(scale_invariant, shape))
    extent = Extent(rows, _product(shape, column_dims), shape.numel(), vectors)
    row_slots: dict[Peers, Slots] = {}
    weight_slots: dict[Peers, Slots] = {}
    for index, placement in enumerate(param.placements):
        if placement.is_replicate() or mesh.size(index) == 1:
            continue
        peers = Peers(mesh.get_group(index), mesh.device_type)
        slots, claim, size = (
            (weight_slots, claim_segments, extent.segments)
            if placement.dim % len(shape) in row_dims
            else (row_slots, claim_rows, rows)
        )
        slots[peers] = Slots(range(size), claim(peers, size))
    pieces = stacked_pieces(scale_invariant, local) if len(row_dims) > 1 else None
    return Placement(extent, pieces, row_slots, weight_slots, weight=param)


def _product(shape: Sequence[int], dims: Sequence[int]) -> int:
    return math.prod(shape[dim] for dim in dims)


def _vectors_here(param: Any, rows: int, vectors: tuple[int, ...]) -> tuple[int, ...]:
    """How many of this process's rows belong to each declared vector of a sharded weight."""
    if len(vectors) < 2:
        return (rows,) * len(vectors)
    here: Sequence[int] = range(param.shape[0])
    mesh = param.device_mesh
    for index, placement in enumerate(param.placements):
        if placement.is_replicate() or placement.dim not in (0, -param.ndim):
            continue
        # FSDP2 over tensor parallelism cuts each of the latter's parts: a part of every piece.
        pieces = getattr(placement, "split_factor", 1)
        at, count = mesh.get_coordinate()[index], mesh.size(index)
        here = [row for i in range(pieces) for row in _chunk(_chunk(here, i, pieces), at, count)]
    if len(here) != rows:
        raise RuntimeError(
            f"a weight of shape {tuple(param.shape)} is placed {param.placements} and has {rows} "
            f"rows on this process, but {len(here)} were expected, so its heads cannot be located; "
            "use sizes that the mesh divides evenly, or scale_invariant='auto' for this weight."
        )
    return rows_of_vectors(here, vectors)


def _chunk(rows: Sequence[int], index: int, count: int) -> Sequence[int]:
    """As `torch.chunk` does it, with empty chunks at the end where there are too few rows."""
    width = -(-len(rows) // count)
    return rows[index * width : (index + 1) * width]


def shard_number(param: Any) -> int:
    """Which part of a weight this process holds; 0 where it holds all of it."""
    number = 0
    if is_sharded(param) and (coordinate := param.device_mesh.get_coordinate()) is not None:
        for index, placement in enumerate(param.placements):
            if not placement.is_replicate():
                number = number * param.device_mesh.size(index) + coordinate[index]
    return number


def local_part(tensor: Any, like: Tensor) -> Any:
    """This process's part of a tensor that is, or is to be, sharded as the weight `like` is."""
    if not is_sharded(like) or not is_sharded(tensor):
        return tensor
    if tensor.placements != like.placements:
        tensor = tensor.redistribute(like.device_mesh, like.placements)
    part: Any = tensor.to_local()
    # A redistribution may still be under way.
    return cast(Tensor, part.wait() if hasattr(part, "wait") else part)
