"""A step that is captured in a CUDA graph: when a replay is right, and what it reads must stay.

A graph repeats launches with the addresses and numbers of the step that was captured. What the host
has put into them stays as it was, and what they read must be neither freed nor overwritten.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["capture_refusal", "is_captured", "keep_for_graphs"]

# Nobody tells when a graph is gone, so what it reads is kept for good: a few numbers for each row
# and weight, for each step that was captured.
_READ_BY_GRAPHS: list[Any] = []


def is_captured() -> bool:
    """Whether what is launched now becomes part of a CUDA graph instead of being run."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def keep_for_graphs(read: Any) -> None:
    """Keep what a captured step reads, for as long as the process lives."""
    _READ_BY_GRAPHS.append(read)


def capture_refusal(
    *, is_first: bool = False, counts_on_host: bool = False, draws: bool = False
) -> str | None:
    """Why a replay of a step would be wrong, with what to do about it; None where it is right.

    Args:
        is_first: whether state or tables have to be made, which a replay would not have.
        counts_on_host: whether the step depends on a count of steps that the host keeps.
        draws: whether it draws random numbers, whose seeds come from the host.
    """
    if counts_on_host:
        return "counts its steps on the host; set capturable=True"
    if draws:
        return (
            "would round with the same random numbers in each replay; use rounding='nearest' or "
            "'kahan', and state_dtype=None"
        )
    if is_first:
        return "is the first with these weights; take a few steps with them before the capture"
    return None
