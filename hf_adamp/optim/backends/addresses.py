"""What kernels share that are handed addresses: whom they can serve, and where tensors lie."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import Piece, Placement
from ..memory import are_row_major, has_no_address, working_dtype
from .base import Candidate

__all__ = ["ROUNDINGS", "addresses_of", "as_piece", "memory_refusal", "pointers_of"]

# How kernels number the values of `rounding`.
ROUNDINGS = {"nearest": 0, "kahan": 1, "stochastic": 2}


def memory_refusal(candidate: Candidate) -> str | None:
    """Why an address and a count do not tell all of such a weight, or None where they do."""
    param, wanted = candidate.param, working_dtype(candidate.param.dtype)
    for tensor in candidate.tensors:
        if has_no_address(tensor):
            return f"reads memory that a {type(tensor).__name__} may not have"
    kinds = {moment.dtype for moment in candidate.moments}
    if not kinds <= {wanted} and kinds != {torch.bfloat16}:
        return f"needs state in {wanted}, not {', '.join(map(str, kinds - {wanted}))}"
    if candidate.compensation is not None and candidate.compensation.dtype != param.dtype:
        return f"needs a compensation in {param.dtype}, not {candidate.compensation.dtype}"
    if not are_row_major(*candidate.tensors):
        return "needs weight, gradient and state in the same dense, row-major layout"
    pieces = [piece for placement in candidate.placements for piece in placement.pieces or ()]
    if pieces and not all(map(Tensor.is_contiguous, candidate.tensors)):
        return "needs contiguous memory where a tensor holds pieces of rows"
    if any(piece.stride[1] != 1 for piece in pieces):
        return "needs the elements of a row side by side"
    return None


def as_piece(numel: int, placement: Placement) -> Piece:
    """A tensor as one piece: all of its rows, or a vector."""
    if placement.extent is None:
        return Piece(0, 0, (1, numel), (numel, 1))
    rows = placement.extent.rows
    columns = numel // rows if rows else 0
    return Piece(0, 0, (rows, columns), (columns, 1))


def pointers_of(tensors: Sequence[Tensor | None]) -> list[int | None]:
    """Where each tensor begins, as torch says; None for None."""
    try:
        return list(map(Tensor.data_ptr, tensors))  # type: ignore[arg-type]
    except TypeError:  # A weight without a gradient.
        return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def addresses_of(
    tensors: Sequence[Tensor | None], pointers: Sequence[int | None] | None = None
) -> array[int]:
    """Where each tensor begins; 0 for None, 1 for one without elements.

    Raises:
        RuntimeError: for a tensor whose memory was taken away.
    """
    found = pointers_of(tensors) if pointers is None else pointers
    if all(found):
        return array("q", found)  # type: ignore[arg-type]
    pairs = zip(found, tensors, strict=True)
    return array("q", [pointer or _empty(tensor) for pointer, tensor in pairs])


def _empty(tensor: Tensor | None) -> int:
    """Tell a tensor without elements, whose weight takes a step, from one without memory."""
    if tensor is None:
        return 0
    if tensor.numel():
        raise RuntimeError(
            f"a weight, gradient or state of shape {tuple(tensor.shape)} has no memory; "
            "give it back before the step."
        )
    return 1
