"""`ProjectionLog`: logs what projection does to each weight, with a Trainer's own logs."""

from __future__ import annotations

import inspect
import logging
from functools import wraps
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import (
    CallbackHandler,
    DefaultFlowCallback,
    PrinterCallback,
    ProgressCallback,
)

from hf_adamp.diagnostics.report import Report, unwrap
from hf_adamp.diagnostics.steps import StepReader, watch

__all__ = ["ProjectionLog"]

logger = logging.getLogger(__name__)

# A console line has room for these; reporters, history and file get everything.
_CONSOLE = {
    "weight_norm",
    "effective_step",
    "projected_channel",
    "projected_layer",
    "projected_head",
}


class ProjectionLog(TrainerCallback):
    """Logs weight norms, effective steps and projections together with the loss.

    Each time the Trainer logs its loss, it also logs these numbers: to TensorBoard, wandb, trackio
    and every other reporter, on the console and in `trainer.state.log_history`:

    - `weight_norm`: the norm of all weights with two dimensions or more, before the step;
    - `update_norm`: `|Δw|`, the norm of the step, with weight decay and projection;
    - `effective_step`: `|Δw|/|w|`, how far the step turns or stretches them;
    - `projected_channel`, `projected_layer`, `not_projected`: the share of weights whose update
      was projected in either view or in none, over all steps since the last log;
    - `projected_head`: the share projected per head, if `scale_invariant` declares heads;
    - `channel_margin`: `max |cos(w, g)| · √dim` over the rows of all weights, in the last step;
    - `radial_share`: the share of the step along the weight, before projection.

    AdamP and SGDP compute these numbers in every step. They stay on the device and are read when
    the Trainer logs. For any other optimizer the first three are measured, so that runs can be
    compared. For this the weights are copied before each step that will be logged (with
    `logging_strategy="epoch"`, before every step), which takes their memory until the step is done.

    Args:
        jsonl: a file that gets one line per weight at each log, with its name, its numbers and its
            distance from both limits. Before them is one line for the whole model, whose `weight`
            is null and which has the loss. A new run replaces the file, a resumed one continues it.
            `None`, the default, writes no file.
        per_kind: whether to log the numbers of each kind of module, too, as in
            `weight_norm/Conv2d`, if the model has more than one kind. Default: True.
        weights: a regular expression; the numbers of each weight whose name matches are logged,
            too, as in `weight_norm/layers.0.q_proj.weight`. `None`, the default, writes single
            weights only to the file.

    Raises:
        ValueError: `weights` is not a regular expression.

    Example::

        trainer = Trainer(model=model, args=args, train_dataset=data,
                          callbacks=[ProjectionLog(jsonl="run/projection.jsonl")])
        trainer.train()
        plot_runs({"adamp": "run/projection.jsonl"}, "run/projection.png")

    Source: the quantities are those of Heo et al., https://arxiv.org/abs/2006.08217, section 2
    (norm growth and effective step) and section 3.2 (the test that chooses the view).
    """

    def __init__(
        self,
        *,
        jsonl: str | Path | None = None,
        per_kind: bool = True,
        weights: str | None = None,
    ) -> None:
        self._report = Report(jsonl, per_kind=per_kind, weights=weights)
        self._reader: StepReader | None = None
        self._fresh = False
        self._quiet: set[str] = set()
        self._consoles: list[TrainerCallback] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        **_: Any,
    ) -> None:
        """Get the weights' names, start the file, and move in front of the reporters."""
        self._report.describe(model)
        if state.is_world_process_zero:
            self._report.start(resumed=state.global_step > 0)
        handler = _run_before_reporters(self)
        if handler is None:
            logger.warning(
                "ProjectionLog found no transformers CallbackHandler among its callers: its "
                "numbers reach trainer.state.log_history and the JSONL file, but not the reporters."
            )
        else:
            self._shorten_consoles(handler)

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Optimizer,
        **_: Any,
    ) -> None:
        """Follow the current optimizer; a Trainer may create another one when it retries."""
        inner = unwrap(optimizer)
        if self._reader is None or self._reader.optimizer is not inner:
            self._close()
            self._reader = watch(inner)
        self._reader.before_step(wanted=_will_log(args, state))

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Optimizer,
        **_: Any,
    ) -> None:
        """Take the step's numbers, which stay on the device."""
        # A step that the gradient scaler skipped changed no weight.
        if self._reader is not None and not getattr(optimizer, "step_was_skipped", False):
            self._reader.after_step()
            self._fresh = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Read the numbers and add them to the logs with the loss."""
        if logs is None or "loss" not in logs or self._reader is None or not self._fresh:
            return
        self._fresh = False
        read = self._reader.read()
        added = self._report.numbers(read)
        logs.update(added)
        self._quiet = added.keys() - _CONSOLE
        # The Trainer has already filed a copy of the logs.
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(added)
        if state.is_world_process_zero:
            when = {"step": state.global_step, "epoch": state.epoch}
            self._report.write(when, {"loss": logs["loss"]}, read)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Restore the optimizer and the console."""
        self._close()
        for console in self._consoles:
            del console.on_log
        self._consoles = []

    def _shorten_consoles(self, handler: CallbackHandler) -> None:
        """Hide our minor numbers from the callbacks that print.

        All other callbacks still get them, because the logs themselves do not change.
        """
        for console in handler.callbacks:
            printing = isinstance(console, (PrinterCallback, ProgressCallback))
            if printing and "on_log" not in vars(console):
                console.on_log = self._shortened(console.on_log)
                self._consoles.append(console)

    def _shortened(self, on_log: Any) -> Any:
        @wraps(on_log)
        def shortened(*event: Any, logs: dict[str, Any] | None = None, **rest: Any) -> Any:
            shown = {k: v for k, v in (logs or {}).items() if k not in self._quiet}
            return on_log(*event, logs=None if logs is None else shown, **rest)

        return shortened

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _will_log(args: TrainingArguments, state: TrainerState) -> bool:
    """Whether the step about to be taken may be logged."""
    step = state.global_step + 1
    strategy = str(getattr(args.logging_strategy, "value", args.logging_strategy))
    first = args.logging_first_step and step == 1
    return first or strategy == "epoch" or (strategy == "steps" and step % state.logging_steps == 0)


def _run_before_reporters(callback: TrainerCallback) -> CallbackHandler | None:
    """Move the callback right after DefaultFlowCallback; return the handler of the callbacks.

    Reporters run before a user's callbacks, so numbers that these add to the logs come too late. A
    callback has no reference to its handler, but the handler is the caller: look up the stack.
    """
    frame = inspect.currentframe()
    while frame is not None:
        handler = frame.f_locals.get("self")
        if isinstance(handler, CallbackHandler) and callback in handler.callbacks:
            # Moving the callback that is running forwards does not disturb the loop over the rest.
            handler.callbacks.remove(callback)
            flow = [isinstance(c, DefaultFlowCallback) for c in handler.callbacks]
            handler.callbacks.insert(flow.index(True) + 1 if any(flow) else 0, callback)
            return handler
        frame = frame.f_back
    return None
