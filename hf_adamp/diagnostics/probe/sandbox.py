"""A model in float64 for the length of a `with`, and afterwards exactly as it was found.

Scale invariance is a statement about exact arithmetic. In float32 the change that a scaled weight
makes and the rounding that follows it look alike; in float64 they are eight digits apart.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Precise", "in_float64", "same_start"]

# Every norm's eps lies below, and nothing else that a model adds as a plain number of this size
# is meant to change what it computes.
_LARGEST_EPS = 0.01
_SHRINK = 1e-18
_NORMS = {"layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm"}
_ADDITIONS = {"add", "add_"}
_LOWER = {torch.float32, torch.bfloat16, torch.float16}
_CASTS = {"float", "half", "bfloat16"}
_GROUPED = {"grouped_mm", "_grouped_mm"}
_TORCH_ATTRIBUTES = set(nn.Module().__dict__)


class Precise(TorchFunctionMode):
    """Computes in float64 even where the model's code asks for less.

    Llama's norm, for one, casts its input to float32. `shrink_eps` also takes the eps of every
    norm down to a 1e-18th: the argument of torch's own norms, and small plain numbers that are
    added to a tensor. What is scale-invariant but for an eps is then so to rounding.
    """

    def __init__(self, *, shrink_eps: bool) -> None:
        super().__init__()
        self._shrinks = _NORMS | _ADDITIONS if shrink_eps else set()

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _CASTS and len(args) == 1 and isinstance(args[0], Tensor):
            return args[0].to(torch.float64) if args[0].is_floating_point() else args[0].double()
        if name in _GROUPED and _is_grouped(*args, **(kwargs or {})):
            return _grouped_product(*args, **(kwargs or {}))
        change = _shrunk if name in self._shrinks else _widened
        return func(*map(change, args), **{k: change(v) for k, v in (kwargs or {}).items()})


def _is_grouped(rows: Tensor, weights: Tensor, offs: Tensor | None = None, **_: Any) -> bool:
    return offs is not None and rows.ndim == 2 and weights.ndim == 3


def _grouped_product(rows: Tensor, weights: Tensor, offs: Tensor, **_: Any) -> Tensor:
    """Multiply each expert's rows by its weight; torch's kernel knows no float64."""
    ends = offs.tolist()
    parts = [rows[a:b] @ w for a, b, w in zip([0, *ends], ends, weights, strict=False)]
    return torch.cat([*parts, rows.new_zeros(len(rows) - ends[-1], weights.shape[-1])])


def _widened(value: Any) -> Any:
    # A dtype hashes; many other arguments do not.
    return torch.float64 if isinstance(value, torch.dtype) and value in _LOWER else value


def _shrunk(value: Any) -> Any:
    if isinstance(value, float) and 0 < value <= _LARGEST_EPS:
        return value * _SHRINK
    return _widened(value)


@contextmanager
def in_float64(model: nn.Module, generator: torch.Generator) -> Iterator[dict[str, nn.Parameter]]:
    """Put float64 copies in the place of parameters and buffers, and training's normalization on.

    A parameter whose elements are all the same is as its author initialised it: a bias of 0, a gain
    of 1. Training will move it, so its copy is moved at random; otherwise a bias of 0 would make
    weights look invariant that are not from the second step on.

    Everything runs as in evaluation except normalization by running statistics, which training
    takes from the batch. A module in evaluation inside a model in training was put there on
    purpose, and stays.

    Yields:
        The copies by the names of `named_parameters()`, without the repetitions of tied ones.
    """
    kept = [(m, dict(m.__dict__), dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    default = torch.get_default_dtype()
    was_training = model.training
    with _kept_noise({p.device for p in model.parameters() if p.device.type == "cuda"}):
        try:
            copies = _swap(model, generator)
            training = {
                id(m): _uses_batch(m) and (m.training or not was_training) for m in model.modules()
            }
            # Some modules drop here what they keep for evaluation.
            model.train()
            for module in model.modules():
                module.training = training[id(module)]
            # Tensors that the forward pass makes from plain numbers.
            torch.set_default_dtype(torch.float64)
            yield copies
        finally:
            torch.set_default_dtype(default)
            for module, attributes, parameters, buffers in kept:
                module.__dict__.clear()
                module.__dict__.update(attributes)
                module._buffers.clear()
                module._buffers.update(buffers)
                for name, parameter in parameters.items():
                    # Not through the dictionary: nn.LSTM keeps a second list of its weights.
                    setattr(module, name, parameter)


def _swap(model: nn.Module, generator: torch.Generator) -> dict[str, nn.Parameter]:
    copies = {
        id(p): nn.Parameter(_copy(p, generator), requires_grad=True)
        for p in model.parameters()
        if p.is_floating_point()
    }
    named = {name: copies[id(p)] for name, p in model.named_parameters() if id(p) in copies}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) in copies:
                setattr(module, name, copies[id(parameter)])
        tensors = [(module._buffers, *item) for item in module._buffers.items()]
        # weight_norm as a hook and some models keep plain tensors beside the buffers.
        tensors += [(module.__dict__, *item) for item in module.__dict__.items()]
        for holder, name, tensor in tensors:
            if isinstance(tensor, Tensor):
                dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
                holder[name] = tensor.detach().to(dtype, copy=True)
    return named


def _copy(parameter: Tensor, generator: torch.Generator) -> Tensor:
    values = parameter.detach().to(torch.float64, copy=True).contiguous()
    if values.numel() < 2 or bool((values != values.flatten()[0]).any()):
        return values
    noise = torch.randn(values.shape, generator=generator, dtype=torch.float64).to(values.device)
    # A gain of 1e-6, as on residual branches, is an initial value as well.
    if abs(float(values.flatten()[0])) < _LARGEST_EPS:
        return noise * (0.1 if values.ndim < 2 else 0.02)
    return values * (1 + 0.1 * noise)


def _uses_batch(module: nn.Module) -> bool:
    """Whether a module normalizes by the batch in training and by running statistics otherwise."""
    base = nn.modules.batchnorm._NormBase
    return isinstance(module, base) or {"running_mean", "running_var"} <= set(module._buffers)


@contextmanager
def _kept_noise(devices: set[torch.device]) -> Iterator[None]:
    """Leave the random number generators as they were found."""
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    with torch.random.fork_rng(list(devices)):
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(numpy_state)


@contextmanager
def same_start(model: nn.Module) -> Iterator[None]:
    """Let a forward pass begin as every other did: same noise, and nothing kept from the last.

    In evaluation some modules keep what they computed from a weight (LeViT its attention biases).
    """
    torch.manual_seed(0)
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    kept = [(module, dict(module.__dict__)) for module in model.modules()]
    for module, attributes in kept:
        for name, value in attributes.items():
            if name not in _TORCH_ATTRIBUTES and type(value) in (dict, list, set):
                module.__dict__[name] = copy.copy(value)
    try:
        yield
    finally:
        for module, attributes in kept:
            module.__dict__.clear()
            module.__dict__.update(attributes)
