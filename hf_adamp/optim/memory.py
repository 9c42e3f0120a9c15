"""What a tensor's memory is like: which tensors an address tells all of, and which it does not."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "PLAIN",
    "are_row_major",
    "has_no_address",
    "is_transformed",
    "readable",
    "working_dtype",
]

# Classes whose instances are what they seem to be.
PLAIN = {Tensor, torch.nn.Parameter}


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of moments, statistics and arithmetic: float32, for float64 weights float64.

    In float16 the square of a gradient below 2.4e-4 is 0 and eps=1e-8 is 0 too, so a step divides
    by zero; in bfloat16 a second moment with beta2=0.999 stops moving. Hence never below float32.
    """
    return torch.promote_types(dtype, torch.float32)


def is_transformed(tensor: Tensor) -> bool:
    """Whether `torch.func` has wrapped the tensor: a batch of weights looks like one."""
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return wrapped


def has_no_address(tensor: Tensor) -> bool:
    """Whether a kernel that is handed an address could not read the tensor.

    So it is with subclasses, which may keep their numbers elsewhere (DTensor), with what a mode
    fakes, and with what `torch.func` wraps.
    """
    return (
        type(tensor) not in PLAIN
        or is_transformed(tensor)
        or bool(torch._C._len_torch_dispatch_stack())
    )


def readable(grads: list[Tensor | None]) -> list[Tensor | None]:
    """The same gradients, each with its numbers in memory.

    Autograd hands out some that only say what they are: the negative of another tensor's memory, or
    zeros that have no memory at all.
    """
    try:
        if not any(map(Tensor.is_neg, grads)) and not any(  # type: ignore[arg-type]
            map(Tensor._is_zerotensor, grads)  # type: ignore[arg-type]
        ):
            return grads
    except TypeError:  # A weight without a gradient.
        pass
    return [None if grad is None else _read(grad) for grad in grads]


def _read(grad: Tensor) -> Tensor:
    if grad._is_zerotensor():
        return torch.zeros(grad.shape, dtype=grad.dtype, device=grad.device)
    return grad.resolve_neg()


def are_row_major(*tensors: Tensor) -> bool:
    """Whether all lie in memory alike, without gaps, one row after the other.

    True of contiguous weights and, for instance, of channels_last ones: each row is dense there
    too, its elements in an order that sums do not mind.
    """
    first = tensors[0]
    if all(map(Tensor.is_contiguous, tensors)):
        return True
    stride = first.stride()
    if any(tensor.stride() != stride for tensor in tensors[1:]):
        return False
    if first.ndim < 2 or not first.numel() or stride[0] != first[0].numel():
        return False
    row = first[0]
    by_stride = sorted(range(row.ndim), key=row.stride, reverse=True)
    return row.permute(by_stride).is_contiguous()
