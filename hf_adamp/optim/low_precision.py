"""Steps of weights and state that are kept in fewer bits than a step is computed in.

A bfloat16 weight has 8 significant bits: an update below 1/512 of it is lost when the sum is
rounded to nearest. The remedies here keep no float32 copy. A compensated weight (Kahan) carries
what rounding cut off in a second 16-bit tensor; a stochastically rounded one moves up or down with
the probability that makes its expectation right. State may be kept in bfloat16, rounded
stochastically, since a second moment that changes by a thousandth a step would stand still too, or
in 8 bits with torchao's block-wise quantization.

A piece of the weights at a time is widened to float32, stepped as any other, and put back, so the
memory on top is that of a piece.

Sources: Kahan, "Further remarks on reducing truncation errors", 1965; Zamirai et al., "Revisiting
BFloat16 Training", 2020, https://arxiv.org/abs/2010.06192; Dettmers et al., "8-bit Optimizers via
Block-wise Quantization", ICLR 2022, https://arxiv.org/abs/2110.02861.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .backends import Flags
from .bucket import Bucket, working_dtype
from .distributed import Reducer, is_sharded
from .projection import StepRecord
from .step import run

__all__ = ["Precision", "as_moment", "load_quantizer", "new_moment", "step_in_low_precision"]

# Of all that is widened at once, unless one weight is larger.
_PIECE_ELEMENTS = 1 << 20
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
    _part(moment).copy_(_widened(_part(value.to(param.device))))
    return moment


def step_in_low_precision(
    bucket: Bucket,
    flags: Flags,
    precision: Precision,
    *,
    compensations: Sequence[Tensor | None],
    seeds: Sequence[int],
    reducer: Reducer | None = None,
    recording: bool = False,
) -> list[StepRecord]:
    """Update the weights of a bucket that are kept in low precision, or whose state is.

    Args:
        bucket: the weights, this process's parts where they are sharded.
        flags: what the bucket asks of its backend.
        precision: what weights and state are rounded to, and how.
        compensations: with rounding="kahan" what rounding has cut off each weight so far, None for
            those that are in working precision.
        seeds: where each weight's random numbers begin, the same on all processes that hold a copy
            of it.
        reducer: as for `step.run`. Weights are widened all at once where any is sharded, since
            processes cannot meet once a piece.
        recording: as for `step.run`.

    Returns:
        The records of all pieces.
    """
    bounds = [(0, len(bucket.params))] if reducer is not None else list(_pieces(bucket.params))
    records: list[StepRecord] = []
    for begin, end in bounds:
        piece = bucket.part(begin, end)
        wide = _widen(piece, compensations[begin:end])
        found = run([wide], [flags], reducer=reducer, recording=recording)
        _narrow(wide, piece, precision, compensations[begin:end], seeds[begin:end])
        stored = {id(w): param for w, param in zip(wide.params, piece.params, strict=True)}
        records += [
            replace(record, params=tuple(stored.get(id(p), p) for p in record.params))
            for record in found
        ]
    return records


def _pieces(params: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    begin = size = 0
    for index, param in enumerate(params):
        if size and size + param.numel() > _PIECE_ELEMENTS:
            yield begin, index
            begin, size = index, 0
        size += param.numel()
    if params:
        yield begin, len(params)


def _widen(piece: Bucket, compensations: Sequence[Tensor | None]) -> Bucket:
    """The piece in working precision; tensors that are in it already are not copied."""
    params = list(map(_widened, piece.params))
    for wide, param, compensation in zip(params, piece.params, compensations, strict=False):
        if wide is not param and compensation is not None:
            wide.add_(_at_most_rounded(compensation, param))
    return replace(
        piece,
        params=params,
        grads=list(map(_widened, piece.grads)),
        moments=tuple(list(map(_widened, moment)) for moment in piece.moments),
    )


def _at_most_rounded(compensation: Tensor, param: Tensor) -> Tensor:
    """The compensation, within what rounding can have cut off the weight as it is now.

    A weight that was assigned to since its last step (averaged, clipped, loaded) still has the
    compensation of the old one, which may be larger than the new weight.
    """
    limits = torch.finfo(param.dtype)
    # Half a unit in the last place, and below the normal numbers one unit.
    bound = param.abs().mul_(limits.eps / 2).clamp_(min=limits.smallest_normal * limits.eps)
    return torch.clamp(compensation, -bound, bound)


def _widened(tensor: Tensor) -> Tensor:
    full = _dequantized(tensor) if _is_quantized(tensor) else tensor
    return full.to(working_dtype(full.dtype))


def _dequantized(tensor: Any) -> Tensor:
    full: Tensor = tensor.dequantize()
    if not tensor.signed:
        # What was rounded to 0 lay below half the smallest number of its block. A second moment of
        # 0 would be divided by as eps, which makes a step of thousands of learning rates.
        least = tensor.qmap[tensor.qmap > 0].min() / 2 * tensor.scale
        full = torch.maximum(full.view(len(least), -1), least.unsqueeze(1)).view(full.shape)
    return full


def _narrow(
    wide: Bucket,
    piece: Bucket,
    precision: Precision,
    compensations: Sequence[Tensor | None],
    seeds: Sequence[int],
) -> None:
    """Put the piece back, rounded."""
    for index, param in enumerate(piece.params):
        noise = _Noise(param.device, seeds[index])
        for moments, wide_moments in zip(piece.moments, wide.moments, strict=True):
            _put(moments[index], wide_moments[index], noise)
        result = wide.params[index]
        if result is param:
            continue
        _put(param, result, noise if precision.rounding == "stochastic" else None)
        compensation = compensations[index] if compensations else None
        if compensation is not None:
            compensation.copy_(result - param)


def _put(stored: Tensor, wide: Tensor, noise: _Noise | None) -> None:
    if stored is wide:
        return
    if noise is not None and stored.dtype == torch.bfloat16:
        wide = noise.round(wide)
    stored.copy_(wide)


class _Noise:
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
