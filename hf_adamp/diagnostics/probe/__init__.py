"""Finds the scale-invariant weights of a model by scaling them.

Source: Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant
Weights", ICLR 2021, https://arxiv.org/abs/2006.08217 (section 2: scale invariance; section 3.2: the
test that AdamP uses instead).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from hf_adamp.diagnostics.probe.dummy_inputs import dummy_batches, explain
from hf_adamp.diagnostics.probe.evaluation import Batch, Subject, UnreadableError
from hf_adamp.diagnostics.probe.examination import Examined, examine, steps_of
from hf_adamp.diagnostics.probe.probe_report import ProbeReport
from hf_adamp.diagnostics.probe.sandbox import in_float64
from hf_adamp.diagnostics.probe.weights import Granularity, WeightReport
from hf_adamp.optim.layout import has_rows

__all__ = ["Granularity", "ProbeReport", "WeightReport", "probe"]


def probe(
    model: nn.Module,
    inputs: Batch | Sequence[Batch] | None = None,
    *,
    gradients: int = 8,
    delta: float = 0.1,
    seed: int = 0,
    progress: bool = False,
) -> ProbeReport:
    """Find the weights that can be scaled without changing the model's output.

    Every trainable weight with two dimensions or more is scaled in three ways: each row by its own
    factor, groups of rows (heads), and all rows together. The finest scaling that leaves the output
    unchanged is the weight's granularity. The model runs in float64 and is restored afterwards;
    docs/which-models.md explains how the probe decides. It needs memory for a float64 copy of the
    model and for two copies of the largest weight. It takes 13 forward and backward passes, and one
    forward pass per invariant weight.

    Args:
        model: The model, on one device, before any wrapper shards it.
        inputs: A batch (a mapping of keyword arguments, a tuple of positional ones, or one tensor)
            or a list of batches. If it has labels, gradients are those of the loss that the model
            returns. None generates random batches for a Transformers model.
        gradients: Number of gradients on which AdamP's own test is tried, cycling through the
            batches; >= 1. If the model returns a loss, at most the number of batches.
        delta: `delta` of that test; > 0.
        seed: Seed of the random scales, readings and inputs.
        progress: Whether to show a progress bar, which needs tqdm. Default: False.

    Raises:
        TypeError: `model` is not a module, or `inputs` is not a batch.
        ValueError: A number is out of range, no weight can be probed, the model's output has no
            floating-point tensor or is not finite, or `inputs` is missing and cannot be generated.
        RuntimeError: A weight is sharded, or has no storage (meta device).

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten())
        >>> probe(model, torch.randn(4, 3, 8, 8)).granularities
        {'0.weight': 'row'}

    Source: arXiv 2006.08217, sections 2 and 3.2; docs/which-models.md.
    """
    started = time.perf_counter()
    names = _weights(model)
    _check_numbers(gradients, delta)
    generator = torch.Generator("cpu").manual_seed(seed)
    ways = dummy_batches(model, gradients, seed) if inputs is None else [_batches(inputs)]
    with _bar(model, steps_of(names, gradients), shown=progress) as advance:
        run = partial(_examine, model, names, gradients, delta, generator, advance)
        examined = run(*ways) if inputs is not None else _first_that_runs(model, ways, run)
    weights = {
        name: WeightReport(name, _module(model, name), **entry)
        for name, entry in examined.weights.items()
    }
    seconds = time.perf_counter() - started
    name, count = type(model).__name__, examined.gradients
    return ProbeReport(
        name, weights, count, delta, seconds, examined.notes, certain=examined.certain
    )


def _examine(
    model: nn.Module,
    names: list[str],
    gradients: int,
    delta: float,
    generator: torch.Generator,
    advance: Callable[[], object],
    batches: list[Any],
) -> Examined:
    with _plain_torch(model), in_float64(model, batches, generator) as sandbox:
        return examine(Subject(sandbox, generator), names, gradients, delta, generator, advance)


def _first_that_runs(
    model: nn.Module, ways: Iterable[list[Any]], run: Callable[[list[Any]], Examined]
) -> Examined:
    """Examine on generated inputs, in the first way that the model accepts."""
    failures: list[Exception] = []
    for batches in ways:
        try:
            return run(batches)
        except MemoryError:
            raise
        except Exception as error:
            is_ours = isinstance(error, UnreadableError)
            failures.append(error if is_ours else explain(model, batches, error))
            failures[-1].__cause__ = None if is_ours else error
    raise failures[0]


def _check_numbers(gradients: Any, delta: float) -> None:
    if isinstance(gradients, bool) or not isinstance(gradients, int) or gradients < 1:
        raise ValueError(f"gradients={gradients!r} must be an integer >= 1.")
    if not (math.isfinite(delta) and delta > 0):
        raise ValueError(f"delta={delta} must be finite and > 0.")


@contextmanager
def _bar(model: nn.Module, steps: int, *, shown: bool) -> Iterator[Callable[[], object]]:
    """Yield the function that counts a step, on a progress bar if one is shown."""
    if not shown:
        yield lambda: None
        return
    # Transformers depends on it; without a bar the probe needs only torch.
    tqdm = import_module("tqdm.auto").tqdm
    with tqdm(total=steps, desc=f"probe {type(model).__name__}", leave=False) as bar:
        yield bar.update
        # tqdm redraws at most ten times a second, so the end may not be on the screen yet.
        bar.refresh()


@contextmanager
def _plain_torch(model: nn.Module) -> Iterator[None]:
    """Switch off modes that the caller may have switched on around the probe."""
    with ExitStack() as stack:
        for device_type in {p.device.type for p in model.parameters()}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # Compiled modules would compile float64 variants, in which `Precise` sees nothing.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _weights(model: nn.Module) -> list[str]:
    """Return the names of the weights to probe, or say why they cannot be probed."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}.")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise RuntimeError(f"{name} has no shape yet; run the model on one batch first.")
        if parameter.is_meta:
            raise RuntimeError(f"{name} is on the meta device, without values; load the model.")
        if isinstance(parameter, DTensor) or getattr(parameter, "_fsdp_flattened", False):
            raise RuntimeError(f"{name} is sharded; probe the model before it is wrapped.")
        if parameter.device.type == "mps":
            raise RuntimeError(f"{name} is on mps, which has no float64; use model.cpu().")
    names = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and p.is_floating_point() and has_rows(p.shape)
    ]
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no trainable floating-point weight with two dimensions; "
            "AdamP projects no other. Unfreeze some with requires_grad_(True)."
        )
    return names


def _module(model: nn.Module, name: str) -> str:
    """The class of the module that owns a weight, without torch's parametrization."""
    holder = name.partition(".parametrizations.")[0] if ".parametrizations." in f".{name}" else ""
    module = model.get_submodule(holder or name.rpartition(".")[0])
    return type(module).__name__.removeprefix("Parametrized")


def _batches(inputs: Batch | Sequence[Batch]) -> list[Batch]:
    # A copy, because the probe replaces the tensors in it.
    batches: list[Any] = list(inputs) if isinstance(inputs, list) else [inputs]
    wrong = [b for b in batches if not isinstance(b, (Mapping, tuple, Tensor))]
    if wrong or not batches:
        raise TypeError(
            f"inputs holds {type(wrong[0]).__name__ if wrong else 'no batch'}; a batch is a "
            "mapping of keyword arguments, a tuple of positional ones or a tensor."
        )
    return batches
