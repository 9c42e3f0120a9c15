"""Steps of weights and state that are kept in fewer bits than a step is computed in.

A bfloat16 weight has 8 significant bits: an update below 1/512 of it is lost when the sum is
rounded to nearest. The remedies here keep no float32 copy. A compensated weight (Kahan) carries
what rounding cut off in a second 16-bit tensor; a stochastically rounded one moves up or down with
the probability that makes its expectation right. State may be kept in bfloat16, rounded
stochastically, since a second moment that changes by a thousandth a step would stand still too, or
in 8 bits with torchao's block-wise quantization.

This file loads tensors into working precision and stores them; a step is computed in between, from
moments as they are kept. The C kernel has a load and a store of its own for 16 bits.

Sources: Kahan, "Further remarks on reducing truncation errors", 1965; Zamirai et al., "Revisiting
BFloat16 Training", 2020, https://arxiv.org/abs/2010.06192; Dettmers et al., "8-bit Optimizers via
Block-wise Quantization", ICLR 2022, https://arxiv.org/abs/2110.02861.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .memory import working_dtype
from .sharding.dtensor import is_sharded

__all__ = [
    "Noise",
    "Precision",
    "as_moment",
    "is_low",
    "load",
    "load_quantizer",
    "load_weight",
    "new_moment",
    "store",
    "store_weight",
]

# What torchao's optimizers quantize by; smaller weights are not worth it.
_BLOCK_ELEMENTS = 256
_LEAST_ELEMENTS = 4096


@dataclass(frozen=True)
class Precision:
    """What a param group asks for; see `AdamP`."""

    rounding: str
    state_dtype: str | None

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> Precision:
        """The precision of a param group."""
        return cls(group["rounding"], group["state_dtype"])

    @property
    def is_full(self) -> bool:
        """Whether nothing is asked for."""
        return self.rounding == "nearest" and self.state_dtype is None

    @property
    def draws(self) -> bool:
        """Whether a step draws random numbers."""
        return self.rounding == "stochastic" or self.state_dtype is not None

    def check(self, dtype: torch.dtype, name: str) -> None:
        """Refuse a weight that cannot be had in this precision."""
        if self.rounding == "stochastic" and dtype == torch.float16:
            raise ValueError(
                f'{name} is float16, and rounding="stochastic" is for bfloat16; use '
                'rounding="kahan".'
            )
        if self.state_dtype and dtype == torch.float64:
            raise ValueError(
                f'{name} is float64, whose state is float64; state_dtype="{self.state_dtype}" is '
                "not; use state_dtype=None."
            )


def new_moment(param: Tensor, state_dtype: str | None, *, signed: bool = True) -> Tensor:
    """A moment of the weight before its first step, in memory as the weight is.

    Args:
        param: the weight.
        state_dtype: None for `working_dtype`, "bfloat16" or "8bit".
        signed: whether the moment can be negative, which 8 bits have to provide for.
    """
    if state_dtype == "8bit" and _fits_blocks(param):
        return _like(param, lambda part: _quantized_zeros(part, signed=signed))
    return torch.zeros_like(
        param, dtype=_dtype(param, state_dtype), memory_format=torch.preserve_format
    )


def as_moment(
    value: Tensor, param: Tensor, state_dtype: str | None, *, signed: bool = True
) -> Tensor:
    """A moment from a checkpoint in the precision that the weight's group has now."""
    becomes_8_bit = state_dtype == "8bit" and _fits_blocks(param)
    is_8_bit = _is_quantized(_part(value))
    if becomes_8_bit and is_8_bit:
        return value.to(param.device)
    if not becomes_8_bit and not is_8_bit:
        return value.to(dtype=_dtype(param, state_dtype), device=param.device)
    moment = new_moment(param, state_dtype, signed=signed)
    _part(moment).copy_(load(_part(value.to(param.device))))
    return moment


def is_low(moment: Tensor) -> bool:
    """Whether a moment is kept in fewer bits than a step is computed in."""
    return moment.dtype == torch.bfloat16 or _is_quantized(moment)


def load(tensor: Tensor) -> Tensor:
    """A moment or a gradient in working precision; itself where it is in it already."""
    full = _dequantized(tensor) if _is_quantized(tensor) else tensor
    return full.to(working_dtype(full.dtype))


def load_weight(param: Tensor, compensation: Tensor | None) -> Tensor:
    """A weight in working precision, with what rounding has cut off it so far."""
    wide = load(param)
    if compensation is None or wide is param:
        return wide
    return wide + _at_most_rounded(compensation, param)


def store(stored: Tensor, wide: Tensor, noise: Noise | None = None) -> Tensor:
    """Put a tensor back, rounded; returns what is kept of it, in working precision.

    A bfloat16 tensor is rounded stochastically if there is noise.
    """
    if stored is wide:
        return wide
    if noise is not None and stored.dtype == torch.bfloat16:
        wide = noise.round(wide)
    stored.copy_(wide)
    return wide


