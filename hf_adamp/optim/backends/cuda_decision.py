"""`projection.total` and `decide` by Triton kernels: a launch each, in the place of fifty.

Both wait for nothing and look at no value on the host, so a CUDA graph may capture them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import projection
from ..projection import Decision, Layout, Statistic, Views
from . import cuda_triton

__all__ = ["decide", "total"]

# Rows that a program takes at a time.
_BLOCK = 1024


def total(stats: Tensor, layout: Layout) -> Tensor:
    """Compute `projection.total`."""
    if not _can_read(stats):
        return projection.total(stats, layout)
    segments = len(layout.offsets) - 1
    totals = stats.new_empty(len(Statistic) + 1, segments)
    cuda_triton.run_kernel(
        "total",
        (segments,),
        stats.device,
        segment_weight=layout.segments.weight if layout.segments else layout.offsets,
        limit=layout.channel_limit,
        totals=totals,
        **_shared(stats, layout),
    )
    return totals


def decide(
    stats: Tensor, totals: Tensor, layout: Layout, decay: Tensor, projected_decay: Tensor
) -> Decision:
    """Compute `projection.decide`."""
    if not _can_read(stats):
        return projection.decide(stats, totals, layout, decay, projected_decay)
    weights = len(layout.extents)
    channel, layer = torch.empty(2, weights, dtype=torch.bool, device=stats.device)
    shift = stats.new_empty(stats.shape[1])
    cuda_triton.run_kernel(
        "decide",
        (weights,),
        stats.device,
        totals=totals.contiguous(),
        weight_segments=layout.segments.offsets if layout.segments else layout.offsets,
        limit=layout.layer_limit,
        decay=decay.contiguous(),
        projected_decay=projected_decay.contiguous(),
        channel=channel.view(torch.uint8),
        layer=layer.view(torch.uint8),
        shift=shift,
        **_shared(stats, layout),
    )
    return Decision(Views(channel, layer), shift)


def _can_read(stats: Tensor) -> bool:
    return stats.dtype == torch.float32 and stats.stride(1) == 1


def _shared(stats: Tensor, layout: Layout) -> dict[str, Any]:
    """The arguments that both kernels take."""
    return {
        "stats": stats,
        "stride": stats.stride(0),
        "offsets": layout.offsets,
        "eps": layout.eps,
        "segments": len(layout.offsets) - 1,
        "HAS_SEGMENTS": layout.segments is not None,
        "BLOCK": _BLOCK,
    }
