"""How a step is computed: one file a backend, one interface, one chooser."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..bucket import Bucket
from ..projection import Decision
from . import cuda_triton, native, single_tensor, torch_fused
from . import foreach as foreach_backend

__all__ = ["Backend", "Flags", "choose"]

logger = logging.getLogger(__name__)


class Backend(Protocol):
    """Accumulates and applies; never decides.

    The weights of a bucket are of one class, device and dtype, as are their gradients, and all of
    them or none are row-major (`are_row_major`), so one stands for all in `refusal`.
    """

    @property
    def name(self) -> str:
        """How messages name it."""
        ...

    @property
    def chunk_elements(self) -> int | None:
        """How many elements are best decided at once; None for all."""
        ...

    def refusal(self, bucket: Bucket) -> str | None:
        """Why the bucket cannot be served, or None where it can."""
        ...

    def accumulate(self, bucket: Bucket, stats: Tensor, *, recording: bool) -> Any:
        """Update the moments and fill the bucket's rows of the (5, R) statistics buffer.

        Returns:
            What `apply` needs to finish.
        """
        ...

    def apply(self, bucket: Bucket, stats: Tensor, decision: Decision | None, state: Any) -> None:
        """Write the weights; `decision` is None where no weight of the section has rows."""
        ...


# From the fastest; an explicit flag chooses among the names that it stands for.
_FUSED: tuple[Backend, ...] = (native, cuda_triton, torch_fused)
_BY_DEFAULT: tuple[Backend, ...] = (*_FUSED, foreach_backend, single_tensor)


@dataclass(frozen=True)
class Flags:
    """What a param group asks of its backend; see `AdamP`."""

    foreach: bool | None = None
    fused: bool | None = None
    differentiable: bool = False


def choose(bucket: Bucket, flags: Flags) -> Backend:
    """The backend of a bucket: what the flags ask for, else the fastest that serves all of it.

    Raises:
        RuntimeError: if `foreach=True` or `fused=True` cannot be honoured.
    """
    if flags.differentiable:
        return _first_serving((single_tensor,), bucket, "differentiable=True")
    if torch.compiler.is_compiling():
        return foreach_backend
    if flags.fused:
        return _first_serving(_FUSED, bucket, "fused=True")
    if flags.foreach:
        return _first_serving((foreach_backend,), bucket, "foreach=True")
    if flags.foreach is False:
        return _first_serving((single_tensor,), bucket, "foreach=False")
    candidates = _BY_DEFAULT if flags.fused is None else (foreach_backend, single_tensor)
    return _first_serving(candidates, bucket, "the default")


def _first_serving(candidates: Sequence[Backend], bucket: Bucket, flag: str) -> Backend:
    refusals = []
    for backend in candidates:
        refusal = backend.refusal(bucket)
        if refusal is None:
            logger.debug("%s serves %d weights", backend.name, len(bucket.params))
            return backend
        refusals.append(f"{backend.name} {refusal}")
    param = bucket.params[0]
    raise RuntimeError(
        f"{flag} cannot serve a {param.dtype} weight of shape {tuple(param.shape)} on "
        f"{param.device}: {'; '.join(refusals)}. Leave the flag at None to choose by weight."
    )