def store_weight(
    param: Tensor, wide: Tensor, compensation: Tensor | None, noise: Noise | None
) -> None:
    """Put a weight back; a compensation takes what rounding cuts off it."""
    store(param, wide, noise)
    if compensation is not None and wide is not param:
        compensation.copy_(wide - param)


def _at_most_rounded(compensation: Tensor, param: Tensor) -> Tensor:
    """The compensation, within what rounding can have cut off the weight as it is now.

    A weight that was assigned to since its last step (averaged, clipped, loaded) still has the
    compensation of the old one, which may be larger than the new weight.
    """
    limits = torch.finfo(param.dtype)
    # Half a unit in the last place, and below the normal numbers one unit.
    bound = param.abs().mul_(limits.eps / 2).clamp_(min=limits.smallest_normal * limits.eps)
    return torch.clamp(compensation, -bound, bound)


def _dequantized(tensor: Any) -> Tensor:
    full: Tensor = tensor.dequantize()
    if not tensor.signed:
        # What was rounded to 0 lay below half the smallest number of its block. A second moment of
        # 0 would be divided by as eps, which makes a step of thousands of learning rates.
        least = tensor.qmap[tensor.qmap > 0].min() / 2 * tensor.scale
        full = torch.maximum(full.view(len(least), -1), least.unsqueeze(1)).view(full.shape)
    return full


class Noise:
    """Random numbers that depend on a seed alone.

    Copies of a weight on several processes have to be rounded alike, whatever else their random
    number generators are used for.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self._device = device
        self._seed = seed
        self._generator: torch.Generator | None = None

    def round(self, wide: Tensor) -> Tensor:
        """Values that bfloat16 holds exactly: one of the two neighbours of each element."""
        if self._generator is None:
            self._generator = torch.Generator(self._device).manual_seed(self._seed)
        bits = wide.view(torch.int32)
        # 64 random bits at a time: four elements' share.
        words = torch.empty((wide.numel() + 3) // 4, dtype=torch.int64, device=self._device)
        words.random_(-(2**63), None, generator=self._generator)
        noise = words.view(torch.int16)[: wide.numel()].to(torch.int32).bitwise_and_(0xFFFF)
        noise = noise.view_as(wide)
        rounded = (bits + noise).bitwise_and_(-0x10000).view(torch.float32)
        # Infinity plus noise would be NaN.
        return torch.where(wide.isfinite(), rounded, wide)


@lru_cache(maxsize=1)
def load_quantizer() -> Any:
    """Torchao's tensor of 8-bit state.

    Raises:
        ImportError: if torchao is missing or too old.
    """
    try:
        from torchao.optim.subclass_8bit import OptimState8bit  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            'state_dtype="8bit" quantizes with torchao, which does not import '
            f'({error}); install it with: pip install "hf-adamp[low-precision]".'
        ) from error
    # What copy.deepcopy of an optimizer or its state_dict asks for, and torchao 0.18 lacks.
    OptimState8bit.implements(torch.ops.aten.clone.default)(_clone_quantized)
    return OptimState8bit


def _clone_quantized(_func: Any, _types: Any, args: Any, _kwargs: Any) -> Tensor:
    names, attributes = args[0].__tensor_flatten__()
    copies = {name: getattr(args[0], name).clone() for name in names}
    clone: Tensor = type(args[0]).__tensor_unflatten__(copies, attributes)
    return clone


def _is_quantized(tensor: Tensor) -> bool:
    return type(tensor).__name__ == "OptimState8bit"


def _fits_blocks(param: Any) -> bool:
    """Whether 8 bits hold a moment of this weight: as in torchao, if whole blocks of it do."""
    pieces = 1
    if is_sharded(param):
        for index, placement in enumerate(param.placements):
            if placement.is_shard():
                pieces *= param.device_mesh.size(index)
                if param.shape[placement.dim] % pieces:
                    return False
    numel: int = param.numel()
    return numel >= _LEAST_ELEMENTS and numel % (pieces * _BLOCK_ELEMENTS) == 0


def _quantized_zeros(param: Tensor, *, signed: bool) -> Tensor:
    zeros: Tensor = load_quantizer().zeros(
        param.shape, signed, _BLOCK_ELEMENTS, device=param.device
    )
    return zeros


def _like(param: Any, make: Callable[[Tensor], Tensor]) -> Tensor:
    """What `make` makes of the weight, or of this process's part of it."""
    if not is_sharded(param):
        return make(param)
    made: Tensor = type(param.data).from_local(
        make(param.to_local()), param.device_mesh, param.placements, run_check=False
    )
    return made


def _part(tensor: Any) -> Tensor:
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return part


def _dtype(param: Tensor, state_dtype: str | None) -> torch.dtype:
    return torch.bfloat16 if state_dtype == "bfloat16" else working_dtype(param.dtype)
