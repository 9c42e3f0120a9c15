"""Outputs and gradients of a model in float64, reduced to a few numbers a row as they appear."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_adamp.diagnostics.probe.folding import foldings, row_dots, row_squares, spread
from hf_adamp.diagnostics.probe.sandbox import FURTHER, SHRINK, Precise, Sandbox

__all__ = ["Batch", "Gradients", "Scaling", "Subject", "UnreadableError", "relative_change"]

Batch = Mapping[str, Any] | tuple[Any, ...] | Tensor
# A parameter's name, and how its rows are told.
Part = tuple[str, str]

# A change of the output that does not matter.
_SETTLED = 1e-6
# What Transformers' models return beside their result: stations on the way to it.
_STATIONS = {
    "attentions",
    "cross_attentions",
    "decoder_attentions",
    "decoder_hidden_states",
    "encoder_attentions",
    "encoder_hidden_states",
    "encoder_last_hidden_state",
    "extract_features",
    "hidden_states",
    "intermediate_hidden_states",
    "loss",
    "past_key_values",
    "router_logits",
    "text_model_output",
    "vision_model_output",
}


class UnreadableError(ValueError):
    """A model whose result says nothing of its weights."""


class Scaling(NamedTuple):
    """A factor for each row of a parameter, whose rows are told like this."""

    factors: Tensor
    folding: str


class Gradients(NamedTuple):
    """Of one gradient: for every parameter and each of its rows `g·w` and `|g|²`."""

    dot: dict[Part, Tensor]
    square: dict[Part, Tensor]


class Subject:
    """A model in float64 with its batches.

    Args:
        sandbox: Model and batches.
        generator: Source of the random readings.
    """

    def __init__(self, sandbox: Sandbox, generator: torch.Generator) -> None:
        self._sandbox = sandbox
        self.name = type(sandbox.model).__name__
        self.copies = sandbox.copies
        self.enlarged = sandbox.enlarged
        # |w|² of every row.
        self.squares = {
            (name, folding): row_squares(copy.detach(), folding)
            for name, copy in self.copies.items()
            for folding in foldings(copy.shape)
        }
        self._generator = generator
        self._extra: dict[str, Any] = {}

    def settle(self) -> None:
        """Find a way to run the model on its batches, or raise what the last one raises.

        Some models train on a batch that they cannot be evaluated on: with labels, evaluation fills
        a cache of keys and values that does not fit them, or asks for other arguments.
        """
        for prepare in (self._without_cache, self._sandbox.train):
            try:
                self._run_first()
            except Exception:
                prepare()
            else:
                return
        self._run_first()

    def _without_cache(self) -> None:
        batch = self._sandbox.batches[0]
        accepts = inspect.signature(self._sandbox.model.forward).parameters
        if isinstance(batch, Mapping) and "use_cache" in accepts and "use_cache" not in batch:
            self._extra = {"use_cache": False}

    def _run_first(self) -> None:
        with torch.no_grad():
            self._forward(0, shrink_eps=False)

    def outputs(
        self, *, shrink_eps: bool, scaled: Mapping[str, Scaling] | None = None
    ) -> list[Tensor]:
        """Run the first batch; the result's floating-point tensors.

        Args:
            shrink_eps: Whether the norms' eps is taken away.
            scaled: Names of parameters, and a factor for each of their rows.

        Raises:
            UnreadableError: There are none, or one is not finite.
        """
        with torch.no_grad():
            results = _results(self._forward(0, shrink_eps=shrink_eps, scaled=scaled or {}))
        if not any(result.numel() for result in results):
            raise UnreadableError(f"{self.name} returned no floating-point tensor for inputs.")
        if not all(bool(result.isfinite().all()) for result in results):
            raise UnreadableError(
                f"{self.name}'s output is not finite for inputs; pass other ones."
            )
        return results

    def eps_decides(self, precise: list[Tensor]) -> bool:
        """Whether values are so small that what is left of the norms' eps still counts."""
        with torch.no_grad():
            further = _results(self._forward(0, shrink_eps=True, shrink=FURTHER))
        # A change that is not a number is one.
        return not relative_change(precise, further) < _SETTLED

    def reading_gradients(self, draws: int, *, shrink_eps: bool) -> list[Gradients]:
        """Gradients of random linear readings of the first batch's result.

        A reading is `Σ r·y/|y|` with normal r: what holds for a few of them holds for any loss.
        """
        results = _results(self._forward(0, shrink_eps=shrink_eps))
        return [self._backward(self._read(results), keep=True) for _ in range(draws)]

    def loss_gradients(self, draws: int) -> Iterator[Gradients]:
        """Gradients as in training: of the loss where the model returns one, else of readings."""
        for draw in range(draws):
            output = self._forward(draw % len(self._sandbox.batches), shrink_eps=False)
            loss = _loss(output)
            if loss is not None and draw >= len(self._sandbox.batches):
                return
            yield self._backward(self._read(_results(output)) if loss is None else loss)

    def _forward(
        self,
        index: int,
        *,
        shrink_eps: bool,
        scaled: Mapping[str, Scaling] | None = None,
        shrink: float = SHRINK,
    ) -> Any:
        self._sandbox.reset()
        with torch.no_grad():
            for name, (factors, folding) in (scaled or {}).items():
                copy = self.copies[name]
                copy.mul_(spread(factors.to(copy.device), copy.shape, folding))
        model, batch = self._sandbox.model, self._sandbox.batches[index]
        with Precise(shrink_eps=shrink_eps, shrink=shrink):
            if isinstance(batch, Mapping):
                return model(**batch, **self._extra)
            return model(*batch) if isinstance(batch, tuple) else model(batch)

    def _read(self, results: list[Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=results[0].device)
        for result in results:
            noise = torch.randn(
                result.shape, generator=self._generator, dtype=torch.float64, device="cpu"
            )
            total = total + (noise.to(result.device) * result).sum() / _norm(result)
        return total

    def _backward(self, scalar: Tensor, *, keep: bool = False) -> Gradients:
        """Reduce each gradient to two numbers a row as soon as it is complete, and drop it."""
        # A parameter that the output does not depend on gets no gradient.
        empty = {name: torch.zeros_like(square) for name, square in self.squares.items()}
        gradients = Gradients(empty, dict(empty))

        def reduce(name: str, weight: Tensor) -> None:
            assert weight.grad is not None
            grad = weight.grad.detach()
            for folding in foldings(weight.shape):
                gradients.dot[name, folding] = row_dots(grad, weight.detach(), folding)
                gradients.square[name, folding] = row_squares(grad, folding)
            weight.grad = None

        hooks = [
            copy.register_post_accumulate_grad_hook(lambda weight, name=name: reduce(name, weight))
            for name, copy in self.copies.items()
        ]
        try:
            scalar.backward(retain_graph=keep)
        finally:
            for hook in hooks:
                hook.remove()
        return gradients


def relative_change(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest `|after − before| / |before|` over the tensors of a result."""
    return max(
        float((b - a).norm() / _norm(a)) for a, b in zip(before, after, strict=True) if a.numel()
    )


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor.detach())
    return norm.clamp(min=torch.finfo(torch.float64).tiny)


def _loss(output: Any) -> Tensor | None:
    """The loss that a model returns, a number even where it returns one a sample."""
    loss = output.get("loss") if isinstance(output, Mapping) else None
    if not isinstance(loss, Tensor) or not loss.is_floating_point() or not loss.requires_grad:
        return None
    return loss.mean()


def _results(output: Any) -> list[Tensor]:
    """The floating-point tensors that are the model's result, at any depth."""
    if isinstance(output, Tensor):
        # Masked logits are -inf; a reading of them would be too.
        return [output.masked_fill(output == -torch.inf, 0)] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        results = [t for k, v in output.items() if k not in _STATIONS for t in _results(v)]
        # A model that returns nothing but its loss is read by its loss.
        return results or [t for key in ("loss",) if key in output for t in _results(output[key])]
    if isinstance(output, (tuple, list)):
        return [tensor for item in output for tensor in _results(item)]
    return []
