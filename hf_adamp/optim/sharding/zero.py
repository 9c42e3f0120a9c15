"""DeepSpeed ZeRO: which elements of which weights are in a flat tensor.

ZeRO puts flat float32 tensors in the place of an optimizer's weights. In stages 1 and 2, and in its
BF16 optimizer, the weights of a group lie in one flat buffer, of which each process steps an equal
range: their addresses tell where. In stage 3 each weight is cut by itself, and a flat tensor holds
this process's parts of some weights, one after the other.

DeepSpeed is never imported here: where it is at work, it has been. What is read is checked by
itself (a flat tensor has the size that its parts add up to, and the values that its weights have)
and what is not recognised is refused, since a wrong guess would train on without a word.

Source: deepspeed/runtime/zero/stage_1_and_2.py, stage3.py and runtime/bf16_optimizer.py, 0.19.8.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.parameter import is_lazy

from ..layout import Peers
from .flat import FlatTensor, FlatWeight
from .refusals import REMEDY, refuse_cut

__all__ = ["full_shape", "is_loaded", "is_partitioned", "known_shape", "read_flat"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_loaded() -> bool:
    """Whether DeepSpeed can be at work."""
    return "deepspeed" in sys.modules


def is_partitioned(param: Tensor) -> bool:
    """Whether this is a weight of stage 3, empty where nobody has gathered it."""
    return is_loaded() and hasattr(param, "ds_shape")


def full_shape(param: Any) -> torch.Size:
    """The shape of a weight, also where stage 3 has taken its elements away."""
    return torch.Size(param.ds_shape) if is_partitioned(param) else param.shape


def known_shape(param: Tensor) -> torch.Size | None:
    """The same, or None where a lazy module has not given the weight a shape yet."""
    return None if is_lazy(param) else full_shape(param)


def read_flat(
    tensor: Tensor, params: Sequence[Tensor], names: Sequence[str], group: Mapping[str, Any]
) -> FlatTensor:
    """Which elements of a group's weights are in a flat tensor that has taken their place.

    Args:
        tensor: (n,) what DeepSpeed gives the optimizer to step.
        params: the weights that the group was made with.
        names: what messages call them.
        group: the group.

    Raises:
        RuntimeError: for a way of partitioning that is not recognised.
    """
    _refuse_what_may_hang()
    live: list[Any] = []
    for param, name in zip(params, names, strict=True):
        refuse_cut(param, name)
        # DeepSpeed leaves out what is frozen, or empty.
        if param.requires_grad and full_shape(param).numel():
            live.append(param)
    if not live:
        raise _unknown("no weight of its group is trainable")
    if group.get("moe") or any(getattr(param, "allreduce", True) is False for param in live):
        raise _unknown("it is partitioned by experts (MoE)")
    read = _stage3 if is_partitioned(live[0]) else _stage1
    return read(tensor, live)


def _refuse_what_may_hang() -> None:
    autocast = sys.modules.get("deepspeed.runtime.torch_autocast")
    if autocast is None or not autocast.is_autocast_initialized():
        return
    # Each process then decides by itself whether to skip a step; the others would wait for it.
    if autocast.get_autocast_dtype() == torch.float16:
        raise _unknown(
            "float16 under DeepSpeed's torch_autocast skips steps on some processes only; use "
            "bfloat16, or the section fp16"
        )


def _stage1(tensor: Tensor, params: Sequence[Any]) -> FlatTensor:
    """Stages 1 and 2, and the BF16 optimizer."""
    # Two ways to know how large the buffer is, its storage and the processes' parts: if they
    # differ, this is a kind of ZeRO that nobody has looked at.
    group = getattr(params[0], "_dp_group", None)
    world, rank = _size(group), _rank(group)
    width = tensor.numel()
    base = min(param.storage_offset() for param in params)
    storages = {param.untyped_storage().data_ptr() for param in params}
    there = params[0].untyped_storage().nbytes() // params[0].element_size() - base
    if len(storages) > 1 or there != width * world:
        raise _unknown(
            f"{world} processes with {width} elements each do not add up to the {there} of its "
            "group's buffer"
        )
    weights = []
    end = 0
    # By address, not by number: `round_robin_gradients` lays weights out in another order.
    for param in sorted(params, key=Tensor.storage_offset):
        at = param.storage_offset() - base
        if at < end or not param.is_contiguous():
            raise _unknown("weights overlap in its group's buffer")
        end = at + param.numel()
        # Where process r's range begins, seen from the weight's first element, and kept inside it.
        bounds = tuple(min(max(r * width - at, 0), param.numel()) for r in range(world + 1))
        weight = FlatWeight(param, param.shape, bounds, max(at - rank * width, 0))
        weights.append(weight)
        _compare(tensor, weight, rank, param.detach().view(-1)[bounds[rank] : bounds[rank + 1]])
    return FlatTensor(tensor, tuple(weights), rank, Peers(group, _device_type()))


def _stage3(tensor: Any, params: Sequence[Any]) -> FlatTensor:
    group = params[0].ds_process_group
    world, rank = _size(group), _rank(group)
    # A sub-group's tensor is named after its first and its last weight.
    first, _, last = str(getattr(tensor, "ds_id", "")).partition("_")
    numbers = [str(param.ds_id) for param in params]
    if first not in numbers or last not in numbers:
        raise _unknown("its sub-group is not one of its param group's weights")
    weights = []
    end = 0
    for param in params[numbers.index(first) : numbers.index(last) + 1]:
        part, numel = param.ds_tensor.ds_numel, param.ds_numel
        _refuse_variants(param, group)
        if part * world < numel or param.ds_tensor.numel() != part:
            raise _unknown("a weight's parts do not add up to it, or are not in memory")
        # Parts are equal, so the last ones reach beyond the weight: that is padding.
        bounds = tuple(min(r * part, numel) for r in range(world + 1))
        weight = FlatWeight(param, full_shape(param), bounds, end)
        weights.append(weight)
        end += part
        here = bounds[rank + 1] - bounds[rank]
        _compare(tensor, weight, rank, param.ds_tensor.detach().view(-1)[:here])
    if end != tensor.numel():
        raise _unknown(f"its parts have {end} elements and the tensor {tensor.numel()}")
    return FlatTensor(tensor, tuple(weights), rank, Peers(group, _device_type()))


def _refuse_variants(param: Any, group: Any) -> None:
    """Variants of stage 3 that nobody has held against one process."""
    if hasattr(param, "comm"):
        raise _unknown("MiCS is on")
    engine = getattr(param, "_z3_optimizer", None)
    if getattr(param, "nvme_swapper", None) or getattr(engine, "swap_optimizer", False):
        raise _unknown("it is offloaded to NVMe")
    if param.ds_process_group is not group:
        raise _unknown("its weights are partitioned over different processes")


def _compare(tensor: Tensor, weight: FlatWeight, rank: int, expected: Tensor) -> None:
    """Whether a flat tensor has the elements that the model has, to the bit."""
    size = weight.bounds[rank + 1] - weight.bounds[rank]
    found = tensor.detach()[weight.offset : weight.offset + size].to(expected)
    # As integers, since NaN equals nothing.
    bits = _INTEGERS[expected.element_size()]
    if not torch.equal(found.view(bits), expected.contiguous().view(bits)):
        raise _unknown(
            f"its values are not those of the model's weight of shape {tuple(weight.shape)}, which "
            "was changed outside of DeepSpeed, or lies elsewhere than is known"
        )


def _size(group: Any) -> int:
    return distributed.get_world_size(group) if distributed.is_initialized() else 1


def _rank(group: Any) -> int:
    return distributed.get_rank(group) if distributed.is_initialized() else 0


def _device_type() -> str:
    """Where tensors have to be for processes to talk; with offload not where the weights are."""
    name: str = sys.modules["deepspeed.accelerator"].get_accelerator().device_name()
    return name


def _unknown(reason: str) -> RuntimeError:
    return RuntimeError(
        "the weights in a flat tensor of DeepSpeed ZeRO cannot be found, so nothing would ever be "
        f"projected: {reason}; {REMEDY}."
    )
