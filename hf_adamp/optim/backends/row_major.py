"""Weights whose memory can be walked row by row without strides."""

from __future__ import annotations

from torch import Tensor

__all__ = ["are_row_major"]


def are_row_major(*tensors: Tensor) -> bool:
    """Whether all lie in memory alike, without gaps, one row after the other.

    True of contiguous weights and, for instance, of channels_last ones: each row is dense there
    too, its elements in an order that sums do not mind.
    """
    first = tensors[0]
    stride = first.stride()
    if any(tensor.stride() != stride for tensor in tensors[1:]):
        return False
    if first.is_contiguous():
        return True
    if first.ndim < 2 or not first.numel() or stride[0] != first[0].numel():
        return False
    row = first[0]
    by_stride = sorted(range(row.ndim), key=row.stride, reverse=True)
    return row.permute(by_stride).is_contiguous()
