"""`projection.total` and `decide` by the C kernel.

They are some forty small operations of torch, each longer to begin than to do: with what a kernel
leaves in the caches, a tenth of a step of ResNet-50. The kernel has a loop or two for each.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .. import projection
from ..projection import Decision, Layout, Statistic, Views
from .native_library import NativeSegments, load

__all__ = ["decide", "total"]


def total(stats: Tensor, layout: Layout) -> Tensor:
    """Compute `projection.total`."""
    library, _ = load()
    if library is None or not _can_read(stats):
        return projection.total(stats, layout)
    totals = stats.new_empty(len(Statistic) + 1, len(layout.offsets) - 1)
    library.hf_adamp_total(
        stats.data_ptr(),
        stats.stride(0),
        ctypes.byref(_segments(layout)),
        layout.channel_limit.data_ptr(),
        layout.eps.data_ptr(),
        totals.data_ptr(),
    )
    return totals


def decide(
    stats: Tensor, totals: Tensor, layout: Layout, decay: Tensor, projected_decay: Tensor
) -> Decision:
    """Compute `projection.decide`."""
    library, _ = load()
    if library is None or not _can_read(stats):
        return projection.decide(stats, totals, layout, decay, projected_decay)
    weights = len(layout.extents)
    channel, layer = stats.new_empty(2, weights, dtype=torch.bool)
    shift = stats.new_empty(stats.shape[1])
    # They are these themselves where they are contiguous; the others must outlive the call.
    inputs = [layout.layer_limit, layout.eps, decay.contiguous(), projected_decay.contiguous()]
    totals = totals.contiguous()
    library.hf_adamp_decide(
        stats.data_ptr(),
        stats.stride(0),
        totals.data_ptr(),
        ctypes.byref(_segments(layout)),
        *(tensor.data_ptr() for tensor in (*inputs, channel, layer, shift)),
    )
    return Decision(Views(channel, layer), shift)


def _can_read(stats: Tensor) -> bool:
    return stats.is_cpu and stats.dtype == torch.float32 and stats.stride(1) == 1


def _segments(layout: Layout) -> NativeSegments:
    weight = layout.segments.weight.data_ptr() if layout.segments else None
    return NativeSegments(layout.offsets.data_ptr(), weight, len(layout.offsets) - 1)
