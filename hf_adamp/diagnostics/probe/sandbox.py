"""A model in float64 for the length of a `with`, and afterwards exactly as it was found.

Scale invariance is a statement about exact arithmetic. In float32 the change that a scaled weight
makes and the rounding that follows it look alike; in float64 they are eight digits apart.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_adamp.diagnostics.probe.state import State, cached_functions

__all__ = ["FURTHER", "SHRINK", "Precise", "Sandbox", "in_float64"]

# Every norm's eps lies below, and nothing else that a model adds as a plain number of this size
# is meant to change what it computes.
_LARGEST_EPS = 0.01
SHRINK = 1e-18
# Where this makes another output, eps was not small beside what it is added to.
FURTHER = 1e-20
_NORMS = {"layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm"}
_ADDITIONS = {"add", "add_"}
# Weights with a root mean square below are as good as 0: SAM's initialiser has a standard deviation
# of 1e-10, and what is left of a signal behind two of them is smaller than any norm's eps.
_TINY = 1e-5
_LOWER = {torch.float32, torch.bfloat16, torch.float16}
_CASTS = {"float", "half", "bfloat16"}
_GROUPED = {"grouped_mm", "_grouped_mm"}


class Precise(TorchFunctionMode):
    """Computes in float64 even where the model's code asks for less.

    Llama's norm, for one, casts its input to float32. `shrink_eps` also takes the eps of every
    norm down to a 1e-18th: the argument of torch's own norms, and small plain numbers that are
    added to a tensor. What is scale-invariant but for an eps is then so to rounding.
    """

    def __init__(self, *, shrink_eps: bool, shrink: float = SHRINK) -> None:
        super().__init__()
        self._shrinks = _NORMS | _ADDITIONS if shrink_eps else set()
        self._shrink = shrink

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
        change = self._shrunk if name in self._shrinks else _widened
        return func(*map(change, args), **{k: change(v) for k, v in (kwargs or {}).items()})

    def _shrunk(self, value: Any) -> Any:
        if isinstance(value, float) and 0 < value <= _LARGEST_EPS:
            return value * self._shrink
        return _widened(value)


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


class Sandbox:
    """A model and its batches in float64, for as long as `in_float64` lasts.

    Attributes:
        model: The model; its parameters and buffers are copies.
        copies: Its parameters by the names of `named_parameters()`, without the repetitions of
            tied ones.
        batches: What it is run on, in float64.
        enlarged: The names of parameters that were too small to measure, and are larger here.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: list[Any],
        copies: dict[str, nn.Parameter],
        doubles: _Doubles,
    ) -> None:
        self.model = model
        self.batches = batches
        self.copies = copies
        self._doubles = doubles
        self.enlarged = [name for name, copy in copies.items() if id(copy) in doubles.enlarged]
        self._state = State(model, batches)
        modules = [item for item in self._state.objects if isinstance(item, nn.Module)]
        self._caches = cached_functions(modules)
        self._devices = {tensor.device for tensor in doubles.copies if tensor.device.type == "cuda"}
        self.reset()

    def reset(self) -> None:
        """Let a forward pass begin as every other did: same noise, and nothing kept from the last.

        In evaluation some modules keep what they computed from a weight (LeViT its attention
        biases); others write into a weight (`nn.Embedding(max_norm=…)`).
        """
        self._state.restore()
        self._doubles.restore()
        for function in self._caches:
            function.cache_clear()
        # Not torch.manual_seed: it also seeds a GPU that is used for the first time after the
        # probe, which nothing could undo.
        torch.default_generator.manual_seed(0)
        for device in self._devices:
            torch.cuda.default_generators[device.index or 0].manual_seed(0)
        random.seed(0)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(0)

    def train(self) -> None:
        """Run as in training from now on, dropout included; `reset` repeats what it drops.

        For models that cannot be evaluated on a training batch.
        """
        self.reset()
        self.model.train()
        self._state = State(self.model, self.batches)

    def close(self) -> None:
        """Forget what functions remember of the copies."""
        for function in self._caches:
            function.cache_clear()


