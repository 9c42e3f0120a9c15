"""How a step is computed: one file or folder a backend, one interface, one chooser.

A backend registers itself where it is defined. The packages named below are the places that are
looked in; docs/architecture.md says how to add one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

import torch

from .base import Backend, Candidate
from .cpu import NATIVE
from .cuda import TRITON
from .torch_ops.foreach import FOREACH
from .torch_ops.single_tensor import SINGLE_TENSOR

__all__ = ["BACKENDS", "Flags", "choose"]

logger = logging.getLogger(__name__)

# From the fastest.
BACKENDS: tuple[Backend, ...] = (NATIVE, TRITON, FOREACH, SINGLE_TENSOR)


class Flags(NamedTuple):
    """What a param group asks of its backend; see `AdamP`."""

    foreach: bool | None = None
    fused: bool | None = None
    differentiable: bool = False
    capturable: bool = False


def choose(candidate: Candidate, flags: Flags) -> Backend:
    """The backend of a weight: what the flags ask for, else the fastest that serves it.

    Raises:
        RuntimeError: if `foreach=True` or `fused=True` cannot be honoured.
    """
    if flags.differentiable:
        return _first_serving([SINGLE_TENSOR], candidate, "differentiable=True")
    if torch.compiler.is_compiling():
        # The compiler cannot look into our kernels, and makes one of multi-tensor operations.
        return FOREACH
    if flags.fused:
        fused = [backend for backend in BACKENDS if backend.is_fused]
        return _first_serving(fused, candidate, "fused=True")
    if flags.foreach:
        return _first_serving([FOREACH], candidate, "foreach=True")
    if flags.foreach is False:
        return _first_serving([SINGLE_TENSOR], candidate, "foreach=False")
    device = candidate.param.device.type
    by_default = [
        backend
        for backend in BACKENDS
        if backend.is_default_for(device) and not (backend.is_fused and flags.fused is False)
    ]
    return _first_serving(by_default, candidate, "the default")


def _first_serving(backends: Iterable[Backend], candidate: Candidate, flag: str) -> Backend:
    refusals = []
    for backend in backends:
        refusal = backend.refusal(candidate)
        if refusal is None:
            logger.debug("%s serves %s weights", backend.name, candidate.param.dtype)
            return backend
        refusals.append(f"{backend.name} {refusal}")
    param = candidate.param
    raise RuntimeError(
        f"{flag} cannot serve a {param.dtype} weight of shape {tuple(param.shape)} on "
        f"{param.device}: {'; '.join(refusals)}. Leave the flag at None to choose by weight."
    )
