"""`StepLog`: the numbers of `ProjectionLog` in your own training loop."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_adamp.diagnostics.report import Report, unwrap
from hf_adamp.diagnostics.steps import watch

__all__ = ["StepLog"]


class StepLog:
    """Logs weight norms, effective steps and projections of an optimizer's steps in any loop.

    The numbers, their names and the file are those of `ProjectionLog`. It needs neither a Trainer
    nor Transformers. Steps are counted by hooks on the optimizer inside Accelerate's wrapper, so
    steps that gradient accumulation or a gradient scaler skips do not count.

    If ranks hold shards of a weight, create a `StepLog` and call `read` on all ranks; the main
    process writes the file.

    Args:
        optimizer: any optimizer, also as returned by `accelerator.prepare`.
        model: the module with its weights, for their names and kinds.
        every: read every so many steps; at least 1. Default: 1.
        jsonl: the file, as in `ProjectionLog`; replaced unless `steps_taken` is set. Default: none.
        per_kind: as in `ProjectionLog`. Default: True.
        weights: as in `ProjectionLog`. Default: None.
        steps_taken: the steps that a resumed run had taken before. Default: 0.

    Raises:
        ValueError: `every` or `steps_taken` is out of range, or `weights` not a regular expression.

    Example::

        log = StepLog(optimizer, model, every=50)
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            if numbers := log.read(loss=loss):  # {} on the other steps, without a sync
                accelerator.log(numbers, step=log.step)

    Source: the quantities are those of Heo et al., https://arxiv.org/abs/2006.08217.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        *,
        every: int = 1,
        jsonl: str | Path | None = None,
        per_kind: bool = True,
        weights: str | None = None,
        steps_taken: int = 0,
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every} must be at least 1; 1 reads each step.")
        if steps_taken < 0:
            raise ValueError(f"steps_taken={steps_taken} must be at least 0; 0 begins a run.")
        self._report = Report(jsonl, per_kind=per_kind, weights=weights)
        self._report.describe(model)
        self._writes = not _distributed() or torch.distributed.get_rank() == 0
        if self._writes:
            self._report.start(resumed=steps_taken > 0)
        self.step = steps_taken
        self._every = every
        self._unread = False
        inner = unwrap(optimizer)
        self._reader = watch(inner)
        self._hooks = (
            inner.register_step_pre_hook(self._before),
            inner.register_step_post_hook(self._after),
        )

    def _before(self, *_: Any) -> None:
        self._reader.before_step(wanted=(self.step + 1) % self._every == 0)

    def _after(self, *_: Any) -> None:
        self._reader.after_step()
        self.step += 1
        self._unread = True

    def read(self, **beside: float | Tensor) -> dict[str, float]:
        """Return the numbers of the last step after those given, and write both to the file.

        Args:
            beside: other numbers of this step, such as the loss. Tensors are read only on steps
                that are logged, so other steps do not wait for the device.

        Returns:
            The numbers. Empty if this step is not logged, or on a second call in one step.
        """
        if not self._unread or self.step % self._every:
            return {}
        self._unread = False
        read = self._reader.read()
        numbers = {
            name: float(value.detach() if isinstance(value, Tensor) else value)
            for name, value in beside.items()
        }
        if self._writes:
            self._report.write({"step": self.step}, numbers, read)
        return numbers | self._report.numbers(read)

    def close(self) -> None:
        """Remove the hooks and restore the optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._reader.close()

    def __enter__(self) -> StepLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