@contextmanager
def in_float64(
    model: nn.Module, batches: list[Any], generator: torch.Generator
) -> Iterator[Sandbox]:
    """Put float64 copies in the place of all tensors, and training's normalization on.

    A parameter whose elements are all the same is as its author initialised it: a bias of 0, a gain
    of 1. Training will move it, so its copy is moved at random; otherwise a bias of 0 would make
    weights look invariant that are not from the second step on.

    Everything runs as in evaluation except normalization by running statistics, which training
    takes from the batch. A module in evaluation inside a model in training was put there on
    purpose, and stays. Caches of keys and values, which training does not use, are off.

    Afterwards the model and the batches are as they were found: everything that can be reached from
    them holds what it held, and no original tensor was written to.
    """
    found = State(model, batches)
    default = torch.get_default_dtype()
    doubles = _Doubles(generator)
    # Not the tensors that the model keeps elsewhere: those are copied as they are.
    parameters = {id(p) for p in model.parameters()}
    modules = [item for item in found.objects if isinstance(item, nn.Module)]
    sandbox = None
    with _kept_noise({p.device for p in model.parameters() if p.device.type == "cuda"}):
        try:
            copies = {
                name: doubles.parameter(p)
                for name, p in model.named_parameters()
                if p.is_floating_point()
            }
            found.exchange(lambda tensor: doubles.of(tensor, fixed=id(tensor) in parameters))
            _as_in_training(model)
            for module in modules:
                config: Any = getattr(module, "config", None)
                if hasattr(config, "use_cache"):
                    config.use_cache = False
            # Tensors that the forward pass makes from plain numbers.
            torch.set_default_dtype(torch.float64)
            sandbox = Sandbox(model, batches, copies, doubles)
            yield sandbox
        finally:
            torch.set_default_dtype(default)
            found.restore()
            if sandbox is not None:
                sandbox.close()


def _as_in_training(model: nn.Module) -> None:
    training = {
        id(m): _uses_batch(m) and (m.training or not model.training) for m in model.modules()
    }
    # Some modules drop here what they keep for evaluation.
    model.train()
    for module in model.modules():
        module.training = training[id(module)]


@dataclass
class _Double:
    """A float64 copy, what it is a copy of, and the version of it that is equal to that."""

    copy: Tensor
    source: Tensor
    version: int


class _Doubles:
    """Copies of tensors in float64; of integers and the like, copies as they are."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._found: dict[int, _Double] = {}
        # The copies that have other sizes than their originals, by their identity.
        self.enlarged: set[int] = set()

    @property
    def copies(self) -> list[Tensor]:
        """All copies."""
        return [double.copy for double in self._found.values()]

    def parameter(self, original: nn.Parameter) -> nn.Parameter:
        """The copy of a parameter, moved if it is constant."""
        if id(original) not in self._found:
            values = _moved(original, self._generator)
            larger = _enlarged(original) if values is None else None
            moved = values is not None or larger is not None
            if values is None:
                values = larger if larger is not None else original.detach()
                values = values.to(torch.float64, copy=True).contiguous()
            copy = nn.Parameter(values, requires_grad=True)
            if larger is not None:
                self.enlarged.add(id(copy))
            # Marks that an author put on the parameter.
            copy.__dict__.update(original.__dict__)
            source = values.clone() if moved else original.detach()
            self._found[id(original)] = _Double(copy, source, copy._version)
        return self._found[id(original)].copy  # type: ignore[return-value]

    def of(self, original: Tensor, *, fixed: bool) -> Tensor:
        """The copy of a tensor; the tensor itself where it is `fixed` and has none yet."""
        if id(original) not in self._found:
            if fixed or original.is_meta:
                return original
            dtype = torch.float64 if original.is_floating_point() else original.dtype
            copy = original.detach().to(dtype, copy=True)
            if isinstance(original, nn.Parameter):
                copy = nn.Parameter(copy, requires_grad=False)
            self._found[id(original)] = _Double(copy, original.detach(), copy._version)
        return self._found[id(original)].copy

    def restore(self) -> None:
        """Write the sources into the copies that were written to."""
        with torch.no_grad():
            for double in self._found.values():
                if double.copy._version != double.version:
                    double.copy.copy_(double.source)
                    double.version = double.copy._version


def _enlarged(parameter: Tensor) -> Tensor | None:
    """A parameter too small to measure, of the size that an initialiser gives; None for others.

    Most of its elements are small alike; one that is zero but for a few was made so.
    """
    values = parameter.detach().to(torch.float64)
    size = float(values.square().mean().sqrt()) if values.numel() > 1 else 1.0
    if not 0 < size < _TINY or float((values.abs() > size / 10).double().mean()) < 0.5:
        return None
    columns = values.numel() // values.shape[0] if values.ndim > 1 else 100
    larger: Tensor = values / (size * columns**0.5)
    return larger


def _moved(parameter: Tensor, generator: torch.Generator) -> Tensor | None:
    """A constant parameter in float64, moved at random; None for one that is not constant."""
    first = parameter.detach().flatten()[:1]
    if parameter.numel() < 2 or bool((parameter.detach() != first).any()):
        return None
    shape, device = parameter.shape, parameter.device
    noise = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(device)
    # A gain of 1e-6, as on residual branches, is an initial value as well.
    if abs(float(first)) < _LARGEST_EPS:
        return noise * (0.1 if parameter.ndim < 2 else 0.02)
    return float(first) * (1 + 0.1 * noise)


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
